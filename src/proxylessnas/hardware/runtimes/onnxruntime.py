"""ONNX Runtime: the default for a CPU; any execution provider that is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor, nn

from proxylessnas.errors import MeasurementError, did_you_mean, foreign
from proxylessnas.export.onnx import to_onnx
from proxylessnas.export.onnx_session import CPU, feed_of, named_inputs, open_session
from proxylessnas.export.precision import in_precision, noisy_feeds
from proxylessnas.export.quiet import denormal_mode
from proxylessnas.hardware.host import cpu_model, needs_reduced_range
from proxylessnas.hardware.networks import OnnxNetwork, float_share, stand_in
from proxylessnas.hardware.runtimes.base import (
    Array,
    FloatShare,
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
from proxylessnas.io.native import native_away

_DTYPES = {
    "float": "float32",
    "double": "float64",
    **{name: name for name in ("float16", "bool")},
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


# Providers by name, and where they are to be had; all but the CPU's untested on their devices.
_INSTEAD = "comes with the package {} in the place of onnxruntime"
PACKAGES = {
    "cuda": _INSTEAD.format("onnxruntime-gpu"),
    "tensorrt": _INSTEAD.format("onnxruntime-gpu"),
    "qnn": _INSTEAD.format("onnxruntime-qnn"),
    "openvino": _INSTEAD.format("onnxruntime-openvino"),
    "dml": _INSTEAD.format("onnxruntime-directml"),
    "coreml": "comes with onnxruntime on macOS",
    "xnnpack": "comes with a build of onnxruntime with --use_xnnpack",
}


class OnnxRuntime:
    """onnxruntime, or onnxruntime:PROVIDER such as `onnxruntime:cuda`; all graph optimisations.

    precision: f32, int8 (networks are quantised on noise, which tells latencies alone), or fp16
    where the provider is no CPU.
    """

    def __init__(self, *options: str, threads: int = 1, precision: str = "f32") -> None:
        if len(options) > 1:
            raise MeasurementError(
                f"onnxruntime takes one option, the execution provider, not {list(options)}"
            )
        self.provider = _provider(options[0] if options else "cpu")
        self.name, self.threads = full_name("onnxruntime", options, options), threads
        self.precision = _precision(precision, self.provider)

    def describe(self) -> dict[str, str | int]:
        on_gpu = self.provider.startswith(("CUDA", "Tensorrt")) and torch.cuda.is_available()
        device = torch.cuda.get_device_name() if on_gpu else cpu_model()
        return description(self, version=ort.__version__, device=device, precision=self.precision)

    def load(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Session:
        arrays = named_inputs([x.detach().cpu().numpy() for x in inputs])
        block = self.provider.startswith("CPU") and is_block(inputs)
        feeds, reduced = noisy_feeds(arrays), needs_reduced_range()
        content = in_precision(to_onnx(module, inputs), self.precision, feeds, reduce_range=reduced)
        opened = partial(self.open, content)
        with foreign(MeasurementError, "onnxruntime cannot run it", 800), native_away():
            return _OnnxSession(opened, arrays, block=block, integers=self.precision == "int8")

    def load_file(
        self, path: str | Path, *, batch: int = 1, shapes: Mapping[str, Shape] | None = None
    ) -> Session:
        path = checked_file(path, ".onnx", "onnxruntime")
        opened = self.open(str(path), subject=str(path))
        inputs = [_file_input(node, str(path)) for node in opened.get_inputs()]
        full = full_shapes(inputs, batch, shapes or {}, str(path))
        arrays = {x.name: stand_in(full[x.name], x.dtype) for x in inputs}
        content, weights = converted_file(path, self.precision, arrays)

        def opening(profile: str) -> Any:
            if content is None and not profile:
                return opened
            return self.open(content or str(path), profile, subject=str(path))

        with foreign(MeasurementError, f"onnxruntime cannot run {path}", 800), native_away():
            session = _OnnxSession(opening, arrays)
        session.precision = weights
        session.file = in_words(inputs, full, weights)
        return session

    def open(self, model: bytes | str, profile: str = "", *, subject: str = "the network") -> Any:
        """An `InferenceSession` on this provider; profile: see `open_session`."""
        with foreign(MeasurementError, f"onnxruntime cannot load {subject}", 800), denormal_mode():
            session = open_session(
                model, threads=self.threads, provider=self.provider, profile=profile
            )
        # A provider that fails to start is left out with a log line, and the CPU would be timed.
        first = (session.get_providers() or ["nothing"])[0]
        if first != self.provider:
            raise MeasurementError(
                f"onnxruntime could not start {self.provider} and would run {subject} on {first}: "
                "its drivers or libraries are missing, or of another version"
            )
        return session


class _OnnxSession(OnnxNetwork, Session):
    def __init__(
        self,
        opened: Callable[[str], Any],
        arrays: Mapping[str, Array],
        *,
        block: bool = False,
        integers: bool = False,
    ) -> None:
        super().__init__(opened, arrays, block=block, integers=integers)
        self.opened, self.arrays = opened, arrays

    def float_share(self) -> FloatShare:
        with foreign(MeasurementError, "onnxruntime gives no profile of it"), native_away():
            return float_share(self.opened, self.arrays)

    def run(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        return tuple(self.session.run(None, feed_of(self.session, named_inputs(arrays))))

    def outputs(self) -> tuple[Array, ...]:
        self()
        return tuple(value.numpy().copy() for value in self.binding.get_outputs())


def _file_input(node: Any, file: str) -> FileInput:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    if kind not in _DTYPES:
        raise MeasurementError(
            f"{file} has an input {node.name!r} of the type {node.type}, which cannot be made up; "
            f"allowed: {', '.join(_DTYPES)}"
        )
    return FileInput(name=node.name, shape=tuple(node.shape), dtype=_DTYPES[kind])


def _precision(name: str, provider: str) -> str:
    """The precision, if ONNX Runtime has kernels of it on the provider."""
    if name == "bf16" or (name == "fp16" and provider == CPU):
        raise MeasurementError(
            f"onnxruntime has no {name} kernels on {provider.removesuffix('ExecutionProvider')} "
            "and would compute in f32 between casts; allowed there: f32, int8"
            + ("" if provider == CPU else ", fp16")
        )
    return name


def _provider(option: str) -> str:
    """`cuda` -> CUDAExecutionProvider, of those that are installed."""
    name = option.lower()
    installed: dict[str, str] = {
        full.removesuffix("ExecutionProvider").lower(): full
        for full in ort.get_available_providers()
    }
    if name in installed:
        return installed[name]
    if name in PACKAGES:
        raise MeasurementError(
            f"this onnxruntime {ort.__version__} is built without the execution provider {name}, "
            f"which {PACKAGES[name]}; it has: {', '.join(installed)}"
        )
    raise MeasurementError(
        f"this onnxruntime has no execution provider {option!r}; {did_you_mean(name, installed)}"
    )
