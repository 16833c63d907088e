"""The search loop: its plan, its two steps, and what each of them may change."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
import torch
from diverging import StatefulNet, diverging_search
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toys import (
    After,
    Planted,
    Scale,
    changed,
    log_of,
    make_search,
    priced,
    regression,
    snapshot,
    supernet_with,
)

from proxylessnas.config import SearchSettings
from proxylessnas.core.estimators import TwoPath
from proxylessnas.core.gates import Mixture
from proxylessnas.core.schedule import Schedule, fair_gates
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import MixedOp, Supernet, Zero
from proxylessnas.errors import ConfigError, UserError
from proxylessnas.training.callbacks import mean_entropy
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import Task

# --- the plan ---


@pytest.mark.parametrize(("every", "steps"), [(1, 30), (2, 15), (4, 7), (31, 0)])
def test_the_plan_counts_the_architecture_steps(every: int, steps: int) -> None:
    settings = SearchSettings(warmup_epochs=2, epochs=3, arch_every=every)
    plan = Schedule.of(settings, epoch_steps=10)
    assert (plan.warmup, plan.total, plan.architecture_steps) == (20, 50, steps)
    due = [step for step in range(plan.total) if plan.architecture_due(step)]
    assert len(due) == steps
    assert all(step >= plan.warmup for step in due)


def test_the_loop_takes_the_steps_of_its_plan() -> None:
    job, log = make_search(Planted(), warmup_epochs=1, epochs=2, arch_every=3), []
    job.weight_step = lambda: log.append("w")  # type: ignore[method-assign]
    job.architecture_step = lambda: log.append("a")  # type: ignore[method-assign]
    run_loop(job)
    assert "".join(log) == "wwww" + "wwwa" * 2 + "ww"
    assert job.step == 12
    run_loop(job)  # nothing is left
    assert len(log) == 14


def test_alpha_starts_near_uniform_from_its_seed() -> None:
    first, same, other = (make_search(Planted(), seed=s).supernet.alpha for s in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert 0 < first.abs().max().item() < 0.01


@pytest.mark.parametrize("epochs", [2, 50])
def test_the_alpha_rate_follows_from_the_number_of_steps(epochs: int) -> None:
    """Rate x architecture steps is 10, unless it is set."""
    job = make_search(Planted(), epochs=epochs, arch_every=2)
    (group,) = job.arch_optimizer.param_groups
    assert group["lr"] * job.schedule.architecture_steps == pytest.approx(10)
    assert group["betas"] == (0.0, 0.999) and group["weight_decay"] == 0
    job = make_search(Planted(), epochs=epochs, arch_learning_rate=0.125)
    assert job.arch_optimizer.param_groups[0]["lr"] == 0.125


def test_adam_momentum_is_refused_for_two_paths() -> None:
    with pytest.raises(ConfigError, match=r"arch_beta1 is 0\.9"):
        make_search(Planted(), TwoPath(), arch_beta1=0.9)
    make_search(Planted(), "full_path", arch_beta1=0.9)


def test_weight_rates_decay_as_one_cosine_or_as_two() -> None:
    job = make_search(Planted(), warmup_epochs=1, epochs=1, learning_rate=0.4)
    rates = [_rate_at(job, step) for step in (0, 4, 8)]
    assert rates == pytest.approx([0.4, 0.2, 0.0])
    job = make_search(
        Planted(), warmup_epochs=1, epochs=1, learning_rate=0.4, warmup_learning_rate=0.8
    )
    assert [_rate_at(job, step) for step in (0, 2, 4, 6)] == pytest.approx([0.8, 0.4, 0.4, 0.2])


def _rate_at(job: Search, step: int) -> float:
    job.step = step
    return job.weight_rate()


# --- gates ---


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(0, 2**31), st.data())
def test_fair_gates_give_each_candidate_once_in_every_round(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    """Ragged rows, some candidates forbidden; the rounds of a row are as long as it is."""
    supernet = Supernet(nn.Sequential(*[MixedOp([nn.Identity()] * n) for n in sizes]))
    allowed = [
        sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1), label="allowed"))
        for n in sizes
    ]
    keep = torch.tensor([[j in row for j in range(max(sizes))] for row in allowed])
    supernet.forbid(supernet.mask & ~keep, "test")
    steps = [fair_gates(supernet, seed, step) for step in range(2 * max(sizes))]
    for m, row in enumerate(allowed):
        drawn = [choice[m] for choice in steps]
        for start in range(0, len(drawn) - len(row) + 1, len(row)):
            assert sorted(drawn[start : start + len(row)]) == row


def test_fair_gates_shuffle_each_row_and_each_round() -> None:
    supernet = Supernet(nn.Sequential(*[MixedOp([nn.Identity()] * 6) for _ in range(4)]))
    steps = [fair_gates(supernet, 0, step) for step in range(12)]
    orders = {tuple(s[m] for s in steps[r : r + 6]) for m in range(4) for r in (0, 6)}
    assert len(orders) == 8


def test_warm_up_is_fair_and_the_search_follows_the_probabilities() -> None:
    job = make_search(Planted(), warmup_epochs=3, epochs=100)
    with torch.no_grad():
        job.supernet.alpha.copy_(torch.tensor([log_of((0.05, 0.9, 0.05)), [5.0, -5.0, 0.0]]))
    drawn: dict[str, Counter[int]] = {"warm-up": Counter(), "search": Counter()}
    for step in range(job.schedule.total):
        job.step = step
        drawn["warm-up" if step < job.schedule.warmup else "search"][job.weight_gates()[0]] += 1
    assert drawn["warm-up"] == {0: 4, 1: 4, 2: 4}
    assert drawn["search"][1] / 400 == pytest.approx(0.9, abs=0.05)


def test_a_uniform_share_decays_to_nothing() -> None:
    job = make_search(Planted(), warmup_epochs=0, epochs=200, uniform_share=1.0)
    with torch.no_grad():
        job.supernet.alpha.copy_(torch.tensor([[-20.0, 20.0, -20.0], [20.0, -20.0, 0.0]]))
    off = []
    for step in range(job.schedule.total):
        job.step = step
        off.append(job.weight_gates()[0] != 1)
    early, late = sum(off[:400]) / 400, sum(off[400:]) / 400
    assert early == pytest.approx(0.75 * 2 / 3, abs=0.08)
    assert late == pytest.approx(0.25 * 2 / 3, abs=0.08)
    job.step = job.schedule.total
    assert job.uniform_share() == 0


# --- invariant 1: the weight step ---


def test_a_weight_step_changes_the_active_paths_alone() -> None:
    """Bit-identical elsewhere: momenta, decay, statistics and user's buffers included."""
    job = make_search(StatefulNet(), warmup_epochs=8, epochs=2, weight_decay=0.1, momentum=0.9)
    job.model.train()
    active_before = {"first": set(), "branch": set()}
    for _ in range(job.schedule.total):
        choice = job.weight_gates()
        before, alpha = snapshot(job.model), job.supernet.alpha.detach().clone()
        momenta = {k: v.clone() for k, v in job.state()[0].items() if k.startswith("weight_opt")}
        job.weight_step()
        moved = changed(job.model, before)
        chosen = (f"first.candidates.{choice[0]}.", f"branch.candidates.{'ab0'[choice[1]]}.")
        for name in moved:
            assert name.startswith("stem.") or any(c in name for c in chosen), name
        for own in ("0.parametrizations.weight.original", "1.running_mean", "3.mean"):
            assert chosen[0] + own in moved  # the active one did move
        for key, momentum in job.state()[0].items():
            if key in momenta and not torch.equal(momentum, momenta[key]):
                assert "stem." in key or any(c in key for c in chosen), key
        assert torch.equal(job.supernet.alpha, alpha)
        active_before["first"].add(choice[0])
        active_before["branch"].add(choice[1])
        job.step += 1
    assert active_before == {"first": {0, 1, 2}, "branch": {0, 1, 2}}


