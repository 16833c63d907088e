"""From a supernet to its latency table, and from networks to their latencies now."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import MeasureSettings
from ..errors import MeasurementError, UserError
from ..seeds import derive_seed
from ..supernet import Supernet
from .cost import Cost, indices_of, macs_cost, space_id
from .machine import cores
from .protocol import Measurement, Progress, measure_all
from .runtimes.base import Runtime, Session
from .table import LatencyTable, NetworkEntry, Role
from .trace import Trace, trace

__all__ = [
    "Measurement",
    "NetworkReport",
    "NetworkResult",
    "canary_of",
    "choose_networks",
    "measure_all",
    "measure_networks",
    "measure_table",
]

REPEAT = " again"  # the suffix of a session that is a network built a second time


def measure_table(
    supernet: Supernet,
    runtime: Runtime,
    example_inputs: tuple[Any, ...],
    settings: MeasureSettings,
    *,
    seed: int,
    progress: Progress | None = None,
    path: Path | None = None,
) -> LatencyTable:
    """Every distinct candidate and some whole networks, measured in the same rounds.

    progress: called with (steps done, steps in all); loading a session is a step, and so is
    a visit. path: where the table is kept; what an earlier call left there is not measured
    again, and what is measured is saved there every few seconds.

    Raises:
        MeasurementError: a candidate cannot run on the runtime (it is named), or `path` holds
            a table of another device.
    """
    plan = _plan(supernet, example_inputs, settings, seed)
    device = _device(runtime, example_inputs)
    before = _earlier(path, device)
    known = _known(before, plan)
    missing = {k for k, n in plan.visits.items() if len(known.get(k, ())) < n}
    if before is not None and not missing:
        return before if before.complete else replace(before, complete=True)
    loads = len(missing)
    total = loads + sum(max(0, plan.visits[k] - len(known.get(k, ()))) for k in missing)

    def table_of(measured: Mapping[str, Measurement]) -> LatencyTable:
        return _assemble(plan, device, measured, before)

    def save(measured: Mapping[str, Measurement]) -> None:
        if path is not None:
            table_of(measured).save(path)

    def visited(done: int, _: int) -> None:
        if progress is not None:
            progress(loads + done, total)

    with ExitStack() as opened:
        sessions: dict[str, Session] = {}
        for key, load in plan.loaders(runtime).items():
            if key in missing or key == plan.canary:
                sessions[key] = load()
                opened.callback(sessions[key].close)
                if progress is not None:
                    progress(min(len(sessions), loads), total)
        measured = measure_all(
            sessions,
            rounds={k: plan.visits[k] for k in sessions},
            runs=settings.runs,
            warmup=settings.warmup,
            seed=seed,
            progress=visited,
            canary=plan.canary,
            threads=settings.threads,
            known={k: known.get(k, ()) for k in sessions},
            save=save,
        )
    table = table_of(measured)
    if path is not None:
        table.save(path)
    return table


# --- whole networks, later ---


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
    table: LatencyTable | None = None,
    canary: nn.Module | None = None,
    progress: Progress | None = None,
    seed: int,
) -> NetworkReport:
    """Modules, or exported files of the runtime's format, interleaved with the canary.

    table, canary: the latency table, and its canary built again (`canary_of`): by how much it
    is slower or faster now corrects the others.

    Raises:
        MeasurementError: one of them cannot run on the runtime; it is named.
    """
    with ExitStack() as opened:
        sessions: dict[str, Session] = {}

        def add(key: str, load: Callable[[], Session]) -> None:
            sessions[key] = _named(f"the network {key!r}", runtime, load)
            opened.callback(sessions[key].close)

        for name, module in modules.items():
            add(name, _loader(runtime, module, inputs))
        reference = table.canary if table is not None else None
        name = "canary"
        while name in modules:
            name += "_"
        if canary is not None and reference is not None:
            add(name, _loader(runtime, canary, inputs))
        measured = measure_all(
            sessions,
            rounds=settings.network_rounds,
            runs=settings.runs,
            warmup=settings.warmup,
            seed=seed,
            progress=progress,
            threads=settings.threads,
        )
    measured = {key: _on(_device(runtime, inputs), m) for key, m in measured.items()}
    now = measured.pop(name, None)
    drift, canary_noise = 1.0, 0.0
    if now is not None and reference is not None:
        drift = now.median_ms / reference.measurement.median_ms
        canary_noise = now.noise_pct
    return NetworkReport(
        networks={
            key: NetworkResult(
                raw=m,
                corrected_ms=m.median_ms / drift,
                noise_pct=(m.noise_pct**2 + canary_noise**2) ** 0.5,
            )
            for key, m in measured.items()
        },
        drift=drift,
        canary=now,
    )


def canary_of(supernet: Supernet, table: LatencyTable) -> nn.Module | None:
    """The table's canary network, built again from this supernet; None where it has none."""
    if table.canary is None or set(table.canary.choices) != set(supernet.names):
        return None
    return supernet.derive(indices_of(supernet, table.canary.choices)).eval()


