"""Training, evaluating and recalibrating one network."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import After, changed, regression, snapshot

from proxylessnas.config import TrainSettings
from proxylessnas.data.batches import BatchStream, LoaderBatches
from proxylessnas.errors import DataError, UserError
from proxylessnas.training.evaluate import evaluate, recalibrate
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import Task, batch_size, call, split
from proxylessnas.training.train import Training, decay_groups


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 4))


def training(weights: int = 0, seed: int = 0, **changes: Any) -> Training:
    torch.manual_seed(weights)
    settings = TrainSettings(**{"epochs": 3, "learning_rate": 0.05, **changes})
    batches = LoaderBatches(regression(), name="train")
    return Training(network(), Task(loss=nn.functional.mse_loss), batches, settings, seed=seed)


def everything(job: Training) -> tuple[dict[str, Tensor], str]:
    tensors, values = job.state()
    return {k: v.detach().clone() for k, v in tensors.items()}, json.dumps(values)


def assert_same(a: tuple[dict[str, Tensor], str], b: tuple[dict[str, Tensor], str]) -> None:
    assert a[1] == b[1] and a[0].keys() == b[0].keys()
    assert [k for k, v in a[0].items() if not torch.equal(v, b[0][k])] == []


# --- training ---


def test_training_learns() -> None:
    job, batches = training(epochs=30), LoaderBatches(regression(), name="train")
    before = evaluate(job.network, job.task, batches).loss
    run_loop(job)
    assert evaluate(job.network, job.task, batches).loss < 0.5 * before


def test_training_is_deterministic_under_its_seed() -> None:
    first, second, other = training(), training(), training(seed=1)
    for job in (first, second, other):
        run_loop(job)
    assert_same(everything(first), everything(second))
    assert changed(first.network, snapshot(other.network))  # another dropout


@pytest.mark.parametrize("stop", [3, 4])
def test_resumed_training_is_bit_identical_to_never_stopped(stop: int) -> None:
    """In the middle of an epoch, and at its end."""

    def interrupt(job: Training) -> None:
        if job.step == stop:
            raise InterruptedError

    whole, stopped, resumed = training(), training(), training(weights=1)
    run_loop(whole)
    with pytest.raises(InterruptedError):
        run_loop(stopped, callbacks=[After(stopped, interrupt)])
    tensors, values = everything(stopped)
    resumed.load(tensors, json.loads(values))
    run_loop(resumed)
    assert_same(everything(resumed), everything(whole))


def test_the_learning_rate_falls_as_a_cosine() -> None:
    rates: list[float] = []
    job = training(epochs=2, learning_rate=0.4)
    after = After(job, lambda j: rates.append(j.optimizer.param_groups[0]["lr"]))
    run_loop(job, callbacks=[after])
    assert rates[0] == 0.4 and rates[4] == pytest.approx(0.2)
    assert rates == sorted(rates, reverse=True)


def test_there_is_no_weight_decay_on_norms_and_biases() -> None:
    decayed, free = decay_groups(network(), 0.1)
    assert decayed["weight_decay"] == 0.1 and [p.dim() for p in decayed["params"]] == [2, 2]
    assert free["weight_decay"] == 0.0 and all(p.dim() == 1 for p in free["params"])


def test_the_training_loss_is_the_tasks_own_where_it_has_one() -> None:
    job = training()
    job.task = Task(loss=nn.functional.mse_loss, train_loss=lambda output, _: output.sum() * 0 + 7)
    job.take_step()
    assert job.loss is not None and job.loss.item() == 7


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_loss_that_is_not_finite_updates_nothing_and_ends_after_five() -> None:
    job = training()
    job.task = Task(loss=lambda output, _: output.sum() * float("nan"))
    before = snapshot(job.network)
    with pytest.raises(UserError, match=r"not finite 5 times.*training's learning_rate"):
        run_loop(job)
    assert changed(job.network, before) == set()  # the norm's statistics too
    assert job.recovery.returns == 3


def test_a_gradient_that_is_not_finite_updates_nothing() -> None:
    """sqrt has an infinite slope at 0, where the loss itself is fine."""
    job = training()
    job.task = Task(loss=lambda output, _: (output.sum() * 0).sqrt())
    before = snapshot(job.network)
    with pytest.warns(UserWarning, match="training step's value was not finite at step 0"):
        job.take_step()
    assert job.loss is not None and job.loss == 0
    assert changed(job.network, before) == set()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_training_goes_on_with_half_the_rate_after_it_diverged() -> None:
    job = training(epochs=4)
    rates: list[float] = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        rates.append(job.optimizer.param_groups[0]["lr"])
        bad = job.step > 2 and job.recovery.returns == 0
        return nn.functional.mse_loss(output, target) * (float("nan") if bad else 1.0)

    job.task = Task(loss=loss)
    run_loop(job)
    assert job.step == job.total and job.recovery.factor == 0.5
    assert rates[8] == 0.5 * rates[0]


class _Dying(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(4), torch.zeros(4)


def test_a_loader_process_that_dies_is_one_line() -> None:
    job = training()
    loader = torch.utils.data.DataLoader(_Dying(), batch_size=2, num_workers=1)
    job.train = LoaderBatches(loader, name="train")
    job.stream = BatchStream(job.train)
    with pytest.raises(
        DataError, match=r"process that loads data died.*number of workers"
    ) as error:
        run_loop(job)
    assert "\n" not in str(error.value)


def test_training_out_of_memory_names_a_batch_that_fits() -> None:
    def greedy(output: Tensor, target: Tensor) -> Tensor:
        if len(output) > 4:
            torch.empty(1 << 55)
        return nn.functional.mse_loss(output, target)

    job = training()
    job.task = Task(loss=greedy)
    with pytest.raises(UserError, match="a batch of 8 needs too much memory: a batch of 4 fits"):
        run_loop(job)


# --- evaluating ---


def labelled(sizes: tuple[int, ...]) -> LoaderBatches:
    data = [(torch.eye(4)[:n] * 10, torch.tensor([0, 1, 0, 0])[:n]) for n in sizes]
    return LoaderBatches(data, name="valid")


def test_a_score_is_a_mean_over_examples_not_over_batches() -> None:
    score = evaluate(nn.Identity(), Task.classification(), labelled((4, 1)))
    assert score.examples == 5
    assert score.accuracy == pytest.approx(3 / 5)
    losses = nn.functional.cross_entropy(
        torch.cat((torch.eye(4), torch.eye(4)[:1])) * 10, torch.tensor([0, 1, 0, 0, 0])
    )
    assert score.loss == pytest.approx(losses.item())


def test_at_most_so_many_examples_are_seen() -> None:
    score = evaluate(nn.Identity(), Task.classification(), labelled((2, 2, 2)), examples=3)
    assert score.examples == 4  # whole batches


def test_a_task_without_a_right_answer_has_no_accuracy() -> None:
    score = evaluate(
        nn.Identity(), Task(loss=nn.functional.mse_loss), LoaderBatches(regression(), name="v")
    )
    assert score.accuracy is None and score.loss == 0.0


@pytest.mark.parametrize("mode", [True, False])
def test_evaluating_uses_evaluation_mode_and_changes_nothing(mode: bool) -> None:
    model, modes = network().train(mode), []
    model[2].register_forward_hook(lambda module, _, __: modes.append(module.training))
    before = snapshot(model)
    evaluate(model, Task(loss=nn.functional.mse_loss), LoaderBatches(regression(), name="v"))
    assert set(modes) == {False} and model.training == mode
    assert changed(model, before) == set()


@pytest.mark.parametrize("counted", [False, True])
def test_a_score_keeps_what_each_batch_said(counted: bool) -> None:
    def correct(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).abs().sum(1).lt(2).sum()

    model, data = nn.Linear(4, 4), regression()
    task = Task(loss=nn.functional.mse_loss, correct=correct if counted else None)
    score = evaluate(model, task, LoaderBatches(data, name="v"))
    with torch.no_grad():
        each = [-float(task.loss(model(x), y)) for x, y in data]
        right = [float(correct(model(x), y)) / len(y) for x, y in data]
    rank, batches = score.rank
    assert batches == pytest.approx(each) and rank == pytest.approx(sum(each) / len(each))
    assert score.value == pytest.approx(sum(right) / len(right) if counted else rank)
    assert score.examples == sum(len(y) for _, y in data)


# --- recalibration ---


def test_recalibration_is_the_plain_average_over_the_batches() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.9))
    nn.init.constant_(model[0].running_mean, 100.0)
    recalibrate(model, LoaderBatches(regression(), name="t"), examples=1000)
    means = torch.stack([x.mean(0) for x, _ in regression()])
    variances = torch.stack([x.var(0) for x, _ in regression()])
    torch.testing.assert_close(model[0].running_mean, means.mean(0))
    torch.testing.assert_close(model[0].running_var, variances.mean(0))


def test_recalibration_stops_after_so_many_examples() -> None:
    model = nn.BatchNorm1d(4)
    recalibrate(model, LoaderBatches(regression(), name="t"), examples=9)
    assert model.num_batches_tracked == 2


def test_recalibration_puts_modes_and_momenta_back_and_leaves_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.3), nn.BatchNorm1d(4))
    model.train()
    model[2].eval()
    before = snapshot(model)
    recalibrate(model, LoaderBatches(regression(), name="t"), examples=1000)
    assert [m.training for m in model] == [True, True, False]
    assert [m.momentum for m in model[1:]] == [0.3, 0.1]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert all(name.endswith(statistics) for name in changed(model, before))


def test_a_network_without_statistics_is_left_alone() -> None:
    class Untouchable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    recalibrate(Untouchable(), LoaderBatches(regression(), name="t"), examples=10)


# --- batches ---


@pytest.mark.parametrize(
    ("target", "size"),
    [
        (torch.zeros(7), 7),
        ({"boxes": torch.zeros(5, 4), "note": "x"}, 5),
        ([("a", torch.zeros(3))], 3),
        (torch.zeros(()), 1),
        (None, 1),
    ],
)
def test_the_size_of_a_batch_is_that_of_its_targets_first_tensor(target: Any, size: int) -> None:
    assert batch_size(target) == size


def test_inputs_are_spread_over_the_arguments() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x - y

    x, y = torch.tensor(5.0), torch.tensor(3.0)
    for inputs in ((x, y), [x, y], {"y": y, "x": x}):
        assert call(Two(), inputs).item() == 2.0
    assert call(nn.Identity(), x) is x


@pytest.mark.parametrize("batch", [torch.zeros(2, 3), (1, 2, 3), {"x": 1}])
def test_a_batch_that_is_no_pair_is_named(batch: Any) -> None:
    with pytest.raises(DataError, match="pair"):
        split(batch)
