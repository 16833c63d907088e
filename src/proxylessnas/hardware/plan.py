"""Which candidates and networks a latency table needs, and the table that measurements make.

A plan is plain data: the keys of the candidates, a few whole networks, and the number of
visits to each. A kit carries it to another machine and brings it back with samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from proxylessnas.config import MeasureSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import MeasurementError
from proxylessnas.export.quiet import one_thread
from proxylessnas.hardware.constant import check_zeros, living
from proxylessnas.hardware.costs import count_costs, indices_of
from proxylessnas.hardware.examples import plain_call
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.table_entries import Identity, MacCount, NetworkEntry, Role, Scalar
from proxylessnas.hardware.timing import Measurement
from proxylessnas.hardware.trace import Trace, trace
from proxylessnas.schema import checked
from proxylessnas.seeds import derive_seed
from proxylessnas.training.task import batch_size

REPEAT = " again"  # the suffix of a network that is built and loaded a second time


@checked(MeasurementError)
@dataclass(frozen=True, kw_only=True)
class PlannedNetwork:
    """name: `network 3`. choices: choice -> candidate. Others: see `NetworkEntry`."""

    name: str
    choices: Mapping[str, str]
    role: Role
    macs: MacCount


@dataclass(frozen=True, kw_only=True)
class MeasurementPlan:
    """space: see `costs.space_id`. visits: unit's key or network's name -> visits in all."""

    space: str
    units: tuple[str, ...]
    networks: tuple[PlannedNetwork, ...]
    visits: Mapping[str, int]

    @property
    def canary(self) -> str:
        return next(n.name for n in self.networks if n.role == "canary")

    def identity(self, network: PlannedNetwork) -> Identity:
        """See `NetworkEntry.identity`."""
        return self.space, tuple(network.choices.items())


@dataclass(frozen=True)
class Measurable:
    """A module with its inputs, or an exported file; label: its name in messages.

    shapes: of a file's inputs by name, see `Runtime.load_file`.
    """

    label: str
    network: nn.Module | Path
    inputs: tuple[Tensor, ...]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedModules:
    """A plan, and the supernet and trace that its keys and names are of."""

    plan: MeasurementPlan
    supernet: Supernet
    trace: Trace

    def measurable(self, key: str) -> Measurable:
        """The candidate of a key, or the whole network of a name."""
        if key in self.trace.units:
            unit = self.trace.units[key]
            return Measurable(f"the candidate {self._place(key)} ({unit.label})", *unit.plain())
        name = key.removesuffix(REPEAT)
        choices = next(n.choices for n in self.plan.networks if n.name == name)
        module = self.supernet.derive(indices_of(self.supernet, choices)).eval()
        words = ", ".join(f"{path}={candidate}" for path, candidate in [*choices.items()][:3])
        label = f"the whole network {words}{', ...' * (len(choices) > 3)}"
        return Measurable(label, *plain_call(module, self.trace.inputs))

    def _place(self, key: str) -> str:
        """The name of the first candidate of this key, and of its mixed operation."""
        operations = {path: mixed for mixed, path in self.supernet.paths.items()}
        return next(
            f"{name!r} of {call.path!r}"
            for calls in self.trace.calls
            for call in calls
            for name, own in zip(operations[call.path].candidates, call.keys, strict=True)
            if own == key
        )


def plan_measurement(
    supernet: Supernet,
    example_inputs: tuple[Any, ...],
    settings: MeasureSettings,
    *,
    seed: int,
    traced: Trace | None = None,
) -> PlannedModules:
    """Plan the supernet's table. traced: its trace on these inputs, where there is one already."""
    with one_thread():
        traced = traced or trace(supernet, example_inputs)
        plan = make_plan(supernet, traced, settings, seed=seed)
    return PlannedModules(plan=plan, supernet=supernet, trace=traced)


