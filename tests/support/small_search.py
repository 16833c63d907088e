"""A small search by the Python call, and its refusals, for tests of loaders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from proxylessnas import MixedOp, Result, SearchSettings, search
from proxylessnas.config import DeriveSettings
from proxylessnas.errors import UserError
from proxylessnas.hardware.runtimes.fake import FakeRuntime

Batch = tuple[Any, Any]
CLASSES, SIZE = 3, 6
SHORT = SearchSettings(warmup_epochs=1, epochs=1, learning_rate=0.01)


class Net(nn.Module):
    """Small images to logits; batch normalisation sees one number a channel and example."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.op = MixedOp([nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 1)])
        self.head, self.norm = nn.Linear(4, CLASSES), nn.BatchNorm1d(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.head(torch.relu(self.op(x)).mean((2, 3))))
        return out


def images(batches: int = 3, batch: int = 8, size: int = SIZE, seed: int = 1) -> list[Batch]:
    made = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(batch, 1, size, size, generator=made),
            torch.randint(CLASSES, (batch,), generator=made),
        )
        for _ in range(batches)
    ]


def data_set(examples: int = 17, seed: int = 1) -> TensorDataset:
    ((x, y),) = images(1, examples, seed=seed)
    return TensorDataset(x, y)


def right(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).sum()


def searched(model: nn.Module | None = None, **changes: Any) -> Result:
    """A search on a runtime that counts what was measured on it."""
    given = {
        **{"train": images(), "valid": images(seed=2), "loss": cross_entropy, "correct": right},
        **{"example_inputs": (torch.zeros(1, 1, SIZE, SIZE),), "settings": SHORT, "quiet": True},
        "derive": DeriveSettings(arch_steps=2, score_images=16, recalibrate_images=16),
        **changes,
    }
    return search(Net() if model is None else model, **given)


def refused(model: nn.Module | None = None, **changes: Any) -> str:
    """The one line of a refusal, before anything was measured, that leaves no trace."""
    runtime, model = FakeRuntime(), Net() if model is None else model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        searched(model, **{"runtime": runtime, "target_latency": "0.9x", **changes})
    assert runtime.loaded == 0 and "\n" not in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    return str(error.value)


def changed(batches: list[Batch], change: Callable[[Tensor, Tensor], Any]) -> list[Any]:
    return [change(x, y) for x, y in batches]
