"""The space of NAS-Bench-201: its codes, which of them compute the same, and what runs."""

from __future__ import annotations

import csv
import itertools
import math
import os
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture
from proxylessnas.config import DeriveSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.supernet import Supernet, Zero
from proxylessnas.errors import ArchitectureError, ConfigError
from proxylessnas.hardware.costs import count_costs, indices_of
from proxylessnas.hardware.trace import trace
from proxylessnas.selection.propose import propose
from proxylessnas.spaces import build, build_supernet
from proxylessnas.spaces.cell import CHOICES, EDGES, Cell, code, contributing, from_code, function

DATA = os.environ.get("PROXYLESSNAS_DATA")
SMALL = {"cells": 1, "widths": [4, 8], "input_shape": [3, 8, 8]}
CODES = ["".join(digits) for digits in itertools.product("01234", repeat=6)]
DIGITS = ["333133", "301230", "041000", "003123", "130402", "211111", "022100", "010002", "123401"]


@pytest.fixture
def small() -> Supernet:
    torch.manual_seed(0)
    return build_supernet("cell", SMALL)


def chosen(supernet: Supernet, code: str) -> tuple[int, ...]:
    return indices_of(supernet, from_code(code))


# --- codes ---


def test_codes_and_choices_are_one_to_one() -> None:
    assert all(code(from_code(c)) == c for c in CODES)
    assert from_code("012340")["edge_0_3"] == "nor_conv_3x3"


@pytest.mark.parametrize("wrong", ["", "01234", "0123456", "012345", "00000a"])
def test_other_codes_are_refused(wrong: str) -> None:
    with pytest.raises(ArchitectureError, match="six digits from 0 to 4"):
        from_code(wrong)


def published(code: str) -> str:
    """The table's rule for what it counts as one network, as its paper has it."""
    nodes = ["0", "", "", ""]
    for node in (1, 2, 3):
        terms = []
        for (i, j), digit in zip(EDGES, code, strict=True):
            if j == node:
                name = {"2": "nor_conv_1x1", "3": "nor_conv_3x3", "4": "avg_pool_3x3"}.get(digit)
                zero = digit == "0" or nodes[i] == "#"
                terms.append("#" if zero else nodes[i] if name is None else f"({nodes[i]})@{name}")
        nodes[node] = "+".join(sorted(terms))
    return nodes[-1]


def values(code: str) -> frozenset[float]:
    """The output for x = 1 of a cell whose convolutions are arbitrary functions of their own.

    Which of these is on which edge does not make another cell, so all ways are tried.
    """
    runs = contributing([digit != "0" for digit in code])
    convolutions = [e for e, digit in enumerate(code) if runs[e] and digit in "23"]

    def value(weight: dict[int, float]) -> float:
        nodes = [1.0, 0.0, 0.0, 0.0]
        for e, ((i, j), digit) in enumerate(zip(EDGES, code, strict=True)):
            if runs[e]:
                convolution = math.sin(weight.get(e, 0.0) + int(digit) * nodes[i])
                nodes[j] += {"1": nodes[i], "4": 0.7 * nodes[i]}.get(digit, convolution)
        return round(nodes[-1], 9)

    orders = itertools.permutations(range(1, len(convolutions) + 1))
    return frozenset(value(dict(zip(convolutions, order, strict=True))) for order in orders)


def test_5044_functions_are_distinct_and_each_is_of_the_codes_that_compute_the_same() -> None:
    computed, named = defaultdict(set), defaultdict(set)
    for c in CODES:
        computed[values(c)].add(function(c))
        named[function(c)].add(values(c))
    assert len(named) == len(computed) == 5044
    assert all(len(group) == 1 for group in (*computed.values(), *named.values()))


def test_the_published_rule_takes_a_convolution_that_is_used_twice_for_two(
    small: Supernet,
) -> None:
    shared, apart = "301112", "103132"
    assert published(shared) == published(apart)
    assert function(shared) != function(apart)
    one, two = (build(architecture(small, c)) for c in (shared, apart))
    assert sum(p.numel() for p in one.parameters()) < sum(p.numel() for p in two.parameters())


