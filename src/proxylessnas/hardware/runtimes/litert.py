"""LiteRT (TensorFlow Lite) with XNNPACK: what Android phones run, here on this CPU."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import Tensor, nn

from proxylessnas.errors import MeasurementError, one_line
from proxylessnas.export.quiet import stderr_away
from proxylessnas.export.tflite import channels_last, to_tflite
from proxylessnas.hardware.fingerprint import fingerprint
from proxylessnas.hardware.host import cpu_model
from proxylessnas.hardware.networks import LiteRtNetwork
from proxylessnas.hardware.runtimes.base import (
    Session,
    description,
    file_bytes,
    flag_options,
    stand_in,
)


class LiteRt:
    """litert: float32 on the CPU by XNNPACK."""

    def __init__(self, *options: str, threads: int = 1) -> None:
        flag_options("litert", options, ())
        self.name, self.threads = "litert", threads
        self._last = ("", b"")

    def describe(self) -> dict[str, str | int]:
        return description(self, version=version("ai-edge-litert"), device=cpu_model())

    def load(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Session:
        interpreter = self._open(self._converted(module, inputs))
        return _LiteRtSession(interpreter, [x.cpu().numpy() for x in channels_last(inputs)])

    def _converted(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
        """The same network twice in a row, as a validation network is, is converted once.

        A conversion takes seconds; a network loaded twice differs in memory all the same.
        """
        digest = hashlib.blake2b(fingerprint(module).encode())
        for tensor in (*inputs, *module.state_dict().values()):
            digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        for tensor in module.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        if digest.hexdigest() != self._last[0]:
            self._last = (digest.hexdigest(), to_tflite(module, inputs))
        return self._last[1]

    def load_file(self, path: str | Path, *, batch: int = 1) -> Session:
        interpreter = self._open(file_bytes(path, ".tflite", "litert"), str(path), batch)
        details = sorted(interpreter.get_input_details(), key=lambda tensor: str(tensor["name"]))
        arrays = [
            stand_in([int(d) for d in tensor["shape"]], np.dtype(tensor["dtype"]).name, batch)
            for tensor in details
        ]
        return _LiteRtSession(interpreter, arrays)

    def _open(self, model: bytes, subject: str = "the network", batch: int | None = None) -> Any:
        try:
            with stderr_away():
                interpreter = Interpreter(model_content=model, num_threads=self.threads)
                for tensor in interpreter.get_input_details() if batch else ():
                    signature = tensor["shape_signature"]
                    if -1 in signature:
                        shape = [batch if size == -1 else int(size) for size in signature]
                        interpreter.resize_tensor_input(tensor["index"], shape)
                interpreter.allocate_tensors()
            return interpreter
        except Exception as error:  # ValueError, RuntimeError: whichever LiteRT takes
            raise MeasurementError(f"litert cannot load {subject}: {one_line(error)}") from error


class _LiteRtSession(LiteRtNetwork, Session):
    def outputs(self) -> tuple[np.ndarray[Any, Any], ...]:
        self()
        details = self.interpreter.get_output_details()
        arrays = [self.interpreter.get_tensor(tensor["index"]) for tensor in details]
        return tuple(a.transpose(0, 3, 1, 2) if a.ndim == 4 else a for a in arrays)

    def close(self) -> None:
        self.interpreter = None