def make_plan(
    supernet: Supernet, traced: Trace, settings: MeasureSettings, *, seed: int
) -> MeasurementPlan:
    """Every distinct candidate, networks to fit the cost model to, and some to validate it.

    The canary is the middle network, by MACs, of those that are fitted. Validation networks are
    measured as two sessions, which tells the noise floor.
    """
    check_zeros(supernet, traced.inputs)
    costs, batch = count_costs(supernet, traced), batch_size(*traced.inputs)
    macs = partial(costs.cost_of, "macs")
    count = settings.networks + settings.validation
    chosen = choose_networks(costs, supernet.mask, count, seed=seed)
    chosen = living(supernet, traced.inputs, chosen)
    fitted = sorted(chosen[: settings.networks], key=macs)
    roles: list[Role] = ["fit" if i < len(fitted) else "validation" for i in range(len(chosen))]
    roles[chosen.index(fitted[len(fitted) // 2])] = "canary"
    networks = tuple(
        PlannedNetwork(
            name=f"network {i}",
            choices=dict(supernet.architecture(indices).choices),
            role=role,
            macs=round(batch * macs(indices)),
        )
        for i, (indices, role) in enumerate(zip(chosen, roles, strict=True))
    )
    visits = dict.fromkeys(traced.units, settings.rounds)
    for network in networks:
        visits[network.name] = settings.network_rounds
        if network.role == "validation":
            visits[network.name + REPEAT] = settings.network_rounds
    return MeasurementPlan(
        space=costs.space, units=tuple(traced.units), networks=networks, visits=visits
    )


def choose_networks(costs: Costs, mask: Tensor, count: int, *, seed: int) -> list[tuple[int, ...]]:
    """Different networks that span the space: the least MACs, the most, then random ones.

    Each random network has another bias towards cheap or costly candidates, so that depth
    and size vary over the whole range; uniform draws would all be near the middle.
    """
    chosen: dict[tuple[int, ...], None] = dict.fromkeys(costs.extremes("macs", mask))
    macs = costs.per_candidate[costs.index("macs")]
    generator = torch.Generator().manual_seed(derive_seed(seed, "networks to measure"))
    low = macs.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    high = macs.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    relative = (macs - low) / (high - low).clamp_min(1e-12)
    fruitless = 0
    while len(chosen) < count and fruitless < 200:  # a small space may not have so many
        before = len(chosen)
        bias = 6 * torch.rand((), generator=generator).item() - 3
        p = torch.softmax((bias * relative).masked_fill(~mask, -torch.inf), dim=1)
        chosen[tuple(torch.multinomial(p, 1, generator=generator)[:, 0].tolist())] = None
        fruitless = 0 if len(chosen) > before else fruitless + 1
    return list(chosen)[:count]


def assemble(
    plan: MeasurementPlan,
    device: Mapping[str, Scalar],
    measured: Mapping[str, Measurement],
    before: LatencyTable | None = None,
) -> LatencyTable:
    """The table of these measurements; what an earlier table had beside them stays."""
    before = before or LatencyTable(device=device, entries={})
    measured = {key: on_device(device, m) for key, m in measured.items()}
    entries = {key: measured[key] for key in plan.units if key in measured}
    networks = {n.identity: n for n in before.networks}
    for identity, n in networks.items():
        if n.role == "canary" and n.space == plan.space:  # the plan has a canary itself
            networks[identity] = replace(n, role="fit")
    for planned in plan.networks:
        entry = _entry(plan.space, planned, measured, networks.get(plan.identity(planned)))
        if entry is not None:
            networks[entry.identity] = entry
    table = LatencyTable(
        device=device,
        entries={**before.entries, **entries},
        networks=tuple(networks.values()),
        complete=False,
        columns=before.columns,
    )
    samples = known_samples(table, plan)
    complete = all(len(samples.get(key, ())) >= n for key, n in plan.visits.items())
    return replace(table, complete=complete)


def _entry(
    space: str,
    planned: PlannedNetwork,
    measured: Mapping[str, Measurement],
    before: NetworkEntry | None,
) -> NetworkEntry | None:
    """The table's entry of a planned network; None where it was never measured."""
    if planned.name not in measured:
        return None if before is None else replace(before, role=planned.role)
    repeat = measured.get(planned.name + REPEAT) or (before.repeat if before else None)
    return NetworkEntry(
        choices=planned.choices,
        role=planned.role,
        space=space,
        macs=planned.macs,
        measurement=measured[planned.name],
        repeat=repeat,
    )


def known_samples(
    table: LatencyTable | None, plan: MeasurementPlan
) -> dict[str, tuple[float, ...]]:
    """The samples a table has, in ms, by the plan's keys and names."""
    if table is None:
        return {}
    samples = {k: table.entries[k].samples_ms for k in plan.units if k in table.entries}
    networks = {n.identity: n for n in table.networks}
    for planned in plan.networks:
        entry = networks.get(plan.identity(planned))
        if entry is not None:
            samples[planned.name] = entry.measurement.samples_ms
            if entry.repeat is not None:
                samples[planned.name + REPEAT] = entry.repeat.samples_ms
    return samples


def describe_inputs(inputs: Sequence[Any]) -> dict[str, Scalar]:
    """batch: examples an inference. input_shapes: of all tensors, as `1x3x224x224, 1x10`."""
    tensors = [x for x in pytree.tree_leaves(tuple(inputs)) if isinstance(x, Tensor)]
    shapes = ["x".join(map(str, x.shape)) for x in tensors]
    return {"batch": batch_size(*inputs), "input_shapes": ", ".join(shapes)}


def on_device(device: Mapping[str, Scalar], m: Measurement) -> Measurement:
    """The measurement with the device beside the moment's environment."""
    return replace(m, environment={**device, **m.environment})
