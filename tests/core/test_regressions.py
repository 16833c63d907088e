"""What is wrong in the published implementations (docs/paper.md), once each.

Every test is named after what it prevents, and stands beside the fuller tests of its room.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import (
    ESTIMATORS,
    After,
    Planted,
    Recorder,
    Scale,
    changed,
    free,
    log_of,
    make_search,
    priced,
    problem,
    seeded,
    snapshot,
    supernet_with,
)

from proxylessnas.config import DeriveSettings
from proxylessnas.core.estimators import FullPath, Reinforce, TwoPath
from proxylessnas.core.objective import Constraint, Linear
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import MixedOp, Supernet, Zero
from proxylessnas.selection.choose import choose
from proxylessnas.selection.propose import propose
from proxylessnas.training.loop import run_loop

Log = list[tuple[Any, bool]]


def recorded(count: int, log: Log) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 4), MixedOp([Recorder(nn.Linear(4, 4), j, log) for j in range(count)])
    )


# 1. Where the active candidate is Zero, the whole gradient of α was dropped.


def with_a_dominant_zero() -> Supernet:
    model = MixedOp({"a": Scale(1.0), "b": Scale(2.0), "zero": Zero()})
    return supernet_with(model, [log_of((0.02, 0.02, 0.96))])


@pytest.mark.parametrize("estimator", [TwoPath(), FullPath()])
def test_zero_keeps_its_gradient(estimator: TwoPath | FullPath) -> None:
    """The loss wants a larger output; with Zero active, the others' gates say so."""
    supernet, x = with_a_dominant_zero(), torch.ones(1, dtype=torch.float64)
    gradient = estimator.step(problem(supernet, lambda m: -m(x).sum()), seeded()).gradient
    assert gradient is not None
    assert float(gradient[0, 2]) > 0 > float(gradient[0, :2].sum())


@pytest.mark.parametrize("estimator", [TwoPath(), FullPath()])
def test_zero_gets_credit_for_the_time_it_saves(estimator: TwoPath | FullPath) -> None:
    supernet, x = with_a_dominant_zero(), torch.ones(1, dtype=torch.float64)
    task = problem(
        supernet,
        lambda m: 0.0 * m(x).sum(),
        costs=priced(supernet, [[5.0, 9.0, 0.0]]),
        objective=Linear(1.0),
    )
    gradient = estimator.step(task, seeded()).gradient
    assert gradient is not None and float(gradient[0, 2]) < 0


def test_a_dominant_zero_does_not_lock_in() -> None:
    """It leaves where another candidate is better."""
    model = nn.Sequential(MixedOp({"right": Scale(1.0), "zero": Zero()}), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(4))
        model[1].bias.zero_()
    job = make_search(model, warmup_epochs=0, epochs=15, learning_rate=1e-6)
    with torch.no_grad():
        job.supernet.alpha.copy_(torch.tensor([[-2.0, 2.0]]))
    run_loop(job)
    assert job.most_probable() == [0]


# 2. In two-path mode the value of E[latency] covered only the pair.


def test_the_expected_latency_covers_all_candidates() -> None:
    supernet = supernet_with(MixedOp([Scale(1.0)] * 4), [log_of((0.4, 0.3, 0.2, 0.1))])
    task = problem(
        supernet,
        lambda m: m(torch.ones(1).double()).sum(),
        costs=priced(supernet, [[1.0, 10.0, 100.0, 1000.0]], fixed=5.0),
    )
    values = {TwoPath().step(task, seeded(i)).expected[0] for i in range(6)}
    assert [round(v, 9) for v in values] == [5.0 + 0.4 + 3.0 + 20.0 + 100.0]


# 3. Its default ran every inactive candidate in the architecture step.


def test_only_the_pair_runs_in_a_two_path_step() -> None:
    log: Log = []
    job = make_search(recorded(6, log))
    job.architecture_step()
    assert [recording for _, recording in log] == [True, False]
    assert len({name for name, _ in log}) == 2


# 4. Architecture steps moved the BN statistics of the candidates that ran.


@pytest.mark.parametrize("name", ESTIMATORS)
def test_batch_statistics_do_not_move_in_architecture_steps(name: str) -> None:
    """Of active and inactive candidates and outside of them; and BN does train on the batch."""
    model = nn.Sequential(
        nn.BatchNorm1d(4), MixedOp([nn.BatchNorm1d(4) for _ in range(3)]), nn.BatchNorm1d(4)
    )
    modes: list[bool] = []
    model[0].register_forward_hook(lambda m, _, y: modes.append(bool(y.mean().abs() < 1e-5)))
    nn.init.constant_(model[0].running_mean, 50.0)
    job = make_search(model, name)
    before = snapshot(model)
    for _ in range(4):
        job.architecture_step()
    assert changed(model, before) == set()
    assert all(modes) and (name == "random" or modes)


