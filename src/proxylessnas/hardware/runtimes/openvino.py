"""OpenVINO on a CPU, in float32, in bfloat16 (a device with a name of its own), or in int8.

OpenVINO's defaults are bfloat16 where the processor has it, and several threads: precision and
threads are always set here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from proxylessnas.errors import MeasurementError, foreign
from proxylessnas.export.onnx import to_onnx
from proxylessnas.export.onnx_session import named_inputs
from proxylessnas.export.precision import in_precision, noisy_feeds
from proxylessnas.hardware.host import cpu_model, needs_reduced_range
from proxylessnas.hardware.networks import MOST_REORDERING, Reordering, stand_in
from proxylessnas.hardware.runtimes.base import (
    Array,
    Session,
    Shape,
    description,
    full_name,
    is_block,
)
from proxylessnas.hardware.runtimes.files import (
    FileInput,
    checked_file,
    converted_file,
    full_shapes,
    in_words,
)

# Importing OpenVINO would otherwise send usage data to its makers, from a forked process.
sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
import openvino  # noqa: E402

_HINTS = {"bf16": "bf16", "fp16": "f16"}
DEVICES = ("cpu", "gpu", "npu")
PRECISIONS = ("f32", "bf16", "fp16", "int8")


class OpenVino:
    """openvino (float32), or openvino:bf16 on a processor that computes in bfloat16.

    openvino:gpu and openvino:npu are Intel's other devices, `openvino:gpu,fp16` in float16 there;
    they are untested on a device. precision: the same as an option; int8 runs the file that ONNX
    Runtime runs.
    """

    def __init__(self, *options: str, threads: int = 1, precision: str | None = None) -> None:
        wanted = dict.fromkeys([*map(str.lower, options), *([precision] if precision else [])])
        devices = [option.upper() for option in wanted if option in DEVICES]
        precisions = [option for option in wanted if option not in DEVICES]
        if len(precisions) > 1 or len(devices) > 1:
            raise MeasurementError(
                f"openvino takes one precision and one device, not {list(wanted)}"
            )
        full_name("openvino", tuple(precisions), (*PRECISIONS, *DEVICES))
        self.precision = precisions[0] if precisions else "f32"
        self.device = devices[0] if devices else "CPU"
        parts = [device.lower() for device in devices if device != "CPU"]
        parts += [self.precision] if self.precision in _HINTS else []
        self.name = ":".join(["openvino", ",".join(parts)]) if parts else "openvino"
        self.threads, self._core = threads, openvino.Core()
        present = [name.partition(".")[0] for name in self._core.available_devices]
        if self.device not in present:
            raise MeasurementError(
                f"openvino:{self.device.lower()}: OpenVINO finds no {self.device} here; it finds: "
                f"{', '.join(present)}"
            )
        able = self._core.get_property(self.device, "OPTIMIZATION_CAPABILITIES")
        if self.precision in _HINTS and self.precision.upper() not in able:
            raise MeasurementError(
                f"openvino:{self.precision}: this processor ({cpu_model()}) does not compute in "
                f"{self.precision}, and OpenVINO would silently use f32; it can: {', '.join(able)}"
            )

    def describe(self) -> dict[str, str | int]:
        version = str(openvino.__version__).partition("-")[0]
        device = cpu_model()
        if self.device != "CPU":
            device = str(self._core.get_property(self.device, "FULL_DEVICE_NAME"))
        return description(self, version=version, device=device, precision=self.precision)

    def load(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Session:
        arrays = named_inputs([x.detach().cpu().numpy() for x in inputs])
        block = is_block(inputs) and self.device == "CPU"
        with foreign(MeasurementError, "openvino cannot load the network"):
            content = in_precision(
                to_onnx(module, inputs),
                "int8" if self.precision == "int8" else "f32",  # the others are a hint
                noisy_feeds(arrays),
                reduce_range=needs_reduced_range(),
            )
            model = self._core.read_model(content, b"")
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
            arrays = {x.name: stand_in(full[x.name], x.dtype) for x in inputs}
            precision = "int8" if self.precision == "int8" else "f32"
            content, weights = converted_file(path, precision, arrays)
            if content is not None:
                model = self._core.read_model(content, b"")
            request = self._compiled(model)
        with foreign(MeasurementError, f"openvino cannot run {path}"):
            session = _OpenVinoSession(request, arrays)
            session()
        session.file = in_words(inputs, full, weights)
        return session

    def _compiled(self, model: Any, *, block: bool = False) -> Any:
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS.get(self.precision, "f32"),
            "NUM_STREAMS": 1,
            "PERF_COUNT": block,
        }
        if self.device == "CPU":
            # measure.py pins, and all sessions to one core.
            settings |= {"INFERENCE_NUM_THREADS": self.threads, "ENABLE_CPU_PINNING": False}
        return self._core.compile_model(model, self.device, settings).create_infer_request()


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

    def __init__(self, request: Any, arrays: Mapping[str, Array], *, block: bool = False) -> None:
        self._request, self._block = request, block
        self._inputs = tuple(node.get_any_name() for node in request.model_inputs)
        # Without those that the graph never reads. Copied, and held: the request reads and `run`
        # writes memory that it does not own.
        self._arrays = [np.array(arrays[name], order="C") for name in self._inputs]
        for i, array in enumerate(self._arrays):
            request.set_input_tensor(i, openvino.Tensor(array, shared_memory=True))

    def __call__(self) -> None:
        self._request.infer(share_outputs=True)

    def timed(self, repeat: int) -> float:
        if not self._block:
            return super().timed(repeat)
        wholes = (super(_OpenVinoSession, self).timed(1) for _ in range(repeat))
        return sum(self._reordering().taken_out(whole) for whole in wholes)

    def _reordering(self) -> Reordering:
        """Of the inference before."""
        spent = every = 0.0
        for node in self._request.get_profiling_info():
            seconds = float(node.real_time.total_seconds())
            every += seconds
            name = node.node_name
            at_end = name.endswith("/sink_port_0") or name.startswith(self._inputs)
            spent += seconds * (node.node_type == "Reorder" and at_end)
        return Reordering(spent, min(spent / max(every, 1e-9), MOST_REORDERING))

    def run(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        named = named_inputs(arrays)
        self._request.infer({i: named[name] for i, name in enumerate(self._inputs)})
        return self._outputs()

    def outputs(self) -> tuple[Array, ...]:
        self()
        return self._outputs()

    def _outputs(self) -> tuple[Array, ...]:
        count = len(self._request.model_outputs)
        return tuple(self._request.get_output_tensor(i).data.copy() for i in range(count))
