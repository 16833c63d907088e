"""Runtimes by name: a plain dict, and the entry points `proxylessnas.runtimes`.

A name is `base` or `base:option,option`, for example `onnxruntime`, `torch:channels_last`
or `openvino:bf16`. A factory takes the options as strings and `threads=`, and imports its
library only then.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import entry_points
from types import ModuleType
from typing import cast

from proxylessnas.errors import MeasurementError, MissingDependency, did_you_mean
from proxylessnas.hardware.runtimes.base import Factory, Runtime, Session, flag_options

__all__ = ["DEFAULT", "RUNTIMES", "Factory", "Runtime", "Session", "make", "names", "split"]

DEFAULT = "onnxruntime"
GROUP = "proxylessnas.runtimes"  # of entry points, by which other packages add runtimes


def _onnxruntime(*options: str, threads: int = 1) -> Runtime:
    from proxylessnas.hardware.runtimes.onnxruntime import OnnxRuntime

    return OnnxRuntime(*options, threads=threads)


def _torch(*options: str, threads: int = 1) -> Runtime:
    from proxylessnas.hardware.runtimes.torch import TorchRuntime

    return TorchRuntime(*options, threads=threads)


def _litert(*options: str, threads: int = 1) -> Runtime:
    _need("ai_edge_litert", "ai-edge-litert", "litert")
    from proxylessnas.hardware.runtimes.litert import LiteRt

    return LiteRt(*options, threads=threads)


def _openvino(*options: str, threads: int = 1) -> Runtime:
    _need("openvino", "openvino", "openvino")
    # Importing OpenVINO would otherwise send usage data to its makers, from a forked process.
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
    from proxylessnas.hardware.runtimes.openvino import OpenVino

    return OpenVino(*options, threads=threads)


def _fake(*options: str, threads: int = 1) -> Runtime:
    from proxylessnas.hardware.runtimes.fake import FakeRuntime

    flag_options("fake", options, ())
    return FakeRuntime(threads=threads)


RUNTIMES: dict[str, Factory] = {
    "onnxruntime": _onnxruntime,
    "torch": _torch,
    "litert": _litert,
    "openvino": _openvino,
    "fake": _fake,
}


def names() -> tuple[str, ...]:
    """All runtimes that can be asked for, the installed plugins' too; fake is for tests."""
    plugins = {point.name for point in entry_points(group=GROUP)}
    return tuple(sorted({*RUNTIMES, *plugins} - {"fake"}))


def make(name: str, *, threads: int = 1) -> Runtime:
    """The runtime of this name.

    Raises:
        MeasurementError: no such runtime or option, or fewer than one thread.
        MissingDependency: its package is not installed.
    """
    base, _, rest = name.partition(":")
    options = tuple(option for option in rest.split(",") if option)
    if threads < 1:
        raise MeasurementError(f"threads is {threads}; it must be at least 1")
    factory = RUNTIMES.get(base)
    if factory is None:
        points = entry_points(group=GROUP, name=base)
        if not points:
            raise MeasurementError(f"there is no runtime {base!r}; {did_you_mean(base, names())}")
        factory = cast(Factory, next(iter(points)).load())
    return factory(*options, threads=threads)


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


def _need(module: str, package: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MissingDependency(package, extra, f"the runtime {extra}")