# 6. REINFORCE's baseline moved 99 % to the newest batch, and was not saved.


def test_the_baseline_moves_by_one_minus_decay_to_the_newest_batch() -> None:
    rewards = iter([1.0, 2.0])
    supernet = Supernet(MixedOp([Scale(1.0), Scale(2.0)]))
    task = problem(supernet, lambda m: m(torch.ones(1)).sum(), accuracy=lambda _: torch.ones(()))
    estimator = Reinforce(1, reward=lambda *_: next(rewards), decay=0.99)
    estimator.step(task, seeded())
    estimator.step(task, seeded())
    assert estimator.baseline == pytest.approx(0.99 * 1.0 + 0.01 * 2.0)


def test_the_baseline_is_saved_with_the_search() -> None:
    job = make_search(Planted(), "reinforce")
    run_loop(job)
    values = json.loads(json.dumps(job.state()[1]))
    assert isinstance(values["estimator"]["baseline"], float)
    other = make_search(Planted(), "reinforce")
    other.load(job.state()[0], values)
    assert other.estimator.state() == job.estimator.state()


# 6. Resuming reseeded from the clock and broke inside the warm-up.


def test_a_search_resumes_inside_its_warm_up() -> None:
    def stop(job: Search) -> None:
        if job.step == 3:
            raise InterruptedError

    whole, stopped, resumed = (make_search(Planted(), warmup_epochs=2) for _ in range(3))
    with pytest.raises(InterruptedError):
        run_loop(stopped, callbacks=[After(stopped, stop)])
    resumed.load(*stopped.state())
    assert resumed.step == 3 < resumed.schedule.warmup
    torch.manual_seed(99)  # a clock would do as much
    run_loop(resumed)
    torch.manual_seed(7)
    run_loop(whole)
    assert torch.equal(resumed.supernet.alpha, whole.supernet.alpha)


# 7. Another library's export drew a random architecture.


def test_derive_is_the_most_probable_and_not_a_random_draw() -> None:
    rows = [log_of((0.34, 0.33, 0.33)), log_of((0.33, 0.34, 0.33))]
    model = nn.Sequential(MixedOp([Scale(1.0)] * 3), MixedOp([Scale(1.0)] * 3))
    supernet = supernet_with(model, rows)
    settings = DeriveSettings(top_k=1)
    found = {
        choose(
            supernet, free(supernet), settings, score=lambda _: (0.0, ()), seed=seed
        ).chosen.indices
        for seed in range(12)
    }
    assert found == {(0, 1)} == {supernet.indices(supernet.most_probable())}
    assert [i for i, _ in propose(supernet, free(supernet), settings, learned=True, seed=5)] == [
        (0, 1)
    ]


# 7. ... and ran every candidate during the warm-up.


def test_inactive_candidates_do_not_run_in_weight_steps() -> None:
    log: Log = []
    job = make_search(recorded(4, log), warmup_epochs=1, epochs=1)
    job.architecture_step = lambda: None  # type: ignore[method-assign]
    run_loop(job)
    assert len(log) == job.schedule.total
    assert len({name for name, _ in log[:4]}) == 4 and all(recording for _, recording in log)


# 8. Neither hit a latency target.


@pytest.mark.parametrize("name", ESTIMATORS[:-1])
def test_the_constraint_pulls_the_derived_network_under_its_limit(name: str) -> None:
    """The loss wants the dear candidates; the limit allows one of the two, and both were kept
    without it. The exact decode at the end does the rest.
    """

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ops = nn.ModuleList(
                MixedOp({"dear": Scale(1.0), "cheap": Scale(0.5)}) for _ in range(2)
            )
            self.weight = nn.Parameter(torch.ones(()), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * sum(op(x) for op in self.ops) / 2

    def kept(limits: list[float]) -> float:
        """The share of the search's second half whose derived network is within 7."""
        job = make_search(
            Sum(), name, warmup_epochs=0, epochs=25, objective=Constraint(limits, rate=0.3)
        )
        job.costs = priced(job.supernet, [[4.0, 2.0], [4.0, 2.0]])
        within: list[bool] = []

        def look(j: Search) -> None:
            within.append(j.costs.of(j.most_probable())[0] <= 7.0)

        run_loop(job, callbacks=[After(job, look)])
        half = within[len(within) // 2 :]
        return sum(half) / len(half)

    assert kept([math.inf]) == 0.0
    assert kept([7.0]) > 0.1
