"""OpenVINO on a CPU, in float32 or in bfloat16: two devices with names of their own.

OpenVINO's defaults are bfloat16 where the processor has it, and several threads: precision and
threads are always set here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from proxylessnas.errors import MeasurementError, foreign
from proxylessnas.export.onnx import to_onnx
from proxylessnas.export.onnx_session import named_inputs
from proxylessnas.hardware.host import cpu_model
from proxylessnas.hardware.networks import stand_in
from proxylessnas.hardware.runtimes.base import Session, Shape, description, full_name, is_block
from proxylessnas.hardware.runtimes.files import (
    FileInput,
    checked_file,
    full_shapes,
    in_words,
    onnx_precision,
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
        name = full_name("openvino", options, PRECISIONS)
        self.precision, self.name = options[0] if options else "f32", name.removesuffix(":f32")
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
        arrays = named_inputs([x.detach().cpu().numpy() for x in inputs])
        block = is_block(inputs)
        with foreign(MeasurementError, "openvino cannot load the network"):
            model = self._core.read_model(to_onnx(module, inputs), b"")
            return _OpenVinoSession(self._compiled(model, block=block), arrays, block=block)

    def load_file(
        self, path: str | Path, *, batch: int = 1, shapes: Mapping[str, Shape] | None = None
    ) -> Session:
        path = checked_file(path, ".onnx", "openvino")
        with foreign(MeasurementError, f"openvino cannot load {path}"):
            model = self._core.read_model(str(path))
            inputs = [_file_input(node) for node in model.inputs]
            full = full_shapes(inputs, batch, shapes or {}, str(path))
            model.reshape({name: list(shape) for name, shape in full.items()})
            request = self._compiled(model)
        arrays = {x.name: stand_in(full[x.name], x.dtype) for x in inputs}
        with foreign(MeasurementError, f"openvino cannot run {path}"):
            session = _OpenVinoSession(request, arrays)
            session()
        session.file = in_words(inputs, full, onnx_precision(path))
        return session

    def _compiled(self, model: Any, *, block: bool = False) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # measure.py pins, and all sessions to one core
            "PERF_COUNT": block,
        }
        return self._core.compile_model(model, "CPU", settings).create_infer_request()


def _file_input(node: Any) -> FileInput:
    shape = [None if d.is_dynamic else d.get_length() for d in node.partial_shape]
    dtype = node.element_type.to_dtype().name
    return FileInput(name=node.get_any_name(), shape=tuple(shape), dtype=dtype)


class _OpenVinoSession(Session):
    """Of a block alone, the reorders at its ends are not timed.

    The plugin keeps activations channels last within a network; a block alone reorders its
    input and output besides, which in a network nobody does, and which is up to a third of a
    small block's time. OpenVINO's counters tell how long that took.
    """

    def __init__(
        self, request: Any, arrays: Mapping[str, np.ndarray[Any, Any]], *, block: bool = False
    ) -> None:
        self._request, self._block = request, block
        self._inputs = tuple(node.get_any_name() for node in request.model_inputs)
        for i, name in enumerate(self._inputs):  # without those that the graph never reads
            tensor = openvino.Tensor(np.ascontiguousarray(arrays[name]), shared_memory=True)
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
