"""From a supernet to its latency table, and from networks to their latencies now."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.config import MeasureSettings
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import MeasurementError, UserError
from proxylessnas.export.quiet import one_thread
from proxylessnas.hardware.costs import indices_of
from proxylessnas.hardware.energy import COLUMN, measure_energy, meter_of
from proxylessnas.hardware.examples import plain_call
from proxylessnas.hardware.plan import (
    Measurable,
    MeasurementPlan,
    assemble,
    describe_inputs,
    known_samples,
    on_device,
    plan_measurement,
)
from proxylessnas.hardware.runtimes.base import Runtime, Session
from proxylessnas.hardware.table import ALIKE, LatencyTable, differing
from proxylessnas.hardware.table_entries import Column, NetworkValue, Scalar
from proxylessnas.hardware.timing import Measurement, ProgressCallback, measure_sessions
from proxylessnas.hardware.trace import Trace
from proxylessnas.io.process import usable_cpus
from proxylessnas.training.task import batch_size

CANARY = "canary"


def measure_table(
    supernet: Supernet,
    runtime: Runtime,
    example_inputs: tuple[Any, ...],
    settings: MeasureSettings,
    *,
    seed: int,
    progress: ProgressCallback | None = None,
    path: Path | None = None,
    force: bool = False,
    traced: Trace | None = None,
) -> LatencyTable:
    """Every distinct candidate and some whole networks, measured in the same rounds.

    progress: called with (done, in all), first for the sessions that are loaded, then for the
    visits. path: where the table is kept; samples that an earlier call left there are not
    measured again, and new ones are saved there every few seconds. force: a table of another
    device or version there is replaced. traced: see `plan_measurement`.

    Raises:
        MeasurementError: a candidate cannot run on the runtime (it is named), or `path` holds
            a table of another device, or of another version of the runtime.
    """
    planned = plan_measurement(supernet, example_inputs, settings, seed=seed, traced=traced)
    plan, device = planned.plan, describe(runtime, example_inputs)
    before = earlier_table(path, device, force=force)
    known = known_samples(before, plan)
    missing = [key for key, n in plan.visits.items() if len(known.get(key, ())) < n]
    metered = settings.energy is not None and COLUMN not in (before.columns if before else {})
    meter = meter_of(settings.energy) if metered and settings.energy else None
    if before is not None and not missing and meter is None:
        return replace(before, complete=True)
    keys = list(dict.fromkeys([*(plan.visits if meter else missing), plan.canary]))

    def save(measured: Mapping[str, Measurement]) -> None:
        if path is not None:
            assemble(plan, device, measured, before).save(path)

    measurables = ((key, planned.measurable(key)) for key in keys)
    with opened(runtime, measurables, count=len(keys), progress=progress) as sessions:
        measured = measure_sessions(
            sessions,
            {key: plan.visits[key] for key in keys},
            settings,
            seed=seed,
            canary=plan.canary,
            earlier={key: known[key] for key in keys if key in known},
            progress=progress,
            save=save,
        )
        energies = measure_energy(sessions, meter, progress=progress) if meter else {}
    return _with_energy(assemble(plan, device, measured, before), plan, energies)


def _with_energy(
    table: LatencyTable, plan: MeasurementPlan, energies: Mapping[str, float]
) -> LatencyTable:
    """The table with a column of the energy of every candidate and network, in mJ."""
    if not energies:
        return table
    networks = tuple(
        NetworkValue(choices=n.choices, space=plan.space, value=energies[n.name])
        for n in plan.networks
    )
    entries = {key: energies[key] for key in plan.units}
    column = Column(unit="mJ", entries=entries, networks=networks)
    return replace(table, columns={**table.columns, COLUMN: column})


@contextmanager
def opened(
    runtime: Runtime,
    measurables: Iterable[tuple[str, Measurable]],
    *,
    count: int = 0,
    progress: ProgressCallback | None = None,
) -> Iterator[dict[str, Session]]:
    """A session of each, by name, closed in the end; one module after the other is made.

    progress: called with (sessions loaded, count).

    Raises:
        MeasurementError: the runtime cannot run one of them; it is named.
    """
    sessions: dict[str, Session] = {}
    with ExitStack() as stack:
        for name, measurable in measurables:
            with one_thread():
                sessions[name] = _load(runtime, measurable)
            stack.callback(sessions[name].close)
            if progress is not None:
                progress(len(sessions), count)
        yield sessions


def _load(runtime: Runtime, measurable: Measurable) -> Session:
    network, inputs = measurable.network, measurable.inputs
    try:
        if isinstance(network, nn.Module):
            return runtime.load(network, inputs)
        options = {"shapes": measurable.shapes} if measurable.shapes else {}
        return runtime.load_file(network, batch=batch_size(*inputs), **options)
    except UserError as error:
        raise MeasurementError(
            f"{measurable.label} cannot be measured on {runtime.name}: {error}"
        ) from error


def describe(runtime: Runtime, example_inputs: tuple[Any, ...]) -> dict[str, Scalar]:
    """The device a table belongs to: see `LatencyTable.device`."""
    return {
        **runtime.describe(),
        **describe_inputs(example_inputs),
        "cores": usable_cpus(),
        "system": f"{platform.system()} {platform.release()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def earlier_table(
    path: Path | None, device: Mapping[str, Scalar], *, force: bool = False
) -> LatencyTable | None:
    """The table that is at `path` already; None where there is none to go on with.

    force: a table of another device is as good as none.

    Raises:
        MeasurementError: the file is no table, or a table of another device or of another version
            of the runtime, whose samples would be mixed.
    """
    if path is None or not path.exists():
        return None
    table = LatencyTable.load(path)
    for name, recorded, current in differing(table.device, device, ALIKE):
        if force:
            return None
        raise MeasurementError(
            f"{path} holds a table with {name} {recorded!r}, not {current!r}: choose another "
            "file, remove this one, or --force to replace it"
        )
    return table


# --- whole networks, later ---


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
        measurables[CANARY] = _measurable("the table's canary", canary.network, inputs)
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