def test_momentum_and_decay_pass_an_inactive_candidate_over() -> None:
    """Active once, then never: it stays where that one step left it."""
    job = make_search(
        nn.Sequential(MixedOp([nn.Linear(4, 4), nn.Linear(4, 4)])), weight_decay=0.5, momentum=0.9
    )
    job.weight_gates = lambda: [0]  # type: ignore[method-assign]
    job.weight_step()
    left = job.supernet.positions[0][0].candidates["0"].weight.detach().clone()
    job.weight_gates = lambda: [1]  # type: ignore[method-assign]
    for _ in range(3):
        job.weight_step()
    assert torch.equal(job.supernet.positions[0][0].candidates["0"].weight, left)


def test_no_gradient_is_left_behind() -> None:
    job = make_search(StatefulNet())
    run_loop(job)
    assert all(p.grad is None for p in job.model.parameters())
    assert job.supernet.alpha.grad is None


def test_dropout_does_not_depend_on_what_ran_before() -> None:
    """It is seeded by the step: a stray draw between two steps changes nothing."""

    def weights(stray: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        job = make_search(StatefulNet())

        def after(_: Search) -> None:
            if stray:
                torch.rand(7)

        run_loop(job, callbacks=[After(job, after)])
        return snapshot(job.model)

    quiet, noisy = weights(False), weights(True)
    assert all(torch.equal(v, noisy[k]) for k, v in quiet.items())


def test_a_path_that_reaches_no_weight_is_passed_over() -> None:
    job = make_search(nn.Sequential(nn.Linear(4, 4), MixedOp({"zero": Zero()})))
    before = snapshot(job.model)
    job.weight_step()
    assert changed(job.model, before) == set()


def test_frozen_weights_of_a_pretrained_model_stay_while_alpha_learns() -> None:
    model = Planted()
    model.requires_grad_(False)
    job = make_search(model, epochs=12)
    before = snapshot(model)
    run_loop(job)
    assert changed(model, before) == set()
    assert dict(job.supernet.most_probable().choices) == {"first": "right", "second": "right"}


def test_activation_checkpointing_recomputes_the_same_path() -> None:
    """The backward pass of a weight step runs the path once more: the gates still hold."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(4, 4)
            self.op = MixedOp([nn.Linear(4, 4), nn.Linear(4, 4)])

        def forward(self, x: Tensor) -> Tensor:
            return self.op(self.stem(x))

    class Checkpointed(Plain):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.op, self.stem(x), use_reentrant=False)
            return out

    def run(kind: type[nn.Module]) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(0)
        job = make_search(kind())
        run_loop(job)
        return snapshot(job.model), job.supernet.alpha.detach()

    (weights, alpha), (expected, expected_alpha) = run(Checkpointed), run(Plain)
    assert all(torch.equal(weights[k], v) for k, v in expected.items())
    assert torch.equal(alpha, expected_alpha)


# --- the architecture step ---


def test_an_architecture_step_changes_alpha_alone() -> None:
    """Invariant 2, with every kind of buffer, dropout and a Zero."""
    job = make_search(StatefulNet())
    job.model.train()
    job.weight_step()
    before, alpha = snapshot(job.model), job.supernet.alpha.detach().clone()
    for _ in range(5):
        job.architecture_step()
    assert changed(job.model, before) == set()
    assert not torch.equal(job.supernet.alpha, alpha)
    assert job.train_stream.drawn == 1 and job.valid_stream.drawn == 5


def test_forbidden_and_missing_candidates_do_not_move() -> None:
    job = make_search(Planted(), "full_path")
    job.supernet.forbid(torch.tensor([[True, False, False], [False] * 3]), "test")
    before = job.supernet.alpha.detach().clone()
    run_loop(job)
    moved = job.supernet.alpha != before
    assert moved.tolist() == [[False, True, True], [True, True, False]]


def test_the_constraint_sees_the_network_that_would_be_derived_now() -> None:
    class Spy:
        seen: list[list[float]] = []  # noqa: RUF012

        def __call__(self, loss: Tensor, expected: Tensor) -> Tensor:
            return loss

        def observe(self, costs: Any) -> None:
            self.seen.append(list(costs))

    job = make_search(Planted(), objective=Spy())  # type: ignore[arg-type]
    job.costs = priced(job.supernet, [[1.0, 2.0, 4.0], [8.0, 16.0]], fixed=32.0)
    with torch.no_grad():
        job.supernet.alpha.copy_(torch.tensor([[0.0, 0.0, 9.0], [9.0, 0.0, 0.0]]))
    job.architecture_step()
    assert Spy.seen == [[44.0]]


def test_accuracy_is_a_share_of_the_examples_whatever_the_target_is_made_of() -> None:
    data = [(torch.ones(6, 4), {"y": torch.zeros(6), "weight": torch.ones(6)})]
    job = make_search(
        Planted(),
        data=data,
        task=Task(
            loss=lambda output, target: output.sum(),
            correct=lambda output, target: torch.tensor(3),
        ),
    )
    _, accuracy = job.context(data[0]).evaluate()
    assert accuracy is not None and accuracy.item() == 0.5


# --- numbers that are not finite ---


class Flaky(nn.Module):
    """A loss that is NaN when told so."""

    def __init__(self) -> None:
        super().__init__()
        self.bad = False

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss = nn.functional.mse_loss(output, target)
        return loss * (math.nan if self.bad else 1.0)


def test_a_weight_step_that_is_not_finite_updates_nothing() -> None:
    loss = Flaky()
    job = make_search(Planted(), task=Task(loss=nn.functional.mse_loss, train_loss=loss))
    before, loss.bad = snapshot(job.model), True
    job.weight_step()
    assert changed(job.model, before) == set()
    loss.bad = False
    job.weight_step()
    assert changed(job.model, before) and job.recovery.bad["weight"] == 0


def test_a_bad_step_is_named_with_its_candidates() -> None:
    loss = Flaky()
    loss.bad = True
    job = make_search(Planted(), task=Task(loss=nn.functional.mse_loss, train_loss=loss))
    job.weight_gates = lambda: [1, 0]  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="not finite at step 0 .active: first=right second=none"):
        job.weight_step()


def test_a_bad_step_leaves_no_trace_in_statistics() -> None:
    """BN statistics, users' buffers, momenta: all as before."""
    data = [(torch.full((8, 4), math.nan), torch.zeros(8, 4)), *regression()]
    job = make_search(StatefulNet(), data=data)
    job.model.train()
    before = snapshot(job.model)
    with pytest.warns(UserWarning, match="not finite"):
        job.weight_step()
    assert changed(job.model, before) == set()
    assert not any(k.startswith("weight_optimizer") for k in job.state()[0])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["weight", "architecture"])