@pytest.mark.skipif(not DATA, reason="PROXYLESSNAS_DATA is not set")
def test_the_table_numbers_networks_by_the_published_rule() -> None:
    with (Path(DATA or "") / "nas-bench-201" / "cifar10.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["code"] for r in rows] == CODES
    numbers, rules = defaultdict(set), defaultdict(set)
    for row in rows:
        numbers[published(row["code"])].add(row["function"])
        rules[row["function"]].add(published(row["code"]))
    assert len(rules) == len(numbers) == 6466
    assert all(len(group) == 1 for group in (*numbers.values(), *rules.values()))


# --- what runs ---


def everything(cell: Cell, x: Tensor) -> Tensor:
    """The cell as it is defined: every edge runs, and zeros are added like others."""
    nodes = [x, *[torch.zeros_like(x)] * 3]
    for (i, j), edge in zip(EDGES, cell.edges.values(), strict=True):
        nodes[j] = nodes[j] + edge(nodes[i])
    return nodes[-1]


@pytest.mark.parametrize("digits", DIGITS)
def test_leaving_out_what_contributes_nothing_changes_nothing(small: Supernet, digits: str) -> None:
    """In evaluation a fresh convolution of zeros with its normalisation is zero."""
    cells = [m for m in small.model.modules() if isinstance(m, Cell)]
    x = torch.randn(2, 4, 8, 8)
    small.model.eval()
    with small.active(chosen(small, digits)), torch.no_grad():
        torch.testing.assert_close(cells[0](x), everything(cells[0], x))


def test_edges_that_contribute_are_those_whose_removal_changes_the_function() -> None:
    for c in CODES[::7]:
        runs = contributing([d != "0" for d in c])
        for edge, on in enumerate(runs):
            without = c[:edge] + "0" + c[edge + 1 :]
            assert on == (function(without) != function(c)) or c[edge] == "0"


def test_a_path_trains_what_runs_alone(small: Supernet) -> None:
    """Node 1 has no input: what leaves it, and what only it leads to, learns nothing."""
    cell = next(m for m in small.model.modules() if isinstance(m, Cell))
    with small.active(small.indices(architecture(small, "033333"))) as model:
        model(torch.randn(2, 3, 8, 8)).sum().backward()
    learned = {
        name: any(p.grad is not None for p in edge.parameters())
        for name, edge in cell.edges.items()
    }
    assert [learned[name] for name in CHOICES] == [False, True, False, True, False, True]


def architecture(supernet: Supernet, code: str) -> Architecture:
    return Architecture(space="cell", settings=supernet.settings, choices=from_code(code))


@pytest.mark.parametrize("digits", DIGITS)
def test_a_plain_network_computes_what_the_supernets_path_does(
    small: Supernet, digits: str
) -> None:
    x = torch.randn(2, 3, 8, 8)
    plain = build(architecture(small, digits)).eval()
    derived = small.derive(architecture(small, digits)).eval()
    plain.load_state_dict(derived.state_dict())
    small.model.eval()
    with small.active(architecture(small, digits)) as model, torch.no_grad():
        torch.testing.assert_close(plain(x), model(x))
        torch.testing.assert_close(derived(x), model(x))
    assert (not any(isinstance(m, Zero) for m in plain.modules())) == ("0" not in digits)


# --- the whole ---


def test_six_choices_at_all_cells_and_the_published_counts() -> None:
    """MACs and parameters that the table's authors give of three networks."""
    supernet = build_supernet("cell")
    assert supernet.names == CHOICES and {len(p) for p in supernet.positions} == {15}
    costs = count_costs(supernet, trace(supernet, (torch.zeros(1, 3, 32, 32),)))
    for digits, macs, parameters in (
        ("333333", 220.11969e6, 1_531_546),
        ("333133", 184.73e6, 1_289_050),
        ("444444", 7.78251e6, 73_306),
    ):
        counted = costs.of(chosen(supernet, digits))
        assert counted[0] == pytest.approx(macs, rel=2e-3)
        assert counted[1] == pytest.approx(parameters, rel=1e-3)


def test_costs_and_proposals_are_of_networks_as_they_run(small: Supernet) -> None:
    assert small.as_it_runs(small.indices(from_choices := architecture(small, "033333"))) == (
        chosen(small, "030303")
    )
    assert from_choices.choices["edge_1_2"] == "nor_conv_3x3"
    flat = Costs.free(*small.mask.shape)
    with torch.no_grad():
        small.alpha[0, small.candidates[0].index("none")] = 9.0
    best = propose(small, flat, DeriveSettings(top_k=30), learned=True, seed=0)
    assert len(best) == 30
    assert all(small.as_it_runs(network) == network for network, _ in best)


@pytest.mark.parametrize("settings", [{"input_shape": [3, 2, 32]}, {"cells": 200}, {"widths": []}])
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        build_supernet("cell", settings)


def test_one_choice_of_an_architecture_stands_for_all_cells() -> None:
    network = build(Architecture(space="cell", settings=SMALL, choices=from_code("333333")))
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 1 + 2 * 6 + 3
    with pytest.raises(ArchitectureError, match="edge_9_9"):
        extra = {**from_code("333333"), "edge_9_9": "none"}
        build(Architecture(space="cell", settings=SMALL, choices=extra))
