"""Objectives, and the exact decode under limits against enumeration."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import decode
from proxylessnas.core.objective import AddLinear, Constraint, Linear, MulLog, reward
from proxylessnas.errors import ConfigError
from proxylessnas.selection.propose import sample_within

INF = math.inf


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def costs_of(
    costs: list[list[list[float]]], limits: list[float], fixed: list[float] | None = None
) -> Costs:
    """costs: [costs][mixed operations][candidates], ragged."""
    widest = max(len(row) for row in costs[0])
    padded = [[row + [0.0] * (widest - len(row)) for row in cost] for cost in costs]
    names = tuple(f"cost{k}" for k in range(len(costs)))
    return Costs(
        names=names,
        units=("ms",) * len(costs),
        per_candidate=tensor(padded),
        fixed=tensor(fixed or [0.0] * len(costs)),
        limits=tensor(limits),
    )


def mask_of(sizes: list[int]) -> Tensor:
    return torch.tensor([[j < n for j in range(max(sizes))] for n in sizes])


# --- objectives ---


def value_and_gradients(objective: object, loss: float, expected: float) -> list[float]:
    leaf, cost = tensor(loss).requires_grad_(), tensor([expected]).requires_grad_()
    total = objective(leaf, cost)  # type: ignore[operator]
    grads = torch.autograd.grad(total, [leaf, cost])
    return [float(total.detach()), float(grads[0]), float(grads[1].sum())]


def test_linear_is_the_loss_plus_a_priced_cost() -> None:
    assert value_and_gradients(Linear(0.5), 2.0, 10.0) == pytest.approx([7.0, 1.0, 0.5])


def test_linear_may_price_another_cost() -> None:
    total = Linear(2.0, index=1)(tensor(1.0), tensor([100.0, 3.0]))
    assert float(total) == 7.0


def test_mul_log_is_the_published_formula() -> None:
    """0.2·L·(log E / log T)^0.3."""
    ratio = math.log(40) / math.log(80)
    slope = 0.2 * 2.0 * 0.3 * ratio ** (0.3 - 1) / (40 * math.log(80))
    found = value_and_gradients(MulLog(80.0), 2.0, 40.0)
    assert found == pytest.approx([0.2 * 2.0 * ratio**0.3, 0.2 * ratio**0.3, slope])


def test_mul_log_stays_finite_where_the_log_is_negative() -> None:
    assert all(map(math.isfinite, value_and_gradients(MulLog(80.0), 2.0, 0.5)))


@pytest.mark.parametrize("target", [1.0, 0.3])
def test_mul_log_refuses_a_target_whose_log_is_not_positive(target: float) -> None:
    with pytest.raises(ConfigError, match="over 1"):
        MulLog(target)


def test_add_linear_is_the_published_formula() -> None:
    """L + 0.1·(E − T)/T."""
    found = value_and_gradients(AddLinear(80.0), 2.0, 100.0)
    assert found == pytest.approx([2.0 + 0.1 * 20 / 80, 1.0, 0.1 / 80])


def test_the_reward_is_the_published_formula() -> None:
    assert reward(0.7, 100.0, 80.0) == pytest.approx(0.7 * 0.8**0.1)
    assert reward(0.7, 80.0, 80.0) == 0.7


def test_the_constraint_is_the_loss_until_a_limit_is_broken() -> None:
    constraint = Constraint([10.0, INF], rate=0.5)
    expected = tensor([20.0, 7.0])
    assert float(constraint(tensor(2.0), expected)) == 2.0
    constraint.observe([15.0, 1e9])  # half over the limit; the other has none
    assert constraint.multipliers == [0.25, 0.0]
    leaf = expected.clone().requires_grad_()
    total = constraint(tensor(2.0), leaf)
    assert float(total.detach()) == pytest.approx(2.0 + 0.25 * (20 / 10 - 1))
    assert torch.autograd.grad(total, [leaf])[0].tolist() == pytest.approx([0.025, 0.0])


@given(st.lists(st.floats(0.01, 100), max_size=30), st.floats(0.01, 10), st.floats(0.1, 10))
def test_multipliers_are_never_negative(costs: list[float], rate: float, limit: float) -> None:
    constraint = Constraint([limit], rate=rate)
    for cost in costs:
        before = constraint.multipliers[0]
        constraint.observe([cost])
        after = constraint.multipliers[0]
        assert after >= 0
        assert (after >= before) if cost >= limit else (after <= before)


def test_the_constraint_goes_on_from_its_state() -> None:
    first, second = Constraint([10.0], rate=0.5), Constraint([10.0], rate=0.5)
    first.observe([15.0])
    second.load(json.loads(json.dumps(first.state())))
    assert second.multipliers == first.multipliers
    second.load([-1.0])
    assert second.multipliers == [0.0]


# --- decode ---


def by_brute_force(log_p: Tensor, mask: Tensor, table: Costs) -> list[tuple[int, ...]]:
    """All networks within the limits, the most probable first."""
    rows = [[j for j, on in enumerate(row) if on] for row in mask.tolist()]
    limits = table.limits.tolist()
    within = [
        indices
        for indices in itertools.product(*rows)
        if all(c <= limit for c, limit in zip(table.of(indices), limits, strict=True))
    ]
    return sorted(within, key=lambda i: -log_probability(log_p, i))


def log_probability(log_p: Tensor, indices: tuple[int, ...]) -> float:
    return math.fsum(float(log_p[m, j]) for m, j in enumerate(indices))


@st.composite
def spaces(draw: st.DrawFn) -> tuple[Tensor, Tensor, Costs]:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    count = draw(st.integers(0, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mask = mask_of(sizes)
    spread = draw(st.sampled_from([0.01, 1.0, 30.0]))
    alpha = spread * torch.randn(mask.shape, generator=generator).double()
    log_p = torch.log_softmax(alpha.masked_fill(~mask, -INF), 1)
    scale = draw(st.sampled_from([1e-3, 1.0, 1e7]))
    costs = scale * torch.rand(count, *mask.shape, generator=generator).double() * mask
    fixed = scale * torch.rand(count, generator=generator).double()
    parts = (Costs.one(f"c{k}", costs[k], fixed=float(fixed[k])) for k in range(count))
    free = Costs.join(Costs.free(*mask.shape), *parts)
    shares = [draw(st.sampled_from([-0.1, 0.0, 0.3, 0.6, 1.0, INF])) for _ in range(count)]
    limits = [
        INF if share == INF else low + share * (high - low)
        for share, (low, high) in zip(shares, free.range(mask), strict=True)
    ]
    return log_p, mask, free.limited(dict(zip(free.names, limits, strict=True)))


@given(spaces())
def test_decode_gives_all_networks_within_the_limits_in_the_order_of_probability(
    space: tuple[Tensor, Tensor, Costs],
) -> None:
    """Against enumeration: the same set, each once, the same Σ log p at every place."""
    log_p, mask, table = space
    expected = by_brute_force(log_p, mask, table)[:12]
    found = list(itertools.islice(decode(log_p, mask, table), 12))
    assert len(set(found)) == len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        costs = table.of(mine)
        assert all(c <= limit for c, limit in zip(costs, table.limits.tolist(), strict=True))
        assert log_probability(log_p, mine) == pytest.approx(
            log_probability(log_p, theirs), abs=1e-6
        )


def test_decode_ends_when_every_network_was_given() -> None:
    mask = mask_of([2, 3])
    log_p = torch.log_softmax(torch.randn(2, 3).double().masked_fill(~mask, -INF), 1)
    assert len(list(decode(log_p, mask, Costs.free(2, 3)))) == 6


def test_decode_gives_nothing_where_no_network_keeps_the_limits() -> None:
    """Each limit alone can be kept, both together cannot."""
    table = costs_of([[[1.0, 2.0]], [[2.0, 1.0]]], [1.5, 1.5])
    assert list(decode(torch.zeros(1, 2).double(), mask_of([2]), table)) == []


def test_the_most_probable_network_needs_no_limit() -> None:
    log_p = tensor([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]]).log()
    assert next(decode(log_p, mask_of([3, 3]), Costs.free(2, 3))) == (1, 0)


def test_ties_go_to_the_earlier_candidates() -> None:
    """Eight equal candidates in four operations, the first of each forbidden."""
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[:, 0] = False
    log_p = torch.full((4, 8), -math.log(7)).double()
    assert next(decode(log_p, mask, Costs.free(4, 8))) == (1, 1, 1, 1)


def test_a_network_exactly_at_its_limit_is_within() -> None:
    table = costs_of([[[0.1, 0.2], [0.2, 0.4]]], [math.fsum([0.2, 0.4])])
    log_p = tensor([[0.1, 0.9], [0.1, 0.9]]).log()
    assert next(decode(log_p, mask_of([2, 2]), table)) == (1, 1)


def test_the_limit_is_checked_by_plain_summation() -> None:
    """Over by a part in 10^9, far under the solver's tolerance."""
    table = costs_of([[[1.0, 2.0]]], [2.0 * (1 - 1e-9)])
    assert list(decode(tensor([[0.1, 0.9]]).log(), mask_of([2]), table)) == [(0,)]


def test_forbidden_candidates_are_not_decoded() -> None:
    mask = torch.tensor([[True, False, True]])
    log_p = tensor([[0.2, 0.7, 0.1]]).log()
    assert list(decode(log_p, mask, Costs.free(1, 3))) == [(0,), (2,)]


# --- uniform networks within the limits ---


def test_sample_within_is_uniform_among_the_networks_within() -> None:
    table = costs_of([[[1.0, 2.0, 3.0], [1.0, 2.0]]], [4.0])
    mask = mask_of([3, 2])
    within = set(by_brute_force(torch.zeros(2, 3), mask, table))
    assert len(within) == 5
    drawn = list(sample_within(mask, table, torch.Generator().manual_seed(0), draws=10_000))
    shares = {k: n / len(drawn) for k, n in Counter(drawn).items()}
    assert set(shares) == within
    assert list(shares.values()) == pytest.approx([1 / 5] * 5, abs=0.02)


def test_sample_within_ends_where_no_network_is_within() -> None:
    table = costs_of([[[1.0, 2.0]]], [0.5])
    generator = torch.Generator().manual_seed(0)
    assert list(sample_within(mask_of([2]), table, generator, draws=10_000)) == []
