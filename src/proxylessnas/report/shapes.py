"""What a network of a space is like, without weights: its blocks as numbers, its feature maps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture
from proxylessnas.core.mixed import Residual
from proxylessnas.spaces import SPACES, build
from proxylessnas.spaces.blocks import MBConv, Network


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A searched block of a network: what was chosen, as numbers.

    kernel, expansion: 0 for a block that is left out. halves: whether it halves the resolution.
    channels: of its output.
    """

    choice: str
    kernel: int
    expansion: float
    halves: bool
    channels: int


def layers(architecture: Architecture) -> list[Layer]:
    """The searched inverted bottlenecks in order; none of other kinds of networks."""
    network = network_of(architecture)
    if network is None or not is_row(architecture, network):
        return []
    image = Shape(*architecture.settings["input_shape"])
    before, *after = output_shapes(network, image, [network.stem, *network.blocks])
    result = []
    for name in architecture.choices:
        index = int(name.split(".")[1])
        block, shape = network.blocks[index], after[index]
        inner = block.branch if isinstance(block, Residual) else block
        there = isinstance(inner, MBConv)
        result.append(
            Layer(
                choice=name,
                kernel=inner.kernel if isinstance(inner, MBConv) else 0,
                expansion=inner.expansion if isinstance(inner, MBConv) else 0.0,
                halves=there and shape.height < ([before, *after][index]).height,
                channels=shape.channels,
            )
        )
    return result


class Shape(NamedTuple):
    """Of a feature map."""

    channels: int
    height: int = 1
    width: int = 1

    @property
    def resolution(self) -> str:
        return f"{self.height}×{self.width}"


def network_of(architecture: Architecture) -> Network | None:
    """The network of a space here, without weights; None of a user's model."""
    if architecture.space not in SPACES:
        return None
    with torch.device("meta"):  # only shapes are wanted
        network = build(architecture).eval()
    assert isinstance(network, Network)
    return network


def is_row(architecture: Architecture, network: Network) -> bool:
    """Whether every choice is one of the blocks, and the head begins with a convolution."""
    chosen = all(re.fullmatch(r"blocks\.\d+(\.branch)?", name) for name in architecture.choices)
    return chosen and bool(convolutions(network.head))


def output_shapes(network: nn.Module, image: Shape, modules: Iterable[nn.Module]) -> list[Shape]:
    """The shapes of these modules' outputs in a forward pass, in the order of their calls."""
    shapes: list[Shape] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shapes.append(Shape(*output.shape[1:]))

    for module in modules:
        module.register_forward_hook(record)
    with torch.no_grad():
        network(torch.zeros(1, *image, device="meta"))
    return shapes


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]
