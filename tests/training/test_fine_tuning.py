"""What a training may do beside its steps: warm up, average, keep the best, freeze statistics."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import regression, snapshot

from proxylessnas.config import TeachSettings, TrainSettings
from proxylessnas.data.batches import LoaderBatches
from proxylessnas.errors import ConfigError
from proxylessnas.training.averages import BestWeights, WeightAverage
from proxylessnas.training.evaluate import evaluate
from proxylessnas.training.loop import run_loop
from proxylessnas.training.optimizers import scheduled
from proxylessnas.training.task import Task, balanced_weights
from proxylessnas.training.train import Training

EVERYTHING: dict[str, Any] = {
    "optimizer": "adamw",
    "warmup_epochs": 0.6,
    "classifier_rate": 3.0,
    "average_decay": 0.9,
    "keep_best": "epochs",
}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 4))


def training(**changes: Any) -> Training:
    torch.manual_seed(0)
    settings = TrainSettings(**{"epochs": 3, "learning_rate": 0.05, **changes})
    batches = LoaderBatches(regression(), name="train")
    valid = LoaderBatches(regression(batches=2), name="valid")
    return Training(network(), Task(loss=nn.functional.mse_loss), batches, settings, valid=valid)


@pytest.mark.parametrize("stop", [1, 4, 5, 11])
@pytest.mark.parametrize(
    "changes",
    [
        EVERYTHING,
        {**EVERYTHING, "keep_best": "end"},
        {"average_decay": 0.5},
        {"optimizer": "adamw"},
    ],
)
def test_resumed_training_is_bit_identical(changes: dict[str, Any], stop: int) -> None:
    whole, first = training(**changes), training(**changes)
    run_loop(whole)
    undo = first.prepare()
    for _ in range(stop):
        first.take_step()
        first.step += 1
    tensors, values = first.state()
    saved = {k: v.clone() for k, v in tensors.items()}
    undo()
    second = training(**changes)
    second.load(saved, values)
    run_loop(second)
    expected, state = whole.network.state_dict(), second.network.state_dict()
    assert [k for k in expected if not torch.equal(expected[k], state[k])] == []
    if whole.best is not None:
        assert second.best is not None and second.best.values() == whole.best.values()


def test_the_rate_grows_in_a_line_and_falls_as_a_cosine() -> None:
    rates = [scheduled(2.0, step, 14, warmup=4) for step in range(14)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4:] == [1 + math.cos(math.pi * step / 10) for step in range(10)]
    assert scheduled(2.0, 0, 14) == 2.0


def test_the_classifier_has_a_rate_of_its_own() -> None:
    job = training(classifier_rate=7.0, epochs=2)
    shares = {
        name: group["share"]
        for group in job.optimizer.param_groups
        for name, parameter in job.model.named_parameters()
        if any(parameter is p for p in group["params"])
    }
    assert shares == {n: 7.0 if n.startswith("3") else 1.0 for n, _ in job.model.named_parameters()}
    job.prepare()
    job.take_step()
    assert {g["lr"] for g in job.optimizer.param_groups} == {0.05, 7 * 0.05}


def test_the_average_is_the_recursion_written_out() -> None:
    model = nn.Linear(2, 1)
    average = WeightAverage(model, 0.8)
    expected = model.weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            model.weight += torch.randn(1, 2)
        average.update(step)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.average["weight"], expected)
    learned = snapshot(model)
    with average.in_place():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, learned["weight"])
    average.finish()
    torch.testing.assert_close(model.weight.detach(), expected)


def test_the_best_weights_are_those_with_the_highest_score() -> None:
    best, model = BestWeights(), nn.Linear(2, 1)
    states = []
    for step, score in enumerate([(0.5, -2.0), (0.5, -1.0), (0.4, 0.0), (0.5, math.nan)]):
        with torch.no_grad():
            model.weight.fill_(step)
        states.append(snapshot(model))
        best.offer(score, step, model)
    assert (best.step, best.score, best.first, best.since) == (1, (0.5, -1.0), (0.5, -2.0), 2)
    assert torch.equal(best.state["weight"], states[1]["weight"])


def test_training_ends_with_the_weights_that_scored_best() -> None:
    job = training(keep_best="epochs", epochs=6)
    run_loop(job)
    assert job.best is not None and job.best.step is not None and job.valid is not None
    score = evaluate(job.network, job.task, job.valid)
    assert job.best.score[1] == -score.loss and job.best.step > 0


@pytest.mark.filterwarnings("ignore:.*not finite")
@pytest.mark.parametrize("when", ["end", "epochs"])
@pytest.mark.parametrize("rate", [3.0, 300.0])
def test_a_wrong_rate_leaves_the_weights_from_before_the_first_step(rate: float, when: str) -> None:
    good = training(epochs=40)
    run_loop(good)
    job = training(keep_best=when, learning_rate=rate, momentum=0.0, average_decay=0.5)
    job.model.load_state_dict(good.network.state_dict())
    before = snapshot(job.network)
    job.average = WeightAverage(job.model, 0.5)
    run_loop(job)
    assert job.best is not None and job.best.step == 0
    assert [k for k, v in job.network.state_dict().items() if not torch.equal(v, before[k])] == []


def test_at_the_end_only_the_last_weights_and_the_first_are_compared() -> None:
    job, plain = training(keep_best="end", average_decay=0.5), training(average_decay=0.5)
    run_loop(plain)
    run_loop(job)
    assert job.best is not None and job.best.step == job.total == job.best.latest
    expected = plain.network.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in job.network.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*not finite")
def test_patience_ends_the_training() -> None:
    good = training(epochs=40)
    run_loop(good)
    job = training(keep_best="epochs", patience=2, learning_rate=3.0, epochs=20)
    job.model.load_state_dict(good.network.state_dict())
    run_loop(job)
    assert job.step == 2 * len(job.train) == job.total
    with pytest.raises(ConfigError, match="keep_best"):
        TrainSettings(patience=2)


def test_without_a_validation_part_there_is_no_best() -> None:
    batches = LoaderBatches(regression(), name="train")
    task, settings = Task(loss=nn.functional.mse_loss), TrainSettings(keep_best="end")
    with pytest.raises(ConfigError, match="validation part"):
        Training(network(), task, batches, settings)


def test_frozen_statistics_stay_and_all_else_learns() -> None:
    job = training(frozen_statistics=True)
    before = snapshot(job.network)
    run_loop(job)
    after = job.network.state_dict()
    statistics = {k for k in before if "running" in k or "tracked" in k}
    assert {k for k in before if torch.equal(before[k], after[k])} == statistics
    assert all(module.training for module in job.network.modules())


def test_all_classes_count_alike_with_balanced_weights() -> None:
    counts = [90, 9, 1, 0]
    weights = balanced_weights(counts)
    shares = weights * torch.tensor(counts)
    torch.testing.assert_close(shares, torch.tensor([100 / 3] * 3 + [0.0]))
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    outputs = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    task = Task.classification(class_weights=weights)
    losses = nn.functional.cross_entropy(outputs, labels, reduction="none")
    means = torch.stack([losses[labels == c].mean() for c in range(3)])
    assert task.train_loss is not None
    torch.testing.assert_close(task.train_loss(outputs, labels), means.mean())
    torch.testing.assert_close(task.loss(outputs, labels), losses.mean())


def test_adamw_is_pytorchs_with_decay_on_matrices_alone() -> None:
    job = training(optimizer="adamw", epochs=1, weight_decay=0.1, learning_rate=0.01)
    model = copy.deepcopy(job.model).train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    job.prepare()
    job.take_step()
    inputs, target = job.batch
    dropped = _gradients_of(job)
    assert inputs.shape == target.shape
    for parameter, gradient in zip(model.parameters(), dropped, strict=True):
        parameter.grad = gradient
    optimizer.step()
    for ours, theirs in zip(job.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def _gradients_of(job: Training) -> list[Tensor]:
    """The latest step's gradients: Adam's first moment after one step is a tenth of them."""
    states = [job.optimizer.state[p] for p in job.model.parameters()]
    assert all(int(state["step"]) == 1 for state in states)
    return [state["exp_avg"] / (1 - 0.9) for state in states]


def test_settings_of_teaching_are_a_trainings() -> None:
    settings = TeachSettings()
    assert settings.frozen_statistics and settings.keep_best == "end"
    assert settings.learning_rate <= 0.01  # far under that of training from scratch


# --- mixing ---


def classifying(**changes: Any) -> Training:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(8, 3, 6, 6, generator=generator), torch.arange(8) % 3) for _ in range(3)
    ]
    settings = TrainSettings(**{"epochs": 2, **changes})
    return Training(model, Task.classification(0.1), LoaderBatches(batches, name="train"), settings)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixed_labels_are_the_shares_of_the_images(mix: Any) -> None:
    pytest.importorskip("torchvision")
    plain, job = classifying(), classifying(mix=mix, mix_share=1.0)
    for other in (plain, job):
        other.prepare()
        other.take_step()
    (images, labels), (mixed, shares) = plain.batch, job.batch
    assert shares.shape == (8, 3) and torch.allclose(shares.sum(1), torch.ones(8))
    partner = images.roll(1, 0)
    targets = nn.functional.one_hot(labels, 3).float()
    if mix == "mixup":  # one share for the whole batch
        share = float(((mixed - partner) / (images - partner)).median())
        torch.testing.assert_close(mixed, share * images + (1 - share) * partner)
    else:  # every pixel is of one image or of the other
        of_image = (mixed == images).all(1)
        assert bool((of_image | (mixed == partner).all(1)).all())
        share = float(of_image[0].float().mean())
    torch.testing.assert_close(shares, share * targets + (1 - share) * targets.roll(1, 0))


def test_mixing_repeats_under_its_seed_and_trains() -> None:
    pytest.importorskip("torchvision")
    first, second = classifying(mix="mixup"), classifying(mix="mixup")
    run_loop(first)
    run_loop(second)
    states = first.network.state_dict(), second.network.state_dict()
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_what_cannot_be_mixed_is_named() -> None:
    pytest.importorskip("torchvision")
    job = training(mix="mixup")
    job.prepare()
    with pytest.raises(ConfigError, match=r"train\.mix is mixup, which takes images"):
        job.take_step()


@pytest.mark.parametrize("clip_norm", [1e-3, 1000.0, 0.0])
def test_a_gradient_is_cut_to_its_norm(clip_norm: float) -> None:
    """With plain SGD at a rate of 1 the step is the gradient itself."""
    plain = {"learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0}

    def step(cut_to: float) -> Tensor:
        job = training(**plain, clip_norm=cut_to)
        before = [p.detach().clone() for p in job.model.parameters()]
        undo = job.prepare()
        job.take_step()
        undo()
        moved = zip(before, job.model.parameters(), strict=True)
        return torch.cat([(p - b).detach().flatten() for b, p in moved])

    whole, cut = step(0.0), step(clip_norm)
    if clip_norm == 1e-3:
        assert float(cut.norm()) == pytest.approx(1e-3, rel=0.02)  # float32 differences
        assert torch.nn.functional.cosine_similarity(cut, whole, dim=0) > 0.99
    else:
        assert torch.equal(cut, whole)
