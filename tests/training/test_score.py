"""What networks are chosen by: the loss as it would be if their logits were calibrated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from proxylessnas.data.batches import LoaderBatches
from proxylessnas.training.evaluate import Score, evaluate
from proxylessnas.training.task import TEMPERATURES, Task

LOGITS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
LABELS = (LOGITS + torch.randn(40, 5, generator=torch.Generator().manual_seed(1))).argmax(1)


def score(factor: float, task: Task | None = None) -> Score:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return factor * x

    parts = zip(LOGITS.split(15), LABELS.split(15), strict=True)  # the last one is smaller
    return evaluate(
        Scaled(), task or Task.classification(), LoaderBatches(list(parts), name="valid")
    )


def test_it_is_the_least_loss_over_temperatures_that_all_batches_share() -> None:
    losses = [nn.functional.cross_entropy(3 * LOGITS / t, LABELS).item() for t in TEMPERATURES]
    result = score(3.0)
    assert result.calibrated_loss == pytest.approx(min(losses))
    assert result.calibrated_loss < 0.9 * result.loss
    best = TEMPERATURES[losses.index(min(losses))]
    for loss, logits, labels in zip(
        result.calibrated_losses, LOGITS.split(15), LABELS.split(15), strict=True
    ):
        assert loss == pytest.approx(nn.functional.cross_entropy(3 * logits / best, labels).item())
    assert result.rank[0] == -result.calibrated_loss


def test_it_does_not_depend_on_how_sure_a_network_is() -> None:
    one, other = score(1.0), score(2 ** (3 / 4))  # three steps of the temperatures apart
    assert one.loss != pytest.approx(other.loss)
    assert one.rank[0] == pytest.approx(other.rank[0])


def test_a_loss_of_the_users_own_is_taken_as_it_is() -> None:
    own = Task(loss=lambda output, target: (output.sum(1) - target).abs().mean())
    result = score(2.0, own)
    assert result.rank[0] == -result.loss and result.accuracy is None
