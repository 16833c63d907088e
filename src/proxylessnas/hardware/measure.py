"""From a supernet to its latency table, and from networks to their latencies now."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.config import MeasureSettings
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import MeasurementError, UserError
from proxylessnas.export.quiet import one_thread
from proxylessnas.hardware.cost import indices_of
from proxylessnas.hardware.host import cores
from proxylessnas.hardware.plan import (
    REPEAT,
    Plan,
    assemble,
    choose_networks,
    known_samples,
    make_plan,
    on_device,
)
from proxylessnas.hardware.runtimes.base import Runtime, Session
from proxylessnas.hardware.table import ALIKE, LatencyTable, Scalar
from proxylessnas.hardware.timing import Measurement, Progress, measure_all
from proxylessnas.hardware.trace import Trace, trace

__all__ = [
    "Canary",
    "Measurement",
    "NetworkReport",
    "NetworkResult",
    "canary_of",
    "choose_networks",
    "measure_all",
    "measure_networks",
    "measure_table",
]


def measure_table(
    supernet: Supernet,
    runtime: Runtime,
    example_inputs: tuple[Any, ...],
    settings: MeasureSettings,
    *,
    seed: int,
    progress: Progress | None = None,
    path: Path | None = None,
    force: bool = False,
) -> LatencyTable:
    """Every distinct candidate and some whole networks, measured in the same rounds.

    progress: called with (done, in all), first for the sessions that are loaded, then for the
    visits. path: where the table is kept; what an earlier call left there is not measured
    again, and what is measured is saved there every few seconds. force: a table of another
    device or version there is replaced.

    Raises:
        MeasurementError: a candidate cannot run on the runtime (it is named), or `path` holds
            a table of another device, or of another version of the runtime.
    """
    with one_thread():
        found = trace(supernet, example_inputs)
        plan = make_plan(supernet, found, settings, seed=seed)
    device = describe(runtime, example_inputs)
    before = earlier(path, device, force=force)
    known = known_samples(before, plan)
    missing = [k for k, n in plan.visits.items() if len(known.get(k, ())) < n]
    if before is not None and not missing:
        return before if before.complete else replace(before, complete=True)
    opened = missing if plan.canary in missing else [*missing, plan.canary]

    def save(measured: Mapping[str, Measurement]) -> None:
        if path is not None:
            assemble(plan, device, measured, before).save(path)

    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for key in opened:
            with one_thread():
                sessions[key] = load(key, plan, supernet, found, runtime)
            stack.callback(sessions[key].close)
            if progress is not None:
                progress(len(sessions), len(opened))
        measured = measure_all(
            sessions,
            rounds={k: plan.visits[k] for k in sessions},
            runs=settings.runs,
            warmup=settings.warmup,
            seed=seed,
            progress=progress,
            canary=plan.canary,
            threads=settings.threads,
            known={k: known.get(k, ()) for k in sessions},
            save=save,
        )
    return assemble(plan, device, measured, before)


def module_of(
    key: str, plan: Plan, supernet: Supernet, found: Trace
) -> tuple[str, nn.Module, tuple[Tensor, ...]]:
    """What a plan's key or network name stands for: in words, and what is loaded."""
    if key in found.units:
        return f"the candidate {found.units[key].label!r}", *found.units[key].plain()
    network = next(n for n in plan.networks if n.name == key.removesuffix(REPEAT))
    module = supernet.derive(indices_of(supernet, network.choices)).eval()
    return "a whole network", module, found.inputs


def load(key: str, plan: Plan, supernet: Supernet, found: Trace, runtime: Runtime) -> Session:
    """A session of what the key stands for.

    Raises:
        MeasurementError: the runtime cannot run it; it is named.
    """
    what, module, inputs = module_of(key, plan, supernet, found)
    return _named(what, runtime, lambda: runtime.load(module, inputs))


