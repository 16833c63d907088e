"""LiteRT (TensorFlow Lite) with XNNPACK: what Android phones run, here on this CPU."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import Tensor, nn

from proxylessnas.errors import MeasurementError, foreign
from proxylessnas.export.lite_names import computed, feed, lite_name
from proxylessnas.export.precision import noisy_feeds, noisy_inputs
from proxylessnas.export.tflite import lite_feed, quantised_tflite, to_tflite
from proxylessnas.hardware.fingerprint import fingerprint
from proxylessnas.hardware.networks import LiteRtNetwork, stand_in
from proxylessnas.hardware.runtimes.base import Array, FloatShare, OfPackage, Session, Shape
from proxylessnas.hardware.runtimes.files import FileInput, checked_file, full_shapes, in_words
from proxylessnas.io.native import native_away

# Operators that only convert or move values; DELEGATE stands for others that are listed besides.
CONVERSIONS = ("QUANTIZE", "DEQUANTIZE", "TRANSPOSE", "RESHAPE", "SQUEEZE", "DELEGATE")


class LiteRt(OfPackage):
    """litert: float32 or int8 on the CPU by XNNPACK; int8 has integers as inputs and outputs."""

    base, package = "litert", "ai-edge-litert"
    _last = ("", b"")

    def load(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Session:
        model = self._converted(module, inputs)
        with foreign(MeasurementError, "litert cannot load the network"), native_away():
            interpreter = self._interpreter(model_content=model)
            interpreter.allocate_tensors()
            return _LiteRtSession(interpreter, lite_feed(inputs))

    def _interpreter(self, **what: Any) -> Any:
        return Interpreter(**what, num_threads=self.threads)

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
            noise = noisy_inputs(inputs) if self.precision == "int8" else None
            self._last = (digest.hexdigest(), to_tflite(module, inputs, noise))
        return self._last[1]

    def load_file(
        self, path: str | Path, *, batch: int = 1, shapes: Mapping[str, Shape] | None = None
    ) -> Session:
        path = checked_file(path, ".tflite", "litert")
        with foreign(MeasurementError, f"litert cannot load {path}"), native_away():
            interpreter = self._interpreter(model_path=str(path))
            if self.precision == "int8" and (weights := _precision(interpreter)) != "int8":
                interpreter = self._interpreter(model_content=_quantised(path, weights))
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
    names = {"int8": "int8", "uint8": "int8", "float16": "f16"}
    return next((names[name] for name in names if name in kinds), "f32")


def _quantised(path: Path, weights: str) -> bytes:
    """A float file in int8, on noise, of its own shapes."""
    if weights != "f32":
        raise MeasurementError(f"{path} is a file of {weights}, of which int8 is not made")
    inputs = [_file_input(x) for x in Interpreter(model_path=str(path)).get_input_details()]
    shapes = {x.name: [max(1, size) for size in x.shape] for x in inputs}
    arrays = {x.name: stand_in(shapes[x.name], x.dtype) for x in inputs}
    return quantised_tflite(path.read_bytes(), noisy_feeds(arrays))


class _LiteRtSession(LiteRtNetwork, Session):
    def float_share(self) -> FloatShare:
        tensors = self.interpreter.get_tensor_details()
        floats = {t["index"] for t in tensors if np.issubdtype(t["dtype"], np.floating)}
        operators = Counter(
            node["op_name"]
            for node in self.interpreter._get_ops_details()
            if node["op_name"] not in CONVERSIONS and floats.intersection(node["outputs"])
        )
        return {name: (count, None) for name, count in operators.items()}

    def run(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        feed(self.interpreter, lite_feed(tuple(map(torch.from_numpy, arrays))))
        return self.outputs()

    def outputs(self) -> tuple[Array, ...]:
        self()
        return tuple(computed(self.interpreter))
