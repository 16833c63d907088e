"""LiteRT (TensorFlow Lite) with XNNPACK: what Android phones run, here on this CPU."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import Tensor, nn

from proxylessnas.errors import MeasurementError, foreign
from proxylessnas.export.lite_names import lite_inputs, lite_name
from proxylessnas.export.quiet import stderr_away
from proxylessnas.export.tflite import channels_last, to_tflite
from proxylessnas.hardware.fingerprint import fingerprint
from proxylessnas.hardware.host import cpu_model
from proxylessnas.hardware.networks import LiteRtNetwork, stand_in
from proxylessnas.hardware.runtimes.base import Session, Shape, description, full_name
from proxylessnas.hardware.runtimes.files import FileInput, checked_file, full_shapes, in_words


class LiteRt:
    """litert: float32 on the CPU by XNNPACK."""

    def __init__(self, *options: str, threads: int = 1) -> None:
        self.name, self.threads = full_name("litert", options, ()), threads
        self._last = ("", b"")

    def describe(self) -> dict[str, str | int]:
        return description(self, version=version("ai-edge-litert"), device=cpu_model())

    def load(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Session:
        model = self._converted(module, inputs)
        arrays = lite_inputs([x.cpu().numpy() for x in channels_last(inputs)])
        with foreign(MeasurementError, "litert cannot load the network"), stderr_away():
            interpreter = Interpreter(model_content=model, num_threads=self.threads)
            interpreter.allocate_tensors()
            return _LiteRtSession(interpreter, arrays)

    def _converted(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
        """The same network twice in a row, as a validation network is, is converted once.

        A conversion takes seconds; a network loaded twice differs in memory all the same.
        """
        digest = hashlib.blake2b(fingerprint(module, where=str(id(module))).encode())
        for tensor in (*inputs, *module.state_dict().values()):
            digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        for tensor in module.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        if digest.hexdigest() != self._last[0]:
            self._last = (digest.hexdigest(), to_tflite(module, inputs))
        return self._last[1]

    def load_file(
        self, path: str | Path, *, batch: int = 1, shapes: Mapping[str, Shape] | None = None
    ) -> Session:
        path = checked_file(path, ".tflite", "litert")
        with foreign(MeasurementError, f"litert cannot load {path}"), stderr_away():
            interpreter = Interpreter(model_path=str(path), num_threads=self.threads)
            details = interpreter.get_input_details()
            inputs = [_file_input(tensor) for tensor in details]
            full = full_shapes(inputs, batch, shapes or {}, str(path))
            for tensor, x in zip(details, inputs, strict=True):
                if tuple(tensor["shape"]) != full[x.name]:
                    interpreter.resize_tensor_input(tensor["index"], list(full[x.name]))
            interpreter.allocate_tensors()
        arrays = {x.name: stand_in(full[x.name], x.dtype) for x in inputs}
        with foreign(MeasurementError, f"litert cannot run {path}"):
            session = _LiteRtSession(interpreter, arrays)
            session()
        session.precision = _precision(interpreter)
        session.file = in_words(inputs, full, session.precision)
        return session


def _file_input(tensor: Mapping[str, Any]) -> FileInput:
    signature = tensor["shape_signature"] if len(tensor["shape_signature"]) else tensor["shape"]
    shape = tuple(int(size) for size in signature)  # -1 where it is open
    return FileInput(name=lite_name(tensor), shape=shape, dtype=np.dtype(tensor["dtype"]).name)


def _precision(interpreter: Any) -> str:
    """Of a file's weights; the converters leave float32 tensors beside those of less precision."""
    kinds = {np.dtype(t["dtype"]).name for t in interpreter.get_tensor_details() if len(t["shape"])}
    names = {"int8": "i8", "uint8": "u8", "float16": "f16"}
    return next((names[name] for name in names if name in kinds), "f32")


class _LiteRtSession(LiteRtNetwork, Session):
    def outputs(self) -> tuple[np.ndarray[Any, Any], ...]:
        self()
        details = self.interpreter.get_output_details()
        arrays = [self.interpreter.get_tensor(tensor["index"]) for tensor in details]
        return tuple(a.transpose(0, 3, 1, 2) if a.ndim == 4 else a for a in arrays)