def test_too_many_in_a_row_go_back_with_a_lower_rate_and_then_give_up(kind: str) -> None:
    bad = Flaky()
    bad.bad = True
    losses = {"train_loss": Flaky(), "loss": Flaky()}
    losses["train_loss" if kind == "weight" else "loss"] = bad
    job = make_search(Planted(), task=Task(**losses), warmup_epochs=0, epochs=9)
    with pytest.raises(UserError, match=f"{kind} step's value was not finite 5 times") as error:
        run_loop(job)
    assert "learning_rate (0.01)" in str(error.value) and "going back 3 times" in str(error.value)
    assert job.step == 4 and job.recovery.factor == 1 / 8


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_lower_rate_saves_a_search_and_resuming_stays_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes back to the anchor at step 6, not to the start, and ends."""
    steps, saved = [], []

    def watch(job: Search) -> None:
        steps.append(job.step)
        tensors, values = job.state()
        saved.append(({k: v.detach().clone() for k, v in tensors.items()}, json.dumps(values)))

    whole = diverging_search(monkeypatch)
    run_loop(whole, callbacks=[After(whole, watch)])
    assert whole.recovery.factor == 0.5 and steps.count(7) == 2 and steps.count(6) == 1
    expected = snapshot(whole.model)
    last_good = steps.index(12) + 1 + steps[steps.index(12) + 1 :].index(12)
    for at in (last_good, len(saved) - 3):  # after the return
        resumed = diverging_search(monkeypatch)
        resumed.load(saved[at][0], json.loads(saved[at][1]))
        run_loop(resumed)
        assert resumed.recovery.factor == 0.5
        assert changed(resumed.model, expected) == set()
        assert torch.equal(resumed.supernet.alpha, whole.supernet.alpha)


def test_buffers_that_a_state_dict_leaves_out_are_part_of_the_state() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.op = MixedOp([nn.Linear(4, 4), nn.Linear(4, 4)])
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.op(x)

    job, other = make_search(Counting()), make_search(Counting())
    job.model.train()
    job.weight_step()
    other.load(*job.state())
    assert other.model.calls == 1


class Greedy(nn.Module):
    """Needs more memory than there is for more than 3 examples; torch's own message."""

    def __init__(self) -> None:
        super().__init__()
        self.op = MixedOp([nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 3:
            torch.empty(1 << 55)
        out: Tensor = self.op(x)
        return out


def test_out_of_memory_names_a_batch_that_fits() -> None:
    with pytest.raises(UserError, match="a batch of 8 needs too much memory: a batch of 2 fits"):
        run_loop(make_search(Greedy()))


class Hungry(nn.Module):
    """A candidate that needs too much memory for more than `most` examples."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.linear = most, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            torch.empty(1 << 55)
        out: Tensor = self.linear(x)
        return out


def test_a_batch_that_fits_is_found_on_the_path_that_did_not() -> None:
    """The first candidate, which a model without gates runs, would fit any batch."""
    model = MixedOp([nn.Linear(4, 4), Hungry(most=1)])
    with pytest.raises(UserError, match="a batch of 8 needs too much memory: a batch of 1 fits"):
        run_loop(make_search(model))


def test_a_batch_that_fits_is_found_for_an_architecture_step() -> None:
    """Two candidates at once, where a weight step runs one."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.op = MixedOp([nn.Linear(4, 4), nn.Linear(4, 4)])

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 2 and isinstance(self.op.gate, Mixture):
                torch.empty(1 << 55)
            out: Tensor = self.op(x)
            return out

    with pytest.raises(UserError, match="a batch of 8 needs too much memory: a batch of 2 fits"):
        run_loop(make_search(Two(), "darts", warmup_epochs=0))


def test_correct_may_count_in_plain_numbers() -> None:
    def correct(output: Tensor, target: Tensor) -> int:
        return int((output - target).abs().sum(1).lt(1).sum())

    task = Task(loss=nn.functional.mse_loss, correct=correct)  # type: ignore[arg-type]
    job = make_search(Planted(), task=task, warmup_epochs=0)
    run_loop(job)
    assert job.step == job.schedule.total


def test_another_error_of_the_model_keeps_its_traceback() -> None:
    def broken(output: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("a bug of the user's own")

    with pytest.raises(RuntimeError, match="own"):
        run_loop(make_search(Planted(), task=Task(loss=broken)))


@pytest.mark.parametrize("name", ["two_path", "full_path", "reinforce", "darts", "gumbel"])
def test_an_architecture_step_that_is_not_finite_leaves_no_trace(name: str) -> None:
    loss = Flaky()
    job = make_search(Planted(), name, task=Task(loss=loss), epochs=20)
    job.architecture_step()
    alpha, state = job.supernet.alpha.detach().clone(), job.estimator.state()
    loss.bad = True
    job.architecture_step()
    assert torch.equal(job.supernet.alpha, alpha) and job.estimator.state() == state
    loss.bad = False
    for _ in range(10):  # Reinforce may draw networks that are all alike
        job.architecture_step()
    assert not torch.equal(job.supernet.alpha, alpha)
    assert bool(torch.isfinite(job.supernet.alpha).all())


# --- what it knows ---


def entropy(supernet: Supernet) -> float:
    return mean_entropy(supernet.probabilities(), supernet.mask)


def test_entropy_is_relative_to_the_number_of_candidates() -> None:
    model = nn.Sequential(*[MixedOp([Scale(1.0)] * n) for n in (2, 8, 1)])
    assert entropy(Supernet(model)) == pytest.approx(1.0)
    decided = supernet_with(model, [[900.0], [900.0], [0.0]])
    assert entropy(decided) == pytest.approx(0.0)
    half = supernet_with(model, [[900.0], [0.0], [0.0]])
    assert entropy(half) == pytest.approx(0.5)
    assert entropy(Supernet(MixedOp([Scale(1.0)]))) == 0.0


@pytest.mark.parametrize("candidates", [3, 5, 7, 11])
def test_entropy_of_nothing_decided_is_one_and_no_more(candidates: int) -> None:
    """Rounding of 32 bits made it more, which a record's check refuses."""
    for choices in range(1, 40):
        uniform = torch.full((choices, candidates), 1 / candidates)
        entropy = mean_entropy(uniform, torch.ones_like(uniform, dtype=torch.bool))
        assert 1 - 1e-6 < entropy <= 1