# --- which networks ---


def choose_networks(cost: Cost, mask: Tensor, count: int, *, seed: int) -> list[tuple[int, ...]]:
    """Different networks that span the space: the cheapest, the dearest, then random ones.

    Each random one has a bias of its own towards cheap or costly candidates, so that depth
    and size vary over the whole range; uniform draws would all be near the middle.
    """
    chosen: dict[tuple[int, ...], None] = dict.fromkeys(cost.extremes(mask))
    generator = torch.Generator().manual_seed(derive_seed(seed, "networks to measure"))
    low = cost.per_candidate.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    high = cost.per_candidate.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    relative = (cost.per_candidate - low) / (high - low).clamp_min(1e-12)
    for _ in range(100 * count):
        if len(chosen) >= count:
            break
        bias = 6 * torch.rand((), generator=generator).item() - 3
        p = torch.softmax((bias * relative).masked_fill(~mask, -torch.inf), dim=1)
        chosen[tuple(torch.multinomial(p, 1, generator=generator)[:, 0].tolist())] = None
    return list(chosen)[:count]


# --- the plan of a table ---


@dataclass(frozen=True, kw_only=True, eq=False)
class _Network:
    name: str
    indices: tuple[int, ...]
    role: Role
    macs: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """What is measured: units by their key, networks as `network N` (and ` again`)."""

    supernet: Supernet
    trace: Trace
    space: str
    networks: Sequence[_Network]
    visits: Mapping[str, int]

    @property
    def canary(self) -> str:
        return next(n.name for n in self.networks if n.role == "canary")

    def loaders(self, runtime: Runtime) -> dict[str, Callable[[], Session]]:
        """Key -> what builds and loads its session."""

        def unit(key: str) -> Callable[[], Session]:
            found = self.trace.units[key]
            what = f"the candidate {found.label!r}"
            return lambda: _named(what, runtime, lambda: runtime.load(*found.plain()))

        def network(name: str) -> Callable[[], Session]:
            indices = next(n.indices for n in self.networks if name in (n.name, n.name + REPEAT))

            def load() -> Session:
                module = self.supernet.derive(indices).eval()
                return runtime.load(module, self.trace.inputs)

            return lambda: _named("a whole network", runtime, load)

        return {key: unit(key) if key in self.trace.units else network(key) for key in self.visits}


