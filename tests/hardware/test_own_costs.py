"""Costs that a user adds: columns of the latency table, and functions of a module."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from proxylessnas.config import MeasureSettings
from proxylessnas.core.supernet import MixedOp, Residual, Supernet, Zero
from proxylessnas.errors import ConfigError, LimitError, MissingEntry
from proxylessnas.hardware.costs import (
    CostFunction,
    all_costs,
    column_costs,
    counted_costs,
    function_costs,
    space_id,
)
from proxylessnas.hardware.count import count_macs, count_parameters
from proxylessnas.hardware.limiting import absolute_limits, largest_costs
from proxylessnas.hardware.measure import measure_table
from proxylessnas.hardware.plan import assemble, make_plan
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.table_entries import Column, NetworkValue
from proxylessnas.hardware.trace import Trace, trace

SETTINGS = MeasureSettings(rounds=1, network_rounds=1, networks=4, validation=0, runs=1, warmup=0)
INPUTS = (torch.zeros(2, 4),)
NETWORKS = list(itertools.product(range(2), range(3), range(2)))


class Small(nn.Module):
    """A choice called twice, one that can be left out, and a last layer that all share."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = MixedOp([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))])
        self.block = Residual(MixedOp([nn.Linear(4, 4), nn.Linear(4, 4, bias=False), Zero()]))
        self.narrow = MixedOp([nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 2))])
        self.last = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.narrow(self.block(self.twice(self.twice(x)))))
        return out


@pytest.fixture
def traced() -> tuple[Supernet, Trace]:
    supernet = Supernet(Small())
    return supernet, trace(supernet, INPUTS)


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- functions ---


