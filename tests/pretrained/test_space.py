"""The space around a teacher: scores, prior, search, derived networks, baselines."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from proxylessnas.config import DeriveSettings, SearchSettings, TrainSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import decode
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import MixedOp, Supernet, softmax
from proxylessnas.data.batches import LoaderBatches
from proxylessnas.hardware.costs import count_costs
from proxylessnas.hardware.trace import trace
from proxylessnas.pretrained.candidates import BlockFits, block_inputs
from proxylessnas.pretrained.distil import distilled, divergence
from proxylessnas.pretrained.scores import mean_scores, replacement_scores, tempered
from proxylessnas.pretrained.space import (
    largest_within,
    most_probable,
    prior,
    rescored,
    space_around,
    uniform_network,
)
from proxylessnas.spaces.blocks import Network
from proxylessnas.training.callbacks import mean_entropy
from proxylessnas.training.device import Machine
from proxylessnas.training.loop import run_loop
from proxylessnas.training.optimizers import gradients
from proxylessnas.training.task import Task
from proxylessnas.training.train import Training
from tests.support.pretrained import small_teacher

IMAGES = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(3))
Candidates = list[dict[str, nn.Module]]


@pytest.fixture(scope="module")
def teacher() -> Network:
    return small_teacher()


@pytest.fixture(scope="module")
def fits(teacher: Network) -> list[BlockFits]:
    inputs = block_inputs(teacher, [IMAGES])
    return [BlockFits(b, x) for b, x in zip(teacher.blocks, inputs, strict=True)]


@pytest.fixture(scope="module")
def candidates(fits: list[BlockFits]) -> Candidates:
    return [fit.candidates((2 / 3, 1 / 3)) for fit in fits]


@pytest.fixture(scope="module")
def scores(teacher: Network, candidates: Candidates) -> list[dict[str, float]]:
    return replacement_scores(teacher, candidates, IMAGES.split(9))


@pytest.fixture
def supernet(teacher: Network, candidates: Candidates) -> Supernet:
    return Supernet(copy.deepcopy(space_around(teacher, candidates)))


def outputs(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(IMAGES)


def test_the_first_network_of_the_space_is_the_teacher(
    teacher: Network, supernet: Supernet
) -> None:
    assert supernet.names == ("blocks.1", "blocks.2.branch", "blocks.3.branch")
    assert torch.equal(outputs(supernet.model), outputs(teacher))
    derived = supernet.derive([0, 0, 0])
    assert torch.equal(outputs(derived), outputs(teacher))
    assert not [m for m in derived.modules() if isinstance(m, MixedOp)]


def test_left_out_blocks_derive_to_nothing(supernet: Supernet) -> None:
    zeros = [len(names) - 1 for names in supernet.candidates]
    derived = supernet.derive([0, *zeros[1:]])
    assert [type(b) for b in derived.blocks[2:]] == [nn.Identity, nn.Identity]
    with supernet.active([0, *zeros[1:]]) as path:
        assert torch.equal(outputs(path), outputs(derived))


def test_a_score_is_the_divergence_of_the_derived_network(
    teacher: Network, supernet: Supernet, scores: list[dict[str, float]]
) -> None:
    expected = log_softmax(outputs(teacher), 1)
    for choice, names in enumerate(supernet.candidates):
        for index, name in enumerate(names):
            indices = [index if m == choice else 0 for m in range(len(supernet.names))]
            student = log_softmax(outputs(supernet.derive(indices)), 1)
            kl = float(kl_div(student, expected, log_target=True, reduction="batchmean"))
            assert scores[choice + 1][name] == pytest.approx(kl, rel=1e-3, abs=1e-6)
    assert scores[0] == {"k3_w8": 0.0}


def test_scores_around_another_network(
    teacher: Network, supernet: Supernet, candidates: Candidates
) -> None:
    around = (2, 3, 1)
    names = [c[i] for c, i in zip(supernet.candidates, around, strict=True)]
    again = replacement_scores(teacher, candidates, IMAGES.split(9), around=["", *names])
    expected = log_softmax(outputs(teacher), 1)
    for choice, candidate in ((0, 0), (0, 2), (1, 0), (1, 3), (2, 1), (2, 6)):
        indices = [candidate if m == choice else j for m, j in enumerate(around)]
        student = log_softmax(outputs(supernet.derive(indices)), 1)
        kl = float(kl_div(student, expected, log_target=True, reduction="batchmean"))
        name = supernet.candidates[choice][candidate]
        assert again[choice + 1][name] == pytest.approx(kl, rel=1e-3, abs=1e-6)


def test_rescoring_never_chooses_a_network_farther_from_the_teacher(
    teacher: Network, supernet: Supernet, candidates: Candidates, scores: list[dict[str, float]]
) -> None:
    costs = count_costs(supernet, trace(supernet, (IMAGES[:1],)))
    low, high = costs.range(supernet.mask)[0]
    limited = costs.limited({"macs": low + 0.4 * (high - low)})
    expected = log_softmax(outputs(teacher).double(), 1)

    def divergence(rounds: int) -> float:
        around = partial(replacement_scores, teacher, candidates, IMAGES.split(9))
        again = rescored(
            supernet,
            lambda names: around(around=names),
            scores,
            partial(most_probable, supernet, limited),
            rounds=rounds,
        )
        alpha = prior(supernet, again).masked_fill(~supernet.mask, -math.inf)
        indices = next(decode(torch.log_softmax(alpha, 1), supernet.mask, limited))
        student = log_softmax(outputs(supernet.derive(indices)).double(), 1)
        return float(kl_div(student, expected, log_target=True, reduction="batchmean"))

    first, one, three = divergence(0), divergence(1), divergence(3)
    assert one == pytest.approx(first)  # of one round there is one network to choose from
    assert three <= first * (1 + 1e-6)


def test_the_mean_of_scores_is_of_what_a_block_adds() -> None:
    several = [[{"a": 0.0, "b": 2.0}], [{"a": 5.0, "b": 4.0}]]
    assert mean_scores(several) == [{"a": 0.5, "b": 1.0}]


def test_the_prior_follows_the_scores(supernet: Supernet, scores: list[dict[str, float]]) -> None:
    alpha = prior(supernet, scores)
    p = softmax(alpha, supernet.mask)
    assert mean_entropy(p, supernet.mask) == pytest.approx(0.5, abs=1e-6)
    for row, names, named in zip(alpha, supernet.candidates, scores[1:], strict=True):
        assert row.argmax() == 0
        # One scale for all: differences of log p are those of the KLs.
        scale = -float(row[1]) / named[names[1]]
        assert [-float(a) / scale for a in row[: len(names)]] == pytest.approx(
            [named[n] for n in names]
        )
        assert scale == pytest.approx(-float(alpha[0, 1]) / scores[1][supernet.candidates[0][1]])


def test_a_prior_within_limits_keeps_them_in_expectation(
    supernet: Supernet, scores: list[dict[str, float]]
) -> None:
    costs = count_costs(supernet, trace(supernet, (IMAGES[:1],)))
    low, high = costs.range(supernet.mask)[0]
    for share in (0.3, 0.6):
        limited = costs.limited({"macs": low + share * (high - low)})
        p = softmax(prior(supernet, scores, limited), supernet.mask)
        assert float(limited.expected(p)[0]) == pytest.approx(limited.limit("macs"), rel=1e-6)
        assert mean_entropy(p, supernet.mask) == pytest.approx(0.5, abs=1e-3)
    loose = costs.limited({"macs": 2 * high})
    assert torch.equal(prior(supernet, scores, loose), prior(supernet, scores))


def test_the_scale_of_the_prior_changes_no_decoded_network(
    supernet: Supernet, scores: list[dict[str, float]]
) -> None:
    costs = count_costs(supernet, trace(supernet, (IMAGES[:1],)))
    low, high = costs.range(supernet.mask)[0]
    limited = costs.limited({"macs": (low + high) / 2})
    decoded = {
        next(
            decode(
                torch.log_softmax(a.masked_fill(~supernet.mask, -math.inf), 1),
                supernet.mask,
                limited,
            )
        )
        for a in (prior(supernet, scores, entropy=e) for e in (0.2, 0.5, 0.8))
    }
    (indices,) = decoded
    assert costs.of(indices)[0] <= (low + high) / 2
    assert any(indices)


def search_of(supernet: Supernet, alpha: Tensor, costs: Costs, *, steps: int = 6) -> Search:
    labels = torch.randint(5, (24,), generator=torch.Generator().manual_seed(1))
    loader = list(zip(IMAGES.split(8), labels.split(8), strict=True))
    return Search.from_settings(
        SearchSettings(batch_size=8),
        costs=costs,
        train=LoaderBatches(loader, name="train"),
        valid=LoaderBatches(loader, name="valid"),
        supernet=supernet,
        task=Task.classification(),
        schedule=Schedule.architecture_alone(steps),
        alpha=alpha,
        frozen_statistics=True,
    )


def test_a_search_from_a_prior_moves_alpha_alone(
    supernet: Supernet, scores: list[dict[str, float]]
) -> None:
    costs = count_costs(supernet, trace(supernet, (IMAGES[:1],)))
    alpha = prior(supernet, scores)
    search = search_of(supernet, alpha, costs)
    assert torch.equal(supernet.alpha.detach(), alpha)
    before = copy.deepcopy(supernet.model.state_dict())
    run_loop(search)
    assert search.step == 6
    assert not torch.equal(supernet.alpha.detach(), alpha)
    after = supernet.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_frozen_statistics_are_used_in_architecture_steps(
    teacher: Network, supernet: Supernet
) -> None:
    """The loss of a step through the teacher's path is the teacher's in evaluation mode."""
    alpha = torch.zeros_like(supernet.alpha.detach())
    alpha[:, 0] = 50.0  # the teacher's candidate, always
    search = search_of(supernet, alpha, Costs.free(*supernet.mask.shape), steps=1)
    run_loop(search)
    assert search.latest.estimate is not None
    images, labels = next(iter(search.valid.epoch(0)))
    with torch.no_grad():
        expected = nn.functional.cross_entropy(teacher(images), labels)
    assert search.latest.estimate.loss == pytest.approx(float(expected), rel=1e-5)


def test_nothing_is_recalibrated_where_no_images_are_for_it() -> None:
    assert DeriveSettings(recalibrate_images=0).recalibrate_images == 0


# --- baselines ---


def test_uniform_networks(teacher: Network, fits: list[BlockFits]) -> None:
    assert torch.equal(outputs(uniform_network(teacher, fits, 1.0)), outputs(teacher))
    half = uniform_network(teacher, [None, *fits[1:]], 0.5)
    widths = [m.out_channels for m in half.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert widths == [8, 24, 48, 48]


def test_the_largest_network_within_a_latency() -> None:
    asked: list[float] = []

    def latency(value: float) -> float:
        asked.append(value)
        return 10 * value

    values = [i / 100 for i in range(1, 101)]
    assert largest_within(values, lambda value: latency(value) <= 4.25) == 0.42
    assert len(asked) <= 8
    assert largest_within(values, lambda value: latency(value) <= 0.05) is None
    assert largest_within(values, lambda value: latency(value) <= 100.0) == 1.0


# --- distillation ---


def test_distillation_is_a_mixture_of_two_losses(teacher: Network) -> None:
    torch.manual_seed(5)
    student = small_teacher()
    student.head[-1].reset_parameters()
    labels = torch.randint(5, (24,))
    task = Task.classification(label_smoothing=0.1)
    output = student(IMAGES)
    hard = task.weight_loss(output, labels, IMAGES)
    soft = divergence(output, outputs(teacher), 2.0)
    for share in (0.0, 0.7, 1.0):
        loss = distilled(task, teacher, share=share).weight_loss(output, labels, IMAGES)
        assert float(loss) == pytest.approx((1 - share) * float(hard) + share * float(soft))
    assert float(divergence(output, output, 3.0)) == pytest.approx(0, abs=1e-6)


def test_the_gradient_of_a_divergence_keeps_its_size() -> None:
    def gradient(temperature: float) -> Tensor:
        logits = torch.tensor([[0.02, -0.01, 0.03]], requires_grad=True)
        divergence(logits, torch.tensor([[-0.03, 0.01, 0.02]]), temperature).backward()
        assert logits.grad is not None
        return logits.grad

    torch.testing.assert_close(gradient(1.0), gradient(4.0), rtol=0.05, atol=1e-4)


def test_a_training_step_leaves_the_teacher_alone(teacher: Network) -> None:
    student = copy.deepcopy(teacher).train()
    wise = copy.deepcopy(teacher).train()  # not in evaluation mode, and still nothing moves
    before = copy.deepcopy(wise.state_dict())
    task = distilled(Task.classification(), wise)
    gradients(student, task, Machine(), (IMAGES, torch.zeros(24, dtype=torch.long)))
    assert all(torch.equal(v, before[k]) for k, v in wise.state_dict().items())
    assert all(p.grad is None for p in wise.parameters()) and wise.training
    assert any(p.grad is not None for p in student.parameters())


def test_evaluation_knows_no_teacher(teacher: Network) -> None:
    task = replace(Task.classification(), correct=None)
    assert distilled(task, teacher).loss is task.loss


def test_fine_tuning_keeps_the_statistics(teacher: Network) -> None:
    student = copy.deepcopy(teacher)
    before = copy.deepcopy(student.state_dict())
    loader = [(IMAGES, torch.randint(5, (24,)))]
    run_loop(
        Training(
            network=student,
            task=distilled(Task.classification(), teacher),
            train=LoaderBatches(loader, name="train"),
            settings=TrainSettings(epochs=2, frozen_statistics=True),
        )
    )
    after = student.state_dict()
    assert {k for k, _ in student.named_buffers() if not torch.equal(after[k], before[k])} == set()
    assert not torch.equal(after["blocks.1.0.1.weight"], before["blocks.1.0.1.weight"])


def test_tempered_scores_keep_proportions_within_a_block_and_bring_blocks_together() -> None:
    scores = [
        {"own": 0.0, "a": 0.04, "b": 0.01, "zero": 9.0},
        {"own": 0.0, "a": 0.0004},
        {"own": 0.0},
    ]
    tempered_scores = tempered(scores)
    assert tempered_scores[0] == pytest.approx({"own": 0.0, "a": 0.2, "b": 0.05, "zero": 45.0})
    assert tempered_scores[1] == pytest.approx({"own": 0.0, "a": 0.02})  # 100 times less: 10 times
    assert tempered_scores[2] == {"own": 0.0}
