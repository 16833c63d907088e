"""Factories that `--model small_models:NAME` names; some of what they return cannot be used."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """x + two convolutions, as everybody writes them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.norm(self.first(x)).relu())


def residual(channels: int = 1, classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(channels, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(), Block(24), Block(24)),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 32), nn.ReLU()),
        nn.Linear(32, classes),
    )


def coloured() -> nn.Module:
    return residual(channels=3)


def three_classes() -> nn.Module:
    return residual(classes=3)


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))


def number() -> int:
    return 3


def with_argument(width: int) -> nn.Module:
    return nn.Linear(width, width)


def pooled() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 16, 3), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        return self.linear(2 * x if x.sum() > 0 else x)


def branch() -> nn.Module:
    return Branch()


def only_linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 10))


def pair() -> nn.Module:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(256, 10)

        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return self.linear(x.flatten(1)), None

    return Pair()
