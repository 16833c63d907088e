"""OpenVINO on a CPU, in float32 or in bfloat16: two devices with names of their own.

OpenVINO's defaults are bfloat16 where the processor has it, and several threads: precision and
threads are always set here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from proxylessnas.errors import MeasurementError, one_line
from proxylessnas.export.onnx import to_onnx
from proxylessnas.hardware.host import cpu_model
from proxylessnas.hardware.runtimes.base import (
    Session,
    description,
    file_bytes,
    flag_options,
    full_name,
    is_activation,
    stand_in,
)

# Importing OpenVINO would otherwise send usage data to its makers, from a forked process.
sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
import openvino  # noqa: E402

PRECISIONS = ("f32", "bf16")


class OpenVino:
    """openvino (float32), or openvino:bf16 on a processor that computes in bfloat16."""

    def __init__(self, *options: str, threads: int = 1) -> None:
        if len(options) > 1:
            raise MeasurementError(f"openvino takes one precision, not {list(options)}")
        flag_options("openvino", options, PRECISIONS)
        self.precision = options[0] if options else "f32"
        self.name = full_name("openvino", () if self.precision == "f32" else options)
        self.threads, self._core = threads, openvino.Core()
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if self.precision.upper() not in able and self.precision != "f32":
            raise MeasurementError(
                f"openvino:{self.precision}: this processor ({cpu_model()}) does not compute in "
                f"{self.precision}, and OpenVINO would silently use f32; it can: {', '.join(able)}"
            )

    def describe(self) -> dict[str, str | int]:
        version = str(openvino.__version__).partition("-")[0]
        return description(self, version=version, device=cpu_model(), precision=self.precision)

    def load(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Session:
        arrays = [x.detach().cpu().numpy() for x in inputs]
        block = any(is_activation(array.shape) for array in arrays)
        request = self._open(to_onnx(module, inputs), block=block)
        return _OpenVinoSession(request, arrays, block=block)

    def load_file(self, path: str | Path, *, batch: int = 1) -> Session:
        request = self._open(file_bytes(path, ".onnx", "openvino"), str(path), batch)
        arrays = [
            stand_in(list(node.shape), node.element_type.to_dtype().name, batch)
            for node in request.model_inputs
        ]
        return _OpenVinoSession(request, arrays)

    def _open(
        self,
        content: bytes,
        subject: str = "the network",
        batch: int | None = None,
        block: bool = False,
    ) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # measure.py pins, and all sessions to one core
            "PERF_COUNT": block,
        }
        try:
            model = self._core.read_model(content, b"")
            open_shapes = {
                node: [batch if d.is_dynamic else d.get_length() for d in node.partial_shape]
                for node in (model.inputs if batch else ())
                if node.partial_shape.is_dynamic
            }
            if open_shapes:
                model.reshape(open_shapes)
            return self._core.compile_model(model, "CPU", settings).create_infer_request()
        except Exception as error:  # a RuntimeError with a page of text
            raise MeasurementError(f"openvino cannot load {subject}: {one_line(error)}") from error


class _OpenVinoSession(Session):
    """Of a block alone, the reorders at its ends are not timed.

    The plugin keeps activations channels last within a network; a block alone reorders its
    input and output besides, which in a network nobody does, and which is up to a third of a
    small block's time. OpenVINO's counters tell how long that took.
    """

    def __init__(
        self, request: Any, inputs: list[np.ndarray[Any, Any]], *, block: bool = False
    ) -> None:
        self._request, self._block = request, block
        self._inputs = tuple(node.get_any_name() for node in request.model_inputs)
        # The exporter drops inputs that the graph never reads.
        for i, array in zip(range(len(request.model_inputs)), inputs, strict=False):
            tensor = openvino.Tensor(np.ascontiguousarray(array), shared_memory=True)
            request.set_input_tensor(i, tensor)

    def __call__(self) -> None:
        self._request.infer(share_outputs=True)

    def timed(self, repeat: int) -> float:
        if not self._block:
            return super().timed(repeat)
        total = 0.0
        for _ in range(repeat):
            whole = super().timed(1)
            total += max(whole - self._reordering_s(), 0.1 * whole)
        return total

    def _reordering_s(self) -> float:
        return sum(
            float(node.real_time.total_seconds())
            for node in self._request.get_profiling_info()
            if node.node_type == "Reorder"
            and (node.node_name.endswith("/sink_port_0") or node.node_name.startswith(self._inputs))
        )

    def outputs(self) -> tuple[np.ndarray[Any, Any], ...]:
        self()
        count = len(self._request.model_outputs)
        return tuple(self._request.get_output_tensor(i).data.copy() for i in range(count))

    def close(self) -> None:
        self._request = None
