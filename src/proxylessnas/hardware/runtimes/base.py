"""The seam between measuring and whatever executes a network."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from proxylessnas.errors import MeasurementError
from proxylessnas.hardware.host import waited_s


class Session(ABC):
    """One loaded network with a preallocated input; calling it is one inference.

    A call returns when the outputs are there (a GPU is synchronised).
    """

    @abstractmethod
    def __call__(self) -> None: ...

    @abstractmethod
    def outputs(self) -> tuple[np.ndarray[Any, Any], ...]:
        """What one inference computes, to be compared with eager."""

    def timed(self, repeat: int) -> float:
        """Seconds that `repeat` inferences take, one after the other.

        Less the time that the calling thread could have run and another program had its
        core, where the kernel tells: on a shared machine that is most of the noise.
        """
        waited, start = waited_s(), time.perf_counter()
        for _ in range(repeat):
            self()
        elapsed = time.perf_counter() - start
        return max(elapsed - (waited_s() - waited), 0.0) or elapsed

    def close(self) -> None:  # noqa: B027 - most sessions have nothing to give back
        """Free what the session holds; it is not used afterwards."""


class Runtime(Protocol):
    """What executes networks on a device.

    name: as the user writes it, for example `onnxruntime` or `openvino:bf16`.
    """

    name: str

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


def stand_in(shape: list[Any], dtype: str, batch: int) -> np.ndarray[Any, Any]:
    """An input for an exported file: normal noise, or zeros where numbers are no measurements.

    Raises:
        MeasurementError: the file takes images in another batch, and no other.
    """
    fixed = shape[0] if len(shape) == 4 and isinstance(shape[0], int) and shape[0] > 0 else batch
    if fixed != batch:
        raise MeasurementError(
            f"the file takes a batch of {fixed}, not {batch}: ask for that batch, or export it anew"
        )
    full = [int(d) if isinstance(d, int) and d > 0 else batch for d in shape]
    if np.issubdtype(np.dtype(dtype), np.floating):
        return np.random.default_rng(0).standard_normal(full).astype(dtype)
    return np.zeros(full, dtype)


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
