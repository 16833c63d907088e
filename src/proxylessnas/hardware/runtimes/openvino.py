"""OpenVINO on a CPU, in float32 or in bfloat16: two devices, named apart.

Its own defaults are bfloat16 where the processor has it, and several threads: precision and
threads are always set here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from torch import Tensor, nn

from ...errors import MeasurementError
from ...export import one_line, to_onnx
from ..machine import cpu_model
from .base import Session, file_bytes, flag_options, full_name, stand_in

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
        return {
            "runtime": self.name,
            "version": str(openvino.__version__).partition("-")[0],
            "precision": self.precision,
            "threads": self.threads,
            "device": cpu_model(),
        }

    def load(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Session:
        arrays = [x.detach().cpu().numpy() for x in inputs]
        inner = [_is_activation(array.shape) for array in arrays]
        session = _OpenVinoSession(self._open(to_onnx(module, inputs), inner=inner))
        session.feed([_channels_last(a) if i else a for a, i in zip(arrays, inner, strict=True)])
        return session

    def load_file(self, path: str | Path, *, batch: int = 1) -> Session:
        request = self._open(file_bytes(path, ".onnx", "openvino"), str(path), batch)
        arrays = [
            stand_in(list(given.shape), given.element_type.to_dtype().name, batch)
            for given in request.model_inputs
        ]
        session = _OpenVinoSession(request)
        session.feed(arrays)
        return session

    def _open(
        self,
        content: bytes,
        what: str = "the network",
        batch: int | None = None,
        inner: Sequence[bool] = (),
    ) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # measure.py pins, and all sessions to one core
        }
        try:
            model = self._core.read_model(content, b"")
            open_shapes = {
                given: [batch if d.is_dynamic else d.get_length() for d in given.partial_shape]
                for given in (model.inputs if batch else ())
                if given.partial_shape.is_dynamic
            }
            if open_shapes:
                model.reshape(open_shapes)
            model = _with_inner_layout(model, inner)
            return self._core.compile_model(model, "CPU", settings).create_infer_request()
        except Exception as error:  # it raises RuntimeError with a page of text
            raise MeasurementError(f"openvino cannot load {what}: {one_line(error)}") from error


def _is_activation(shape: Sequence[int]) -> bool:
    """Whether this is something between layers of an image network, and no image itself."""
    return len(shape) == 4 and shape[1] > 4


def _channels_last(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def _with_inner_layout(model: Any, inner: Sequence[bool]) -> Any:
    """A block's activations as the CPU plugin keeps them within a network: channels last.

    A block alone would pay for reordering them at both ends, which in a network nobody pays:
    up to a third of a small block's time.
    """
    outputs = [_is_activation(list(given.shape)) for given in model.outputs] if inner else []
    if not any(inner) and not any(outputs):
        return model
    steps = openvino.preprocess.PrePostProcessor(model)
    for flags, port in ((inner, steps.input), (outputs, steps.output)):
        for i, flag in enumerate(flags):
            if flag:
                port(i).model().set_layout(openvino.Layout("NCHW"))
                port(i).tensor().set_layout(openvino.Layout("NHWC"))
    return steps.build()


class _OpenVinoSession(Session):
    def __init__(self, request: Any) -> None:
        self._request = request

    def feed(self, arrays: list[np.ndarray[Any, Any]]) -> None:
        # The exporter drops inputs that the graph never reads.
        for i, array in zip(range(len(self._request.model_inputs)), arrays, strict=False):
            tensor = openvino.Tensor(np.ascontiguousarray(array), shared_memory=True)
            self._request.set_input_tensor(i, tensor)

    def __call__(self) -> None:
        self._request.infer(share_outputs=True)

    def outputs(self) -> tuple[np.ndarray[Any, Any], ...]:
        self()
        count = len(self._request.model_outputs)
        found = [self._request.get_output_tensor(i).data.copy() for i in range(count)]
        layouts = [str(given.node.get_layout()) for given in self._request.model_outputs]
        return tuple(
            a.transpose(0, 3, 1, 2) if "N,H,W,C" in layout else a
            for a, layout in zip(found, layouts, strict=True)
        )

    def close(self) -> None:
        self._request = None
