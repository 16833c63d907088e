"""Three costs at once: all limits are kept, and every expected cost reaches α."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import Scale, problem, seeded, supernet_with

from proxylessnas.config import DeriveSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import decode
from proxylessnas.core.estimators import make_estimator
from proxylessnas.core.objective import Constraint
from proxylessnas.core.supernet import MixedOp, Supernet, softmax
from proxylessnas.errors import LimitError
from proxylessnas.selection.propose import propose

NAMES = ("latency", "energy_mj", "flash_kib")
NETWORKS = list(itertools.product(range(3), repeat=3))
# Candidate 2 is the most probable everywhere, and the dearest in one cost at each position.
PER_CANDIDATE = torch.tensor(
    [
        [[1.0, 2.0, 9.0], [1.0, 2.0, 2.5], [1.0, 2.0, 3.0]],
        [[1.0, 1.5, 2.0], [1.0, 3.0, 9.0], [2.0, 2.0, 3.0]],
        [[2.0, 3.0, 1.0], [2.0, 1.0, 4.0], [1.0, 4.0, 9.0]],
    ],
    dtype=torch.float64,
)


def three_costs(limits: Sequence[float] = (math.inf,) * 3) -> Costs:
    return Costs.join(
        *(
            Costs.one(name, PER_CANDIDATE[k], fixed=k + 0.5, limit=limits[k])
            for k, name in enumerate(NAMES)
        )
    )


def supernet() -> Supernet:
    model = nn.Sequential(*[MixedOp([Scale(1.0), Scale(0.9), Scale(0.8)]) for _ in range(3)])
    return supernet_with(model, [[0.0, 0.517, 1.131], [0.0, 0.613, 1.219], [0.1, 0.729, 1.453]])


def within(costs: Costs) -> list[tuple[int, ...]]:
    """All networks that keep every limit, the most probable first."""
    log_p, limits = supernet().log_probabilities(), costs.limits.tolist()

    def value(indices: tuple[int, ...]) -> float:
        return math.fsum(float(log_p[m, j]) for m, j in enumerate(indices))

    kept = [n for n in NETWORKS if all(c <= t for c, t in zip(costs.of(n), limits, strict=True))]
    return sorted(kept, key=value, reverse=True)


@given(st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.6, 1.0]), min_size=3, max_size=3))
def test_all_networks_within_three_limits_are_decoded_in_order(shares: list[float]) -> None:
    ranges = three_costs().range(supernet().mask)
    limits = [low + s * (high - low) for s, (low, high) in zip(shares, ranges, strict=True)]
    costs = three_costs(limits)
    decoded = list(decode(supernet().log_probabilities(), supernet().mask, costs))
    assert decoded == within(costs)


def test_each_of_three_limits_excludes_a_network_that_the_others_allow() -> None:
    limits = (5.0, 6.5, 8.5)
    best = next(decode(supernet().log_probabilities(), supernet().mask, three_costs(limits)))
    for k in range(3):
        loose = [math.inf if j == k else limit for j, limit in enumerate(limits)]
        other = next(decode(supernet().log_probabilities(), supernet().mask, three_costs(loose)))
        assert other != best and three_costs().of(other)[k] > limits[k]


def test_limits_that_exclude_each_other_are_named_and_others_are_not() -> None:
    costs = three_costs((4.5, math.inf, 5.5))
    with pytest.raises(LimitError, match=r"at once: latency 4\.5, flash_kib 5\.5$"):
        propose(supernet(), costs, DeriveSettings(), learned=True, seed=0)


# --- the search ---


@pytest.mark.parametrize("estimator", ["full_path", "darts", "gumbel", "reinforce"])
@pytest.mark.parametrize("broken", range(3))
def test_the_expectation_of_every_cost_reaches_alpha(broken: int, estimator: str) -> None:
    """The gradient with a multiplier is that without, and λ/T·∂E[cost]/∂α."""
    limits = [10.0, 20.0, 30.0]

    def gradient(observed: Sequence[float]) -> Tensor:
        constraint = Constraint(limits, rate=0.5)
        constraint.observe(observed)
        space = supernet()
        context = problem(
            space,
            lambda model: model(torch.ones(1)).square().sum(),
            costs=three_costs(limits),
            objective=constraint,
        )
        estimate = make_estimator(estimator, samples=2).step(context, seeded())
        assert estimate.gradient is not None
        return estimate.gradient

    costly = [2 * limit if k == broken else 0.0 for k, limit in enumerate(limits)]
    alpha = supernet().alpha.detach().requires_grad_()
    expected = three_costs().expected(softmax(alpha, supernet().mask))[broken]
    (exact,) = torch.autograd.grad(expected, [alpha])
    difference = gradient(costly) - gradient([0.0] * 3)
    torch.testing.assert_close(difference, 0.5 / limits[broken] * exact)
    assert bool((difference != 0).all())


def test_every_limit_has_a_multiplier_of_its_own() -> None:
    constraint = Constraint([10.0, 20.0, math.inf], rate=0.5)
    constraint.observe([20.0, 10.0, 1e9])
    assert constraint.multipliers == [0.5, 0.0, 0.0]
    constraint.observe([5.0, 60.0, 0.0])
    assert constraint.multipliers == [0.25, 1.0, 0.0]


def test_dual_ascent_keeps_three_limits_in_the_mean() -> None:
    """Of a loss that prefers the dearest candidates, by exact gradients of L and E.

    Candidates are discrete, so the most probable network goes to and fro about its limits.
    """
    costs, mask = three_costs((9.0, 9.0, 12.0)), torch.ones(3, 3, dtype=torch.bool)
    constraint = Constraint(costs.limits.tolist(), rate=0.05)
    alpha = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([alpha], lr=0.05)
    derived = []
    for _ in range(600):
        p = softmax(alpha, mask)
        loss = -(p * torch.tensor([0.0, 0.3, 1.0])).sum()
        optimizer.zero_grad()
        constraint(loss, costs.expected(p)).backward()
        optimizer.step()
        derived.append(costs.of(p.detach().argmax(1).tolist()))
        constraint.observe(derived[-1])
    shares = torch.tensor(derived[200:], dtype=torch.float64) / costs.limits
    assert bool((shares.mean(0) < 1.02).all()) and bool((shares <= 1).all(1).any())
    assert bool((torch.tensor(derived[:5]) > costs.limits).any())
