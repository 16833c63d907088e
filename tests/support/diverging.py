"""A search that diverges, and recovers by a lower learning rate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from toys import make_search

from proxylessnas.core.search import Search
from proxylessnas.core.supernet import MixedOp, Residual, Zero
from proxylessnas.training import faults as recovery
from proxylessnas.training.task import Task


class StatefulNet(nn.Module):
    """Every kind of state that a step may change: statistics, power iterations, moving means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.first = MixedOp([candidate() for _ in range(3)])
        self.second = Residual(MixedOp({"a": candidate(), "b": candidate(), "zero": Zero()}))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.stem(x)))


class DivergingLoss(nn.Module):
    """NaN from step `start` on, while the learning rate is over `limit`."""

    def __init__(self, limit: float, start: int) -> None:
        super().__init__()
        self.limit, self.start = limit, start
        self.job: Search | None = None

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        assert self.job is not None
        (group,) = self.job.weight_optimizer.param_groups
        bad = self.job.step >= self.start and group["lr"] > self.limit
        return nn.functional.mse_loss(output, target) * (math.nan if bad else 1.0)


def diverging_search(monkeypatch: pytest.MonkeyPatch) -> Search:
    monkeypatch.setattr(recovery, "ANCHOR_EVERY", 6)
    loss = DivergingLoss(limit=0.006, start=8)
    task = Task(loss=nn.functional.mse_loss, train_loss=loss)
    torch.manual_seed(0)
    loss.job = make_search(StatefulNet(), task=task, warmup_epochs=2, epochs=6, learning_rate=0.01)
    return loss.job


def candidate() -> nn.Module:
    return nn.Sequential(
        spectral_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4), nn.Dropout(0.2), MovingMean()
    )


class MovingMean(nn.Module):
    """A moving mean, kept by putting a new tensor in the place of the buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean
