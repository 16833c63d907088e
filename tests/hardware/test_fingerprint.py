"""What makes two candidates the same: everything that a forward pass may depend on but weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from proxylessnas.core.mixed import Residual, Zero
from proxylessnas.hardware.fingerprint import fingerprint
from proxylessnas.spaces.blocks import ConvBN, MBConv


class Holds(nn.Module):
    """Holds any value that its forward pass may use."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


def pooled(size: int) -> Callable[[Tensor], Tensor]:
    return lambda x: F.avg_pool2d(x, size)


def defaulted(size: int) -> Callable[..., Tensor]:
    def pool(x: Tensor, size: int = size) -> Tensor:
        return F.avg_pool2d(x, size)

    return pool


def keyword(size: int) -> Callable[..., Tensor]:
    def pool(x: Tensor, *, size: int = size) -> Tensor:
        return F.avg_pool2d(x, size)

    return pool


class Settings:
    """An object whose repr is its address."""

    def __init__(self, size: int) -> None:
        self.size, self.again = size, self

    def pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.size)


def recursive(size: int) -> Callable[[int], int]:
    def count(n: int) -> int:
        return count(n - size) if n > 0 else 0

    return count


WAYS: dict[str, Callable[[int], Any]] = {
    "a number": int,
    "a list": lambda size: [1, {"size": size}],
    "a closure": pooled,
    "a closure in a closure": lambda size: (lambda inner: lambda x: inner(x))(pooled(size)),
    "a default": defaulted,
    "a keyword's default": keyword,
    "a partial": lambda size: functools.partial(F.avg_pool2d, kernel_size=size),
    "an object": Settings,
    "a method of an object": lambda size: Settings(size).pool,
    "a function that calls itself": recursive,
    "a module": lambda size: nn.AvgPool2d(size),
}


@pytest.mark.parametrize("way", WAYS)
def test_values_that_a_module_holds_tell_it_from_others(way: str) -> None:
    make = WAYS[way]
    assert fingerprint(Holds(make(2))) == fingerprint(Holds(make(2)))
    assert fingerprint(Holds(make(2))) != fingerprint(Holds(make(3)))


def test_weights_and_modes_do_not_count() -> None:
    one, other = Holds(1), Holds(1).eval().requires_grad_(False)
    assert fingerprint(one) == fingerprint(other)


def test_keys_name_the_classes_by_the_paths_that_tables_have() -> None:
    """A key holds the path of the candidate's class: a moved class would empty earlier tables."""
    paths = {f"{cls.__module__}.{cls.__qualname__}" for cls in (Residual, Zero, ConvBN, MBConv)}
    blocks = "proxylessnas.spaces.blocks"
    assert paths == {
        "proxylessnas.core.supernet.Residual",
        "proxylessnas.core.supernet.Zero",
        f"{blocks}.ConvBN",
        f"{blocks}.MBConv",
    }
