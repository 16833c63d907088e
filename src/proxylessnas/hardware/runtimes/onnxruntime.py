"""ONNX Runtime: the default for a CPU; any execution provider that is installed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from proxylessnas.errors import MeasurementError, did_you_mean, one_line
from proxylessnas.export.onnx import to_onnx
from proxylessnas.export.onnx_session import open_session
from proxylessnas.export.quiet import denormal_mode
from proxylessnas.hardware.host import cpu_model
from proxylessnas.hardware.networks import OnnxNetwork
from proxylessnas.hardware.runtimes.base import (
    Session,
    description,
    file_bytes,
    full_name,
    is_activation,
    stand_in,
)

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class OnnxRuntime:
    """onnxruntime, or onnxruntime:PROVIDER such as `onnxruntime:cuda`; all graph optimisations."""

    def __init__(self, *options: str, threads: int = 1) -> None:
        if len(options) > 1:
            raise MeasurementError(
                f"onnxruntime takes one option, the execution provider, not {list(options)}"
            )
        self.provider = _provider(options[0] if options else "cpu")
        self.name, self.threads = full_name("onnxruntime", options), threads

    def describe(self) -> dict[str, str | int]:
        on_gpu = self.provider.startswith(("CUDA", "Tensorrt")) and torch.cuda.is_available()
        device = torch.cuda.get_device_name() if on_gpu else cpu_model()
        return description(self, version=ort.__version__, device=device)

    def load(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Session:
        arrays = [x.detach().cpu().numpy() for x in inputs]
        block = self.provider.startswith("CPU") and any(is_activation(a.shape) for a in arrays)
        return _OnnxSession(partial(self.open, to_onnx(module, inputs)), arrays, block=block)

    def load_file(self, path: str | Path, *, batch: int = 1) -> Session:
        session = self.open(file_bytes(path, ".onnx", "onnxruntime"), subject=str(path))
        arrays = []
        for node in session.get_inputs():
            if node.type not in _DTYPES:
                raise MeasurementError(f"{path} has an input of type {node.type}")
            arrays.append(stand_in(node.shape, _DTYPES[node.type], batch))
        return _OnnxSession(lambda profile: session, arrays, block=False)

    def open(self, content: bytes, profile: str = "", *, subject: str = "the network") -> Any:
        """An `InferenceSession` on this provider; profile: see `open_session`."""
        try:
            with denormal_mode():
                session = open_session(
                    content, threads=self.threads, provider=self.provider, profile=profile
                )
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            raise MeasurementError(
                f"onnxruntime cannot load {subject}: {one_line(error)}"
            ) from error
        # A provider that fails to start is left out with a log line, and the CPU would be timed.
        first = (session.get_providers() or ["nothing"])[0]
        if first != self.provider:
            raise MeasurementError(
                f"onnxruntime could not start {self.provider} and would run {subject} on {first}: "
                "its drivers or libraries are missing, or of another version"
            )
        return session


class _OnnxSession(OnnxNetwork, Session):
    def outputs(self) -> tuple[np.ndarray[Any, Any], ...]:
        self()
        return tuple(value.numpy().copy() for value in self.binding.get_outputs())

    def close(self) -> None:
        self.session = self.binding = None


def _provider(option: str) -> str:
    """`cuda` -> CUDAExecutionProvider, of those that are installed."""
    installed: dict[str, str] = {
        name.removesuffix("ExecutionProvider").lower(): name
        for name in ort.get_available_providers()
    }
    if option.lower() not in installed:
        raise MeasurementError(
            f"this onnxruntime has no execution provider {option!r}; "
            f"{did_you_mean(option.lower(), installed)}"
        )
    return installed[option.lower()]
