"""ONNX Runtime: the default for a CPU; any execution provider that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from proxylessnas.errors import MeasurementError, did_you_mean, one_line
from proxylessnas.export.onnx import to_onnx
from proxylessnas.hardware.host import cpu_model
from proxylessnas.hardware.nodes import reordering_s
from proxylessnas.hardware.runtimes.base import (
    Session,
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
    """onnxruntime, or onnxruntime:PROVIDER such as `onnxruntime:cuda`.

    All graph optimisations; inputs and outputs are bound to memory allocated once.
    """

    def __init__(self, *options: str, threads: int = 1) -> None:
        if len(options) > 1:
            raise MeasurementError(
                f"onnxruntime takes one option, the execution provider, not {list(options)}"
            )
        self.provider = _provider(options[0] if options else "cpu")
        self.name, self.threads = full_name("onnxruntime", options), threads

    def describe(self) -> dict[str, str | int]:
        on_gpu = self.provider.startswith(("CUDA", "Tensorrt")) and torch.cuda.is_available()
        return {
            "runtime": self.name,
            "version": ort.__version__,
            "precision": "f32",
            "threads": self.threads,
            "device": torch.cuda.get_device_name() if on_gpu else cpu_model(),
        }

    def load(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Session:
        arrays = [x.detach().cpu().numpy() for x in inputs]
        content = to_onnx(module, inputs)
        inner = self.open(content)
        session = _OnnxSession(inner, arrays)
        if self.provider.startswith("CPU") and any(is_activation(a.shape) for a in arrays):
            session.reordering_s = reordering_s(
                lambda prefix: self.open(content, profile=prefix), feed_of(inner, arrays)
            )
        return session

    def load_file(self, path: str | Path, *, batch: int = 1) -> Session:
        session = self.open(file_bytes(path, ".onnx", "onnxruntime"), str(path))
        arrays = []
        for given in session.get_inputs():
            if given.type not in _DTYPES:
                raise MeasurementError(f"{path} has an input of type {given.type}")
            arrays.append(stand_in(given.shape, _DTYPES[given.type], batch))
        return _OnnxSession(session, arrays)

    def open(self, model: bytes, what: str = "the network", profile: str = "") -> Any:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        if self.threads > 1:
            # Spin within an inference, but not after it: other sessions are measured then.
            options.add_session_config_entry("session.intra_op.allow_spinning", "1")
            options.add_session_config_entry("session.force_spinning_stop", "1")
        providers = list(dict.fromkeys([self.provider, "CPUExecutionProvider"]))
        try:
            session = ort.InferenceSession(model, options, providers=providers)
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            raise MeasurementError(f"onnxruntime cannot load {what}: {one_line(error)}") from error
        # A provider that fails to start is left out with a log line, and the CPU would be timed.
        first = (session.get_providers() or ["nothing"])[0]
        if first != self.provider:
            raise MeasurementError(
                f"onnxruntime could not start {self.provider} and would run {what} on {first}: "
                "its drivers or libraries are missing, or of another version"
            )
        return session


def feed_of(session: Any, inputs: list[np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """By name; the exporter drops inputs that the graph never reads, from the names too."""
    return dict(zip([given.name for given in session.get_inputs()], inputs, strict=False))


class _OnnxSession(Session):
    """reordering_s: seconds of each inference that a network would not spend."""

    def __init__(self, session: Any, inputs: list[np.ndarray[Any, Any]]) -> None:
        self._session, self._binding = session, session.io_binding()
        self.reordering_s = 0.0
        feed = feed_of(session, inputs)
        for name, array in feed.items():
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
            self._binding.bind_ortvalue_input(name, value)
        for given, array in zip(session.get_outputs(), session.run(None, feed), strict=True):
            self._binding.bind_ortvalue_output(given.name, ort.OrtValue.ortvalue_from_numpy(array))

    def timed(self, repeat: int) -> float:
        whole = super().timed(repeat)
        return max(whole - repeat * self.reordering_s, 0.1 * whole)

    def __call__(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> tuple[np.ndarray[Any, Any], ...]:
        self()
        return tuple(value.numpy().copy() for value in self._binding.get_outputs())

    def close(self) -> None:
        self._session = self._binding = None


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