def calls(module: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Calls of linear layers in one forward pass, three each."""
    count = 0

    def note(*_: Any) -> None:
        nonlocal count
        count += 3

    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    module(*inputs)
    for handle in handles:
        handle.remove()
    return count


@pytest.mark.parametrize("function", [calls, count_macs])
def test_a_function_that_adds_up_is_exact_of_every_network(
    traced: tuple[Supernet, Trace], function: CostFunction
) -> None:
    supernet, found = traced
    cost = function_costs(supernet, found, "own", function)
    for indices in NETWORKS:
        assert cost.of(indices) == [function(supernet.derive(indices).eval(), INPUTS)]
    assert cost.space == space_id(supernet, found)


def test_a_function_that_does_not_add_up_is_told(traced: tuple[Supernet, Trace]) -> None:
    """Parameters of a choice that is called twice would count twice."""
    with pytest.warns(UserWarning, match="the cost flash is not a sum over candidates"):
        function_costs(*traced, "flash", lambda module, _: count_parameters(module))


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda module, inputs: inputs[0].nothing, "fails on the candidate 'Linear.*Attribute"),
        (lambda module, inputs: math.nan, "is nan, not a finite number"),
        (lambda module, inputs: "much", "is 'much', not a finite number"),
        (lambda module, inputs: True, "is True, not a finite number"),
        (lambda module, inputs: 1.0 if len(list(module.modules())) < 5 else None, "whole network"),
    ],
)
def test_a_function_that_is_no_cost_is_refused_by_name(
    traced: tuple[Supernet, Trace], function: CostFunction, problem: str
) -> None:
    with pytest.raises(ConfigError, match=f"the cost own.*{problem}"):
        function_costs(*traced, "own", function)


def test_a_function_may_return_a_tensor_of_one_number(traced: tuple[Supernet, Trace]) -> None:
    cost = function_costs(*traced, "own", lambda *given: torch.tensor(calls(*given)))  # type: ignore
    assert cost.of((0, 0, 0)) == [calls(traced[0].derive((0, 0, 0)), INPUTS)]


@pytest.mark.parametrize("name", ["macs", "latency", "peak_memory", "a b", "", "1st", "a=b"])
def test_names_of_own_costs(traced: tuple[Supernet, Trace], name: str) -> None:
    with pytest.raises(ConfigError, match=r"already|make a name"):
        all_costs(*traced, counted=counted_costs(*traced, {name: calls}))


# --- columns ---


def with_column(supernet: Supernet, found: Trace, **changes: Any) -> LatencyTable:
    """A table whose column energy_mj is 10 for every call of a linear layer."""
    table = measure_table(supernet, FakeRuntime(), INPUTS, SETTINGS, seed=0)
    entries = {k: 10 / 3 * calls(*unit.plain()) for k, unit in found.units.items()}
    networks = [
        NetworkValue(
            choices=supernet.architecture(n).choices,
            space=space_id(supernet, found),
            value=10 / 3 * calls(supernet.derive(n), INPUTS),
        )
        for n in NETWORKS[:2]
    ]
    column = Column(unit="mJ", entries=entries, networks=tuple(networks))
    return replace(table, columns={"energy_mj": replace(column, **changes)})


def test_a_column_and_its_whole_networks_give_every_network(
    traced: tuple[Supernet, Trace],
) -> None:
    supernet, found = traced
    cost = column_costs(supernet, found, with_column(supernet, found), "energy_mj")
    assert (cost.names, cost.units) == (("energy_mj",), ("mJ",))
    for indices in NETWORKS:
        exact = 10 / 3 * calls(supernet.derive(indices), INPUTS)
        assert cost.of(indices) == [pytest.approx(exact)]


def test_without_whole_networks_the_shared_layers_cost_nothing_and_that_is_said(
    traced: tuple[Supernet, Trace],
) -> None:
    supernet, found = traced
    elsewhere = NetworkValue(choices={}, space="another", value=1.0)
    for networks in ((), (elsewhere,)):
        table = with_column(supernet, found, networks=networks)
        with pytest.warns(UserWarning, match="no energy_mj of a whole network of this space"):
            cost = column_costs(supernet, found, table, "energy_mj")
        assert cost.fixed.tolist() == [0.0]


def test_a_missing_entry_of_a_column_names_the_key_and_the_nearest(
    traced: tuple[Supernet, Trace],
) -> None:
    supernet, found = traced
    table = with_column(supernet, found)
    gone, *rest = table.columns["energy_mj"].entries
    kept = {k: table.columns["energy_mj"].entries[k] for k in rest}
    with pytest.raises(MissingEntry) as caught:
        column_costs(supernet, found, with_column(supernet, found, entries=kept), "energy_mj")
    message = str(caught.value)
    assert f"no energy_mj for {gone!r}" in message and "; nearest: '" in message
    assert "columns.energy_mj.entries" in message


def test_a_table_that_is_measured_on_keeps_its_columns(traced: tuple[Supernet, Trace]) -> None:
    supernet, found = traced
    table = with_column(supernet, found)
    plan = make_plan(supernet, found, SETTINGS, seed=0)
    assert assemble(plan, table.device, {}, table).columns == table.columns


# --- all of them, and their limits ---


@pytest.mark.usefixtures("quiet")
def test_all_costs_stand_side_by_side(traced: tuple[Supernet, Trace]) -> None:
    supernet, found = traced
    table = with_column(supernet, found)
    costs = all_costs(
        supernet, found, table=table, counted=counted_costs(supernet, found, {"calls": calls})
    )
    assert costs.names == ("latency", "macs", "parameters", "calls", "energy_mj")
    assert costs.units == ("ms", "", "", "", "mJ")
    network = supernet.derive((1, 2, 0))
    assert costs.of((1, 2, 0))[1:] == [
        count_macs(network, INPUTS) / 2,  # of one example
        count_parameters(network),
        calls(network, INPUTS),
        pytest.approx(10 / 3 * calls(network, INPUTS)),
    ]
    assert all_costs(supernet, found).names == ("macs", "parameters")


@pytest.mark.usefixtures("quiet")
def test_limits_in_units_and_in_shares_of_the_largest_network(
    traced: tuple[Supernet, Trace],
) -> None:
    supernet, found = traced
    table = with_column(supernet, found)
    costs = all_costs(
        supernet, found, table=table, counted=counted_costs(supernet, found, {"calls": calls})
    )
    largest = largest_costs(supernet, costs, table)
    entry = next(n for n in table.networks if n.macs == max(m.macs for m in table.networks))
    assert largest["latency"] == entry.measurement.median_ms
    limits = {"latency": "0.5x", "energy_mj": "20 mJ", "calls": "0.5x", "macs": "1k"}
    assert absolute_limits({**limits, "peak_memory": 1}, costs, largest) == {
        "latency": 0.5 * largest["latency"],
        "energy_mj": 20.0,
        "calls": 0.5 * largest["calls"],
        "macs": 1000.0,
    }
    with pytest.raises(ConfigError, match="the energy_mj '5W' is not understood: write 5mJ"):
        absolute_limits({"energy_mj": "5W"}, costs, largest)
    with pytest.raises(ConfigError, match="no cost 'power' to limit; there are latency, macs"):
        absolute_limits({"power": 1}, costs, largest)
    counts = all_costs(supernet, found)
    with pytest.raises(LimitError, match="the latency was not measured"):
        absolute_limits({"latency": 1}, counts, largest_costs(supernet, counts))
