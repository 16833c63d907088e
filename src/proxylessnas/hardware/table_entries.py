"""What a latency table has a line of: a whole network, a further cost, a measurement's samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt, MaxLen, MinLen

from proxylessnas.errors import MeasurementError
from proxylessnas.hardware.timing import Environment, Measurement
from proxylessnas.schema import checked

Role = Literal["fit", "validation", "canary"]
Scalar = str | int | float
MacCount = Annotated[int, Ge(0), Lt(1 << 62)]
Milliseconds = Annotated[float, Gt(0), Lt(1e12)]
Amount = Annotated[float, Gt(-1e30), Lt(1e30)]
Identity = tuple[str, tuple[tuple[str, str], ...]]  # a network's space and choices


@dataclass(frozen=True, kw_only=True)
class NetworkEntry:
    """A whole network that was measured in the same rounds as the blocks.

    choices: choice -> candidate. role: fit (the cost model is fitted to it),
    validation (it is predicted), canary (also fitted; measured again later to show drift).
    space: which supernet and input shape, `costs.space_id`. macs: multiply-adds.
    repeat: the same network, built and loaded again, measured in the same rounds.
    """

    choices: Mapping[str, str]
    role: Role
    space: str
    macs: int
    measurement: Measurement
    repeat: Measurement | None = None

    @property
    def identity(self) -> Identity:
        """Which network it is: a table has one entry of each."""
        return self.space, tuple(self.choices.items())


@checked(MeasurementError)
@dataclass(frozen=True, kw_only=True)
class NetworkValue:
    """A column's value of a whole network; choices and space as in `NetworkEntry`."""

    choices: Mapping[str, str]
    space: str
    value: Amount


@checked(MeasurementError)
@dataclass(frozen=True, kw_only=True)
class Column:
    """Another cost than the latency, such as energy in mJ, measured or computed by a user.

    entries: key (see `trace.Unit`) -> value. networks: whole networks, which tell the part that
    all networks share.
    """

    unit: str
    entries: Mapping[str, Amount]
    networks: tuple[NetworkValue, ...] = ()


# --- in the file ---


@checked(MeasurementError)
@dataclass(frozen=True, kw_only=True)
class Samples:
    """A measurement; environment: its place in the file's list."""

    samples_ms: Annotated[tuple[Milliseconds, ...], MinLen(1), MaxLen(100_000)]
    environment: Annotated[int, Ge(0)]

    def measurement(self, environments: Sequence[Environment]) -> Measurement:
        if self.environment >= len(environments):
            raise MeasurementError(
                f"a measurement is of environment {self.environment}, but there are "
                f"{len(environments)}"
            )
        return Measurement(samples_ms=self.samples_ms, environment=environments[self.environment])


@checked(MeasurementError)
@dataclass(frozen=True, kw_only=True)
class NetworkRow(Samples):
    role: Role
    space: str
    macs: MacCount
    choices: dict[str, str]
    repeat: Samples | None

    def entry(self, environments: Sequence[Environment]) -> NetworkEntry:
        return NetworkEntry(
            choices=self.choices,
            role=self.role,
            space=self.space,
            macs=self.macs,
            measurement=self.measurement(environments),
            repeat=self.repeat.measurement(environments) if self.repeat else None,
        )
