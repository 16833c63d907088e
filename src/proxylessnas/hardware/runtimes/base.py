"""The seam between measuring and whatever executes a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from proxylessnas.errors import MeasurementError
from proxylessnas.hardware import networks
from proxylessnas.hardware.rounds import TimedNetwork


class Session(TimedNetwork, ABC):
    """A loaded network of a runtime; calling it is one inference, see `TimedNetwork`."""

    @abstractmethod
    def outputs(self) -> tuple[np.ndarray[Any, Any], ...]:
        """What one inference computes, to be compared with eager."""

    def close(self) -> None:
        """Free what the session holds; it is not used afterwards."""


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

    def load_file(self, path: str | Path, *, batch: int = 1) -> Session:
        """An exported file of the runtime's format; dimensions it leaves open become `batch`.

        Raises:
            MeasurementError: not a file of its format, or not one that it can run.
        """
        ...


Factory = Callable[..., Runtime]


def description(
    runtime: Runtime, *, version: str, device: str, precision: str = "f32"
) -> dict[str, str | int]:
    """A runtime's `describe()`."""
    words = {"runtime": runtime.name, "version": version, "precision": precision}
    return {**words, "threads": runtime.threads, "device": device}


def flag_options(name: str, options: tuple[str, ...], allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Check the options after the colon of a runtime's name.

    Raises:
        MeasurementError: one is unknown.
    """
    for option in options:
        if option not in allowed:
            raise MeasurementError(
                f"the runtime {name} has no option {option!r}; allowed: {', '.join(allowed)}"
            )
    return options


def is_activation(shape: Sequence[int]) -> bool:
    """Whether this is something between layers of an image network, and no image itself."""
    return len(shape) == 4 and shape[1] > 4


def full_name(base: str, options: tuple[str, ...]) -> str:
    return ":".join([base, ",".join(options)]) if options else base


def stand_in(shape: Sequence[Any], dtype: str, batch: int) -> np.ndarray[Any, Any]:
    """An input for an exported file, whose open dimensions become `batch`.

    Raises:
        MeasurementError: the file takes images in another batch, and no other.
    """
    fixed = shape[0] if len(shape) == 4 and isinstance(shape[0], int) and shape[0] > 0 else batch
    if fixed != batch:
        raise MeasurementError(
            f"the file takes a batch of {fixed}, not {batch}: ask for that batch, or export it anew"
        )
    full = [d if isinstance(d, int) and d > 0 else batch for d in shape]
    return networks.stand_in(full, dtype)


def file_bytes(path: str | Path, suffix: str, runtime: str) -> bytes:
    """The content of an exported file.

    Raises:
        MeasurementError: it is missing or of another kind.
    """
    path = Path(path)
    if path.suffix != suffix:
        raise MeasurementError(f"{runtime} measures {suffix} files, not {path}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise MeasurementError(f"cannot read {path}: {error.strerror}") from None
