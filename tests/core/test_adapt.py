"""α that learns on, from a finished search, under another limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import LEARNING, After, Planted, Scale, changed, make_search, priced, snapshot

from proxylessnas.core.adapt import adapt
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import decode
from proxylessnas.core.objective import Constraint
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import MixedOp, Supernet
from proxylessnas.errors import UserError
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import Task


@pytest.mark.parametrize("estimator", LEARNING)
def test_alpha_is_adapted_under_another_limit(estimator: str) -> None:
    """The dear candidates were chosen where there was room; within 5 ms they do not fit."""

    class Priced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.ops = nn.Sequential(
                *(MixedOp({"cheap": Scale(0.7), "dear": Scale(1.0)}) for _ in range(3))
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.ops(self.norm(x))

    roomy = priced(Supernet(Priced()), [[1.0, 3.0]] * 3)
    roomy = replace(roomy, limits=torch.tensor([9.0]).double())
    job = make_search(Priced(), estimator, costs=roomy, objective=Constraint([9.0], rate=0.2))
    with torch.no_grad():  # as decided as a long search leaves it
        job.supernet.alpha[:, 1] = 20.0
    weights, alpha = snapshot(job.model), job.supernet.alpha.detach().clone()
    seen: list[int] = []
    tight = replace(roomy, limits=torch.tensor([5.0]).double())
    other = adapt(job, tight, steps=150, callbacks=[After(job, lambda _: seen.append(1))])
    assert len(seen) == 150
    # Three alike: which of them turn cheap is open, how many is not.
    assert 4.0 < float(tight.expected(other.supernet.probabilities())) < 6.5
    assert torch.equal(job.supernet.alpha, alpha)
    assert not changed(job.model, weights)
    again = adapt(job, tight, steps=150)
    assert torch.equal(other.supernet.alpha, again.supernet.alpha)


def within(limit: float) -> Costs:
    costs = priced(Supernet(Ranked()), [[1.0, 1.0, 3.0]] * 3)
    return replace(costs, limits=torch.tensor([limit]).double())


class Ranked(nn.Sequential):
    """dear (1.0) is better than good (0.9), which is better than bad (0.2) and costs the same."""

    def __init__(self) -> None:
        names = {"bad": 0.2, "good": 0.9, "dear": 1.0}
        ops = (MixedOp({k: Scale(v) for k, v in names.items()}) for _ in range(3))
        super().__init__(nn.BatchNorm1d(4), *ops)


def ranked(alpha: Sequence[float] = (-8.0, 8.0, 20.0), **settings: Any) -> Search:
    """A finished search whose α is decided."""
    objective = Constraint([9.0], rate=0.2)
    model = Ranked()
    job = make_search(model, costs=within(9.0), objective=objective, **settings)
    run_loop(job)
    with torch.no_grad():
        job.supernet.alpha.copy_(torch.tensor([list(alpha)] * 3))
    return job


@pytest.mark.parametrize("rate", [None, 1e-3])
def test_what_was_given_up_keeps_its_order(rate: float | None) -> None:
    """Of two candidates far down, the better one is found again, whatever the search's rate."""
    job = ranked(arch_learning_rate=rate)
    tight = within(3.5)
    other = adapt(job, tight, steps=100)
    indices = next(decode(other.supernet.log_probabilities(), other.supernet.mask, tight))
    assert list(indices) == [1, 1, 1]
    untouched = adapt(job, tight, steps=0)
    assert torch.equal(untouched.supernet.alpha, job.supernet.alpha)


@pytest.mark.parametrize("objective", ["linear", "mul_log", "add_linear"])
def test_an_objective_without_a_limit_has_nothing_to_learn(objective: str) -> None:
    job = ranked()
    job.settings = replace(job.settings, objective=objective, cost_weight=0.1)
    other = adapt(job, within(0.9), steps=50)
    assert torch.equal(other.supernet.alpha, job.supernet.alpha)


def test_learning_on_needs_no_mode_and_leaves_none() -> None:
    job = ranked()
    job.model.eval()
    job.model[1].train()
    modes = [m.training for m in job.model.modules()]
    with torch.inference_mode():
        inferred = adapt(job, within(5.0), steps=3)
    with torch.no_grad():
        plain = adapt(job, within(5.0), steps=3)
    assert [m.training for m in job.model.modules()] == modes
    assert torch.equal(inferred.supernet.alpha, plain.supernet.alpha)
    assert not torch.equal(plain.supernet.alpha, job.supernet.alpha)


def test_learning_on_gives_up_where_the_loss_is_no_number() -> None:
    job = ranked()
    job.recovery.returns = 2
    assert adapt(job, within(5.0), steps=1).recovery.factor == 0.25
    job.task = Task(loss=lambda output, target: output.sum() * math.nan)
    with (
        pytest.warns(UserWarning, match="nothing was updated"),
        pytest.raises(UserError, match="not finite 5 times in a row"),
    ):
        adapt(job, within(5.0), steps=50)


def test_no_step_leaves_alpha_as_it_was() -> None:
    job = make_search(Planted())
    run_loop(job)
    other = adapt(job, job.costs, steps=0)
    assert torch.equal(other.supernet.alpha, job.supernet.alpha)
    assert other.supernet is not job.supernet
