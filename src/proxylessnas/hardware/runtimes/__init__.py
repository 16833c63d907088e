"""Runtimes by name: a table, and the entry points `proxylessnas.runtimes`.

A name is `base` or `base:option,option`, for example `onnxruntime`, `torch:channels_last`
or `openvino:bf16`. A factory takes the options as strings and `threads=`, and imports its
library only then. A factory that takes `precision=` too can compute in others than float32.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import cast

from proxylessnas.config import PRECISIONS
from proxylessnas.errors import MeasurementError, MissingDependency, did_you_mean
from proxylessnas.hardware.runtimes.base import Factory, Runtime, Session

__all__ = ["DEFAULT", "RUNTIMES", "Factory", "Runtime", "Session", "make", "names", "split"]

DEFAULT = "onnxruntime"
GROUP = "proxylessnas.runtimes"  # of entry points, by which other packages add runtimes


@dataclass(frozen=True)
class _BuiltIn:
    """A runtime of this package, imported when it is asked for.

    needs: the module of an optional package, which the extra of the runtime's name installs.
    """

    module: str
    factory: str
    needs: str = ""

    def load(self, name: str) -> Factory:
        if self.needs and importlib.util.find_spec(self.needs) is None:
            raise MissingDependency(self.needs.replace("_", "-"), name, f"the runtime {name}")
        module = importlib.import_module(f"{__name__}.{self.module}")
        return cast(Factory, getattr(module, self.factory))


RUNTIMES = {
    "onnxruntime": _BuiltIn("onnxruntime", "OnnxRuntime"),
    "torch": _BuiltIn("torch", "TorchRuntime"),
    "litert": _BuiltIn("litert", "LiteRt", needs="ai_edge_litert"),
    "openvino": _BuiltIn("openvino", "OpenVino", needs="openvino"),
    "executorch": _BuiltIn("executorch", "ExecuTorch", needs="executorch"),
    "tensorrt": _BuiltIn("tensorrt", "TensorRt", needs="tensorrt"),
    "fake": _BuiltIn("fake", "make_fake"),
}


def names() -> tuple[str, ...]:
    """All runtimes that can be asked for, the installed plugins' too; fake is for tests."""
    plugins = {point.name for point in entry_points(group=GROUP)}
    return tuple(sorted({*RUNTIMES, *plugins} - {"fake"}))


def make(name: str, *, threads: int = 1, precision: str | None = None) -> Runtime:
    """The runtime of this name.

    precision: `f32`, `fp16`, `bf16` or `int8`; None is what the name says, or float32.

    Raises:
        MeasurementError: no such runtime or option, fewer than one thread, or a precision that it
            does not compute in.
        MissingDependency: its package is not installed.
    """
    base, _, rest = name.partition(":")
    options = tuple(option for option in rest.split(",") if option)
    if threads < 1:
        raise MeasurementError(f"threads is {threads}; it must be at least 1")
    factory = _factory(base)
    if precision is None:
        return factory(*options, threads=threads)
    if precision not in PRECISIONS:
        raise MeasurementError(
            f"there is no precision {precision!r}; {did_you_mean(precision, PRECISIONS)}"
        )
    if "precision" in inspect.signature(factory).parameters:
        return factory(*options, threads=threads, precision=precision)
    if precision != "f32":
        raise MeasurementError(
            f"the runtime {base} computes in f32 alone, not in {precision}: onnxruntime, "
            "openvino, litert, executorch and tensorrt have others"
        )
    return factory(*options, threads=threads)


def _factory(base: str) -> Factory:
    if base in RUNTIMES:
        return RUNTIMES[base].load(base)
    points = entry_points(group=GROUP, name=base)
    if not points:
        raise MeasurementError(f"there is no runtime {base!r}; {did_you_mean(base, names())}")
    return cast(Factory, next(iter(points)).load())


def split(text: str) -> list[str]:
    """The runtimes of `onnxruntime,torch:compile,channels_last,litert`: three here.

    A word that is no runtime's name is a further option of the runtime before it.
    """
    runtimes: list[str] = []
    for word in filter(None, map(str.strip, text.split(","))):
        named = word.partition(":")[0] in {*names(), "fake"}
        if runtimes and ":" in runtimes[-1] and not named:
            runtimes[-1] += f",{word}"
        else:
            runtimes.append(word)
    return list(dict.fromkeys(runtimes))
