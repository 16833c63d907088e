"""The seam between measuring and whatever executes a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from proxylessnas.errors import MeasurementError
from proxylessnas.hardware.host import cpu_model
from proxylessnas.hardware.rounds import TimedNetwork

Shape = tuple[int, ...]
Array = np.ndarray[Any, Any]
FloatShare = Mapping[str, tuple[int, float | None]]  # operator -> nodes, share of the time if known


class Session(TimedNetwork, ABC):
    """A loaded network of a runtime; calling it is one inference, see `TimedNetwork`.

    label: what messages call it. file: of a file, what was measured of it, in words. precision: of
    a file's weights, where that is known.
    """

    label = "a network"
    file = ""
    precision = ""

    def float_share(self) -> FloatShare | None:
        """What computes in float after all; None where the runtime does not tell."""
        return None

    def run(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """What it computes of other inputs of the module, in its order and of the same shapes.

        Raises:
            MeasurementError: the runtime only measures.
        """
        raise MeasurementError("this runtime measures networks, and computes nothing with them")

    @abstractmethod
    def outputs(self) -> tuple[Array, ...]:
        """What one inference computes, to be compared with eager."""

    def close(self) -> None:
        """Free what the session holds; it is not used afterwards."""
        self.__dict__.clear()


class Runtime(Protocol):
    """What executes networks on a device.

    name: as the user writes it, for example `onnxruntime` or `openvino:bf16`.
    threads: that it computes with.
    """

    name: str
    threads: int

    def describe(self) -> dict[str, str | int]:
        """runtime, version, precision, threads, device: what a latency belongs to."""
        ...

    def load(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Session:
        """A module, fed with inputs of these shapes.

        Raises:
            MeasurementError, ExportError: the runtime cannot run it.
        """
        ...

    def load_file(
        self, path: str | Path, *, batch: int = 1, shapes: Mapping[str, Shape] | None = None
    ) -> Session:
        """An exported file of the runtime's format; see `files.full_shapes`.

        shapes: of inputs by name, whose dimensions the file leaves open.

        Raises:
            MeasurementError: not a file of its format, or not one that it can run.
        """
        ...


Factory = Callable[..., Runtime]


class OfPackage:
    """A runtime that takes no options, and is a package.

    base: its name. package: whose version is its own. precisions: that it computes in.

    Raises:
        MeasurementError: it does not compute in the precision.
    """

    base, package = "", ""
    precisions: tuple[str, ...] = ("f32", "int8")

    def __init__(self, *options: str, threads: int = 1, precision: str = "f32") -> None:
        self.name, self.threads = full_name(self.base, options, ()), threads
        self.precision, allowed = precision, " and ".join(self.precisions)
        if precision not in self.precisions:
            raise MeasurementError(
                f"the runtime {self.base} computes in {allowed}, not in {precision}"
            )

    def describe(self) -> dict[str, str | int]:
        version, device = metadata.version(self.package), self.device_name()
        return description(self, version=version, device=device, precision=self.precision)

    def device_name(self) -> str:
        return cpu_model()


def description(
    runtime: Runtime | OfPackage, *, version: str, device: str, precision: str = "f32"
) -> dict[str, str | int]:
    """A runtime's `describe()`."""
    words = {"runtime": runtime.name, "version": version, "precision": precision}
    return {**words, "threads": runtime.threads, "device": device}


def full_name(base: str, options: tuple[str, ...], allowed: Collection[str]) -> str:
    """A runtime's name with its options after the colon.

    Raises:
        MeasurementError: one is unknown.
    """
    for option in options:
        if option not in allowed:
            raise MeasurementError(
                f"the runtime {base} has no option {option!r}; allowed: {', '.join(allowed)}"
            )
    return ":".join([base, ",".join(options)]) if options else base


def is_block(inputs: Iterable[Tensor]) -> bool:
    """Whether a module takes what stands between layers of an image network, and no image."""
    return any(x.dim() == 4 and x.shape[1] > 4 for x in inputs)
