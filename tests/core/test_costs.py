"""Costs: closed forms, limits by name, corrections."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from proxylessnas.core.costs import Costs
from proxylessnas.errors import LimitError, MeasurementError

ROWS = st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=4), min_size=1, max_size=4)


def padded(rows: list[list[float]]) -> tuple[Costs, Tensor]:
    widest = max(map(len, rows))
    values = torch.tensor([row + [0.0] * (widest - len(row)) for row in rows], dtype=torch.float64)
    mask = torch.tensor([[j < len(row) for j in range(widest)] for row in rows])
    return Costs.one("latency", values, fixed=1.5, unit="ms"), mask


@given(ROWS, st.integers(0, 2**32))
def test_the_expectation_is_the_mean_over_all_networks(rows: list[list[float]], seed: int) -> None:
    cost, mask = padded(rows)
    logits = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed)).double()
    p = torch.softmax(logits.masked_fill(~mask, -torch.inf), 1).requires_grad_()
    expected = cost.expected(p)
    networks = list(itertools.product(*(range(len(row)) for row in rows)))
    q = p.detach()
    mean = sum(
        cost.of(n)[0] * float(torch.stack([q[m, j] for m, j in enumerate(n)]).prod())
        for n in networks
    )
    assert expected.item() == pytest.approx(mean, abs=1e-9)
    expected.backward()
    assert torch.equal(p.grad, cost.per_candidate[0])


@given(ROWS)
def test_range_and_extremes_are_those_of_all_networks(rows: list[list[float]]) -> None:
    cost, mask = padded(rows)
    every = [cost.of(n)[0] for n in itertools.product(*(range(len(row)) for row in rows))]
    assert cost.range(mask) == [pytest.approx((min(every), max(every)))]
    least, most = cost.extremes("latency", mask)
    assert (*cost.of(least), *cost.of(most)) == pytest.approx((min(every), max(every)))


@given(ROWS, st.floats(0.1, 10))
def test_a_correction_scales_every_network_in_one_cost_alone(
    rows: list[list[float]], factor: float
) -> None:
    latency, _ = padded(rows)
    other = Costs.one("macs", latency.per_candidate[0] + 1, fixed=7.0, limit=9.0)
    first, both = [0] * len(rows), Costs.join(latency, other)
    scaled = both.scaled("latency", factor)
    assert scaled.of(first) == pytest.approx([latency.of(first)[0] * factor, *other.of(first)])
    assert scaled.limits.tolist() == both.limits.tolist() == [math.inf, 9.0]


def test_a_correction_needs_a_positive_factor() -> None:
    cost, _ = padded([[1.0]])
    for factor in (0.0, math.inf, -1.0, math.nan):
        with pytest.raises(MeasurementError, match="cannot be corrected"):
            cost.scaled("latency", factor)


def test_costs_stand_side_by_side_and_take_limits_by_name() -> None:
    rows = [[1.0, 2.0], [3.0]]
    latency, _ = padded(rows)
    both = Costs.join(latency, Costs.one("energy", latency.per_candidate[0] * 10, unit="mJ"))
    assert (both.names, both.units) == (("latency", "energy"), ("ms", "mJ"))
    assert "energy" in both and "macs" not in both and both.index("energy") == 1
    assert both.of([1, 0]) == [6.5, 50.0]
    assert both.cost_of("energy", [1, 0]) == 50.0
    limited = both.limited({"energy": 50.0})
    assert (limited.limit("latency"), limited.limit("energy")) == (math.inf, 50.0)
    assert limited.limited({"latency": 6.0}).limits.tolist() == [6.0, math.inf]
    with pytest.raises(LimitError, match="no cost 'power' to limit; there are: latency, energy"):
        both.limited({"power": 1.0})


def test_the_expectation_takes_the_dtype_of_the_probabilities() -> None:
    cost, _ = padded([[1.0, 2.0]])
    assert cost.expected(torch.tensor([[0.5, 0.5]])).dtype == torch.float32


def test_of_is_an_exact_sum() -> None:
    costs = Costs.join(
        Costs.one("a", torch.tensor([[0.1, 0.2], [0.3, 0.4]]).double(), fixed=1.0),
        Costs.one("b", torch.tensor([[1.0, 2.0], [3.0, 4.0]])),
    )
    a = costs.per_candidate[0].tolist()
    assert costs.of((1, 0)) == [1.0 + math.fsum([a[0][1], a[1][0]]), 5.0]


def test_range_and_extremes_leave_forbidden_candidates_out() -> None:
    cost = Costs.one("a", torch.tensor([[5.0, 1.0, 9.0], [2.0, 0.0, 0.0]]), fixed=10.0)
    assert cost.range(torch.tensor([[True] * 3, [True, False, False]])) == [(13.0, 21.0)]
    allowed = torch.tensor([[True, False, False], [True, False, False]])
    assert cost.range(allowed) == [(17.0, 17.0)]
    assert cost.extremes("a", allowed) == ((0, 0), (0, 0))


def test_a_limit_under_the_range_names_the_range() -> None:
    cost, mask = padded([[5.0, 1.0]])
    with pytest.raises(
        LimitError, match=r"latency of 2 ms: the reachable range is 2.5 ms to 6.5 ms"
    ):
        cost.limited({"latency": 2.0}).check_reachable(mask)
    cost.limited({"latency": 2.5}).check_reachable(mask)


def test_without_a_cost_there_is_nothing_to_expect() -> None:
    free = Costs.free(2, 3)
    assert free.of((0, 1)) == [] and free.expected(torch.ones(2, 3)).tolist() == []
    assert Costs.join(free, free).names == () and free.limit("latency") == math.inf