def _plan(
    supernet: Supernet, example_inputs: tuple[Any, ...], settings: MeasureSettings, seed: int
) -> _Plan:
    found = trace(supernet, example_inputs)
    macs = macs_cost(supernet, found)
    count = settings.networks + settings.validation
    chosen = choose_networks(macs, supernet.mask, count, seed=seed)
    fitted = chosen[: settings.networks]
    middle = sorted(fitted, key=macs.of)[len(fitted) // 2]
    networks = []
    for i, indices in enumerate(chosen):
        role: Role = "canary" if indices == middle else "fit" if i < len(fitted) else "validation"
        networks.append(
            _Network(name=f"network {i}", indices=indices, role=role, macs=round(macs.of(indices)))
        )
    visits = dict.fromkeys(found.units, settings.rounds)
    for network in networks:
        visits[network.name] = settings.network_rounds
        if network.role == "validation":
            visits[network.name + REPEAT] = settings.network_rounds
    return _Plan(
        supernet=supernet,
        trace=found,
        space=space_id(supernet, found),
        networks=networks,
        visits=visits,
    )


def _assemble(
    plan: _Plan,
    device: Mapping[str, str | int | float],
    measured: Mapping[str, Measurement],
    before: LatencyTable | None,
) -> LatencyTable:
    """The table of what there is; what an earlier table had beside it stays."""
    measured = {key: _on(device, m) for key, m in measured.items()}
    entries = dict(before.entries) if before else {}
    entries |= {key: measured[key] for key in plan.trace.units if key in measured}
    networks = {_identity(n.space, n.choices): n for n in (before.networks if before else ())}
    networks = {
        k: replace(n, role="fit") if n.role == "canary" and n.space == plan.space else n
        for k, n in networks.items()
    }
    for n in plan.networks:
        choices = plan.supernet.architecture(n.indices).choices
        known = networks.get(_identity(plan.space, choices))
        if n.name in measured:
            repeat = measured.get(n.name + REPEAT)
            entry = NetworkEntry(
                choices=dict(choices),
                role=n.role,
                space=plan.space,
                macs=n.macs,
                measurement=measured[n.name],
                repeat=repeat or (known.repeat if known else None),
            )
            networks[_identity(plan.space, choices)] = entry
        elif known is not None:
            networks[_identity(plan.space, choices)] = replace(known, role=n.role)
    visits = {k: len(v) for k, v in _known(before, plan).items()}
    visits |= {k: len(m.samples_ms) for k, m in measured.items()}
    return LatencyTable(
        device=device,
        entries=entries,
        networks=tuple(networks.values()),
        complete=all(visits.get(k, 0) >= n for k, n in plan.visits.items()),
    )


def _on(device: Mapping[str, str | int | float], m: Measurement) -> Measurement:
    """The measurement with the device beside the moment's environment."""
    return replace(m, environment={**device, **m.environment})


def _identity(space: str, choices: Mapping[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    return space, tuple(choices.items())


def _earlier(path: Path | None, device: Mapping[str, str | int | float]) -> LatencyTable | None:
    """The table that is at `path` already.

    Raises:
        MeasurementError: it is none, or one of another device.
    """
    if path is None or not path.exists():
        return None
    table = LatencyTable.load(path)
    for name in ("runtime", "precision", "threads", "device", "batch"):
        if table.device.get(name) != device[name]:
            raise MeasurementError(
                f"{path} holds a table with {name} {table.device.get(name)!r}, not "
                f"{device[name]!r}: choose another file, or remove it"
            )
    return table


def _known(before: LatencyTable | None, plan: _Plan) -> dict[str, tuple[float, ...]]:
    """Samples of an earlier table, by the plan's keys."""
    if before is None:
        return {}
    known = {k: m.samples_ms for k, m in before.entries.items() if k in plan.visits}
    networks = {_identity(n.space, n.choices): n for n in before.networks}
    for n in plan.networks:
        choices = plan.supernet.architecture(n.indices).choices
        entry = networks.get(_identity(plan.space, choices))
        if entry is not None:
            known[n.name] = entry.measurement.samples_ms
            if entry.repeat is not None:
                known[n.name + REPEAT] = entry.repeat.samples_ms
    return known


def _device(runtime: Runtime, example_inputs: tuple[Any, ...]) -> dict[str, str | int | float]:
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


def _loader(
    runtime: Runtime, network: nn.Module | Path, inputs: tuple[Tensor, ...]
) -> Callable[[], Session]:
    if isinstance(network, nn.Module):
        return lambda: runtime.load(network.eval(), inputs)
    return lambda: runtime.load_file(network, batch=int(inputs[0].shape[0]))


def _named(what: str, runtime: Runtime, load: Callable[[], Session]) -> Session:
    try:
        return load()
    except UserError as error:
        raise MeasurementError(f"{what} cannot be measured on {runtime.name}: {error}") from error
