"""From a supernet to its latency table."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from proxylessnas.config import MeasureSettings
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import MeasurementError, UserError
from proxylessnas.export.quiet import one_thread
from proxylessnas.hardware.energy import COLUMN, measure_energy, meter_of
from proxylessnas.hardware.plan import (
    Measurable,
    MeasurementPlan,
    assemble,
    describe_inputs,
    known_samples,
    plan_measurement,
)
from proxylessnas.hardware.runtimes.base import Runtime, Session
from proxylessnas.hardware.table import ALIKE, LatencyTable, differing
from proxylessnas.hardware.table_entries import Column, NetworkValue, Scalar
from proxylessnas.hardware.timing import MEND, Measurement, ProgressCallback, measure_sessions
from proxylessnas.hardware.trace import Trace
from proxylessnas.io.process import usable_cpus
from proxylessnas.training.task import batch_size


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
                sessions[name].label = measurable.label
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
        remedy = f"; {MEND}" if isinstance(network, nn.Module) else ""
        raise MeasurementError(
            f"{measurable.label} cannot be measured on {runtime.name}: {error}{remedy}"
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
