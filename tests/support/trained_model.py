"""A small trained network, its data, and `specialise` on the fake runtime."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from small_models import Block
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import proxylessnas
from proxylessnas.config import MeasureSettings
from proxylessnas.hardware.runtimes.fake import FakeRuntime

MEASURE = MeasureSettings(network_rounds=2, runs=2, warmup=1)


def batches(seed: int, count: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Images [16, 1, 10, 10] whose brighter half is the class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 16, 1, 10, 10, generator=generator)
    labels = torch.randint(2, (count, 16), generator=generator)
    images[:, :, :, :5] += labels[:, :, None, None, None]
    return list(zip(images, labels, strict=True))


@cache
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 24, 3, stride=2, padding=1), nn.ReLU(), Block(24), Block(24)),
        *(nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(48, 32), nn.ReLU()),
        nn.Linear(32, 2),
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(3):
        for images, labels in batches(0):
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()


def right(output: Tensor, labels: Tensor) -> Tensor:
    return (output.argmax(1) == labels).sum()


def specialised(model: nn.Module | None = None, **options: Any) -> proxylessnas.Specialised:
    given = {
        "train": batches(0),
        "valid": batches(1),
        "loss": cross_entropy,
        "correct": right,
        "example_inputs": (batches(0)[0][0][:1],),
        "target_latency": "0.6x",
        "runtime": FakeRuntime(),
        "measure": MEASURE,
        "quiet": True,
    }
    return proxylessnas.specialise(model or trained(), **{**given, **options})


def latency(network: nn.Module) -> float:
    return FakeRuntime().load(network, (batches(0)[0][0][:1],)).timed(1) * 1e3