# --- whole networks, later ---


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A network of a table that is measured again, to see by how much the device has changed.

    network: built again. then_ms: its latency in the table.
    """

    network: nn.Module
    then_ms: float


@dataclass(frozen=True, kw_only=True)
class NetworkResult:
    """One network's latency now.

    raw: as measured. corrected_ms: divided by the drift, which is what compares with the
    table. noise_pct: standard error of it, of the network's and the canary's medians.
    """

    raw: Measurement
    corrected_ms: float
    noise_pct: float

    @property
    def raw_ms(self) -> float:
        return self.raw.median_ms

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
    inputs: tuple[Tensor, ...],
    settings: MeasureSettings,
    *,
    canary: Canary | None = None,
    progress: Progress | None = None,
    seed: int,
) -> NetworkReport:
    """Modules, or exported files of the runtime's format, interleaved with the canary.

    canary: see `canary_of`: by how much it is slower or faster now corrects the others.

    Raises:
        MeasurementError: one of them cannot run on the runtime; it is named.
    """
    extra = "canary"
    while extra in modules:
        extra += "_"
    wanted: dict[str, nn.Module | Path] = dict(modules)
    if canary is not None:
        wanted[extra] = canary.network
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for name, network in wanted.items():
            with one_thread():
                load = _loader(runtime, network, inputs)
                sessions[name] = _named(f"the network {name!r}", runtime, load)
            stack.callback(sessions[name].close)
        measured = measure_all(
            sessions,
            rounds=settings.network_rounds,
            runs=settings.runs,
            warmup=settings.warmup,
            seed=seed,
            progress=progress,
            threads=settings.threads,
        )
    device = describe(runtime, inputs)
    measured = {key: on_device(device, m) for key, m in measured.items()}
    now = measured.pop(extra, None)
    drift, canary_noise = 1.0, 0.0
    if now is not None and canary is not None:
        drift = now.median_ms / canary.then_ms
        canary_noise = now.noise_pct
    results = {
        key: NetworkResult(
            raw=m,
            corrected_ms=m.median_ms / drift,
            noise_pct=(m.noise_pct**2 + canary_noise**2) ** 0.5,
        )
        for key, m in measured.items()
    }
    return NetworkReport(networks=results, drift=drift, canary=now)


def canary_of(supernet: Supernet, table: LatencyTable, space: str) -> Canary | None:
    """The table's canary of one space, built again from this supernet; None where it has none.

    space: the supernet's at its input, `cost.space_id` or the `space` of a `Cost`. One table may
    hold networks with the same choices at several input sizes.
    """
    entry = table.canary(space)
    if entry is None:
        return None
    network = supernet.derive(indices_of(supernet, entry.choices)).eval()
    return Canary(network=network, then_ms=entry.measurement.median_ms)


def describe(runtime: Runtime, example_inputs: tuple[Any, ...]) -> dict[str, Scalar]:
    """The device a table belongs to: see `LatencyTable.device`."""
    tensors = [x for x in example_inputs if isinstance(x, Tensor)]
    return {
        **runtime.describe(),
        "batch": int(tensors[0].shape[0]) if tensors and tensors[0].dim() else 1,
        "input_shapes": ", ".join("x".join(map(str, x.shape)) for x in tensors),
        "cores": cores(),
        "system": f"{platform.system()} {platform.release()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def earlier(
    path: Path | None, device: Mapping[str, Scalar], *, force: bool = False
) -> LatencyTable | None:
    """The table that is at `path` already.

    force: a table of another device is as good as none.

    Raises:
        MeasurementError: it is no table, or one of another device or of another version of the
            runtime, whose samples would be mixed.
    """
    if path is None or not path.exists():
        return None
    table = LatencyTable.load(path)
    for name in ALIKE:
        there, here = table.device.get(name), device.get(name)
        if there != here:
            if force:
                return None
            raise MeasurementError(
                f"{path} holds a table with {name} {there!r}, not {here!r}: choose another file, "
                "or --force to replace it"
            )
    return table


def _loader(
    runtime: Runtime, network: nn.Module | Path, inputs: tuple[Tensor, ...]
) -> Callable[[], Session]:
    if isinstance(network, nn.Module):
        return lambda: runtime.load(network, inputs)
    return lambda: runtime.load_file(network, batch=int(inputs[0].shape[0]))


def _named(what: str, runtime: Runtime, load: Callable[[], Session]) -> Session:
    try:
        return load()
    except UserError as error:
        raise MeasurementError(f"{what} cannot be measured on {runtime.name}: {error}") from error
