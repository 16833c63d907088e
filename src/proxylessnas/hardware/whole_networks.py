"""Latencies of whole networks now, beside the canary of a latency table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from proxylessnas.config import MeasureSettings
from proxylessnas.core.supernet import Supernet
from proxylessnas.hardware.costs import indices_of
from proxylessnas.hardware.examples import plain_call
from proxylessnas.hardware.measure import describe, opened
from proxylessnas.hardware.plan import (
    Measurable,
    on_device,
)
from proxylessnas.hardware.runtimes.base import Runtime
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.table_entries import Scalar
from proxylessnas.hardware.timing import Measurement, ProgressCallback, measure_sessions

CANARY = "canary"


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A network of a table that is measured again, to see by how much the device has changed.

    network: built again. then_ms: its latency in the table.
    """

    network: nn.Module
    then_ms: float


def canary_of(supernet: Supernet, table: LatencyTable, space: str) -> Canary | None:
    """The table's canary of one space, built again from this supernet; None where it has none.

    space: the supernet's at its input, `costs.space_id` or the `space` of `Costs`. One table may
    hold networks with the same choices at several input sizes.
    """
    entry = table.canary(space)
    if entry is None:
        return None
    network = supernet.derive(indices_of(supernet, entry.choices)).eval()
    return Canary(network=network, then_ms=entry.measurement.median_ms)


@dataclass(frozen=True, kw_only=True)
class NetworkResult:
    """A network's latency now.

    raw: as measured. corrected_ms: divided by the drift, which is what compares with the
    table. noise_pct: its standard error, of the network's and the canary's medians.
    file: of an exported file, what was measured of it, in words.
    """

    raw: Measurement
    corrected_ms: float
    noise_pct: float
    file: str = ""

    @property
    def raw_ms(self) -> float:
        return self.raw.median_ms

    @property
    def interval_ms(self) -> tuple[float, float]:
        """What a later measurement on a machine at rest should lie in.

        From the lower to the higher of the raw and the corrected figure, and 95 % of the noise: a
        canary that drifted tells by about how much, and not whether the network drifted alike.
        """
        noise = 1.96 * self.noise_pct / 100
        low, high = sorted((self.raw_ms, self.corrected_ms))
        return low * (1 - noise), high * (1 + noise)

    @property
    def value(self) -> tuple[float, float]:
        """Milliseconds, and their standard error as a share of them."""
        return self.corrected_ms, self.noise_pct / 100


@dataclass(frozen=True, kw_only=True)
class NetworkReport:
    """Networks measured together.

    drift: the canary's latency now over its latency in the table; 1 where there is none.
    """

    networks: Mapping[str, NetworkResult]
    drift: float
    canary: Measurement | None

    def __getitem__(self, name: str) -> NetworkResult:
        return self.networks[name]


def measure_networks(
    modules: Mapping[str, nn.Module | Path],
    runtime: Runtime,
    inputs: tuple[Any, ...],
    settings: MeasureSettings,
    *,
    canary: Canary | None = None,
    progress: ProgressCallback | None = None,
    seed: int,
    inputs_of: Mapping[str, tuple[Tensor, ...]] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    rounds_of: Mapping[str, int] | None = None,
) -> NetworkReport:
    """Modules, or exported files of the runtime's format, interleaved with the canary.

    inputs_of: of modules that take others than `inputs`, by their name. shapes: of the files'
    inputs by name, where the files leave dimensions open. rounds_of: visits, of modules that take
    others than `settings.network_rounds`.
    canary: see `canary_of`: by how much it is slower or faster now corrects the others.

    Raises:
        MeasurementError: one of them cannot run on the runtime; it is named.
    """
    measurables = {
        f"network {name}": _measurable(
            f"the network {name!r}", network, (inputs_of or {}).get(name, inputs), shapes
        )
        for name, network in modules.items()
    }
    if canary is not None:
        measurables[CANARY] = _measurable(
            "the whole network that the table was calibrated with", canary.network, inputs
        )
    with opened(runtime, measurables.items()) as sessions:
        visits = dict.fromkeys(sessions, settings.network_rounds)
        visits |= {f"network {name}": rounds for name, rounds in (rounds_of or {}).items()}
        measured = measure_sessions(sessions, visits, settings, seed=seed, progress=progress)
        files = {key: (session.file, session.precision) for key, session in sessions.items()}
    device = describe(runtime, inputs)
    for key, (_, precision) in files.items():
        own: dict[str, Scalar] = {"precision": precision} if precision else {}
        measured[key] = on_device({**device, **own}, measured[key])
    now = measured.get(CANARY)
    drift = now.median_ms / canary.then_ms if now and canary else 1.0
    canary_noise = now.noise_pct if now else 0.0
    results = {
        name: NetworkResult(
            raw=(raw := measured[f"network {name}"]),
            corrected_ms=raw.median_ms / drift,
            noise_pct=math.hypot(raw.noise_pct, canary_noise),
            file=files[f"network {name}"][0],
        )
        for name in modules
    }
    return NetworkReport(networks=results, drift=drift, canary=now)


def _measurable(
    label: str,
    network: nn.Module | Path,
    inputs: tuple[Any, ...],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Measurable:
    if isinstance(network, nn.Module):
        return Measurable(label, *plain_call(network, inputs))
    return Measurable(label, network, inputs, shapes or {})
