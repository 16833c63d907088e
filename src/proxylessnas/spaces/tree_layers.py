"""Layers of the tree space: a PyramidNet block whose 3x3 convolution is a tree of edges.

Every layer here normalises and activates before its weights (BN, ReLU, convolution), as
the published network does; see `tree.py` for the space they make up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-5  # of every batch normalisation of the published CIFAR network


class PreConv(nn.Module):
    """BN, ReLU, convolution without bias, channel shuffle; "same" padding.

    relu: whether there is a ReLU. With more than one group the output channels are shuffled.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=EPS)
        self.relu = nn.ReLU() if relu else nn.Identity()
        self.conv = nn.Conv2d(
            channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.relu(self.bn(x)))
        if self.groups > 1:  # [groups, channels of a group] -> [channels of a group, groups]
            out = torch.unflatten(out, 1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        return out


class Depthwise(nn.Module):
    """BN, ReLU, depthwise kxk (dilated or not), pointwise 1x1; nothing between the two."""

    def __init__(self, channels: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=EPS)
        self.relu = nn.ReLU()
        self.depth_conv = nn.Conv2d(
            channels,
            channels,
            kernel,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=channels,
            bias=False,
        )
        self.point_conv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.point_conv(self.depth_conv(self.relu(self.bn(x))))
        return out


def edge_layer(name: str, channels: int) -> nn.Module:
    """One edge of the tree: identity, avg3, max3, dw3, dw5, dw7 or dil3 (dilation 2)."""
    if name == "identity":
        return nn.Identity()
    if name == "avg3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    if name == "max3":
        return nn.MaxPool2d(3, stride=1, padding=1)
    return Depthwise(channels, int(name[-1]), dilation=2 if name.startswith("dil") else 1)


def dropped(rate: float, training: bool) -> bool:
    """Whether this path is left out of this batch, drawn from torch's global generator."""
    return training and rate > 0 and torch.rand(()).item() < rate


class Node(nn.Module):
    """Edges on copies of the input, each followed by its node if there is one; added.

    nodes: as many as edges, or none at the leaves. drop: rate at which a path is left out
    of a training batch; in evaluation every path counts 1 - drop.
    """

    def __init__(
        self, edges: Sequence[nn.Module], nodes: Sequence[nn.Module] = (), drop: float = 0.0
    ) -> None:
        super().__init__()
        self.edges, self.nodes, self.drop = nn.ModuleList(edges), nn.ModuleList(nodes), drop

    def forward(self, x: Tensor) -> Tensor:
        paths = []
        for i, edge in enumerate(self.edges):
            if not dropped(self.drop, self.training):
                out = edge(x)
                paths.append(self.nodes[i](out) if len(self.nodes) else out)
        total = reduce(torch.add, paths) if paths else torch.zeros_like(x)
        return total * (1 - self.drop) if self.drop and not self.training else total


class Cell(nn.Module):
    """A grouped 3x3 convolution to one part for each branch; BN(branch(part)) + part, added.

    drops: rates for the whole cell after its convolution, and for each branch.
    """

    def __init__(
        self,
        channels: int,
        branches: Sequence[nn.Module],
        *,
        stride: int = 1,
        groups: int = 2,
        drops: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        self.conv = PreConv(channels, channels * len(branches), 3, stride, groups=groups)
        self.branches = nn.ModuleList(branches)
        self.branch_bns = nn.ModuleList(nn.BatchNorm2d(channels, eps=EPS) for _ in branches)
        self.drops = drops

    def forward(self, x: Tensor) -> Tensor:
        parts = self.conv(x).chunk(len(self.branches), dim=1)
        if dropped(self.drops[0], self.training):
            return torch.zeros_like(parts[0])
        paths = []
        for branch, bn, part in zip(self.branches, self.branch_bns, parts, strict=True):
            if not dropped(self.drops[1], self.training):
                paths.append(bn(branch(part)) + part)
        total = reduce(torch.add, paths) if paths else torch.zeros_like(parts[0])
        scale = (1 - self.drops[0]) * (1 - self.drops[1])
        return total * scale if scale != 1 and not self.training else total


class TreeBlock(nn.Module):
    """Bottleneck to `inner` channels, cell, back to `out_channels`, BN; plus the shortcut.

    The shortcut is average-pooled at stride 2; the channels it lacks are zeros after its own.
    drop: rate at which the branch is left out of a training batch; it counts 1 - drop after.
    """

    def __init__(
        self,
        channels: int,
        inner: int,
        out_channels: int,
        cell: nn.Module,
        *,
        stride: int = 1,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.shortcut = nn.Identity() if stride == 1 else nn.AvgPool2d(stride)
        self.in_bottle = PreConv(channels, inner, 1, relu=False)
        self.cell = cell
        self.out_bottle = PreConv(inner, out_channels, 1)
        self.final_bn = nn.BatchNorm2d(out_channels, eps=EPS)
        self.padding, self.drop = out_channels - channels, drop

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = self.shortcut(x)
        if self.padding:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.padding))
        if dropped(self.drop, self.training):
            return shortcut
        out: Tensor = self.final_bn(self.out_bottle(self.cell(self.in_bottle(x))))
        return shortcut + (out * (1 - self.drop) if self.drop and not self.training else out)


class TreeHead(nn.Sequential):
    """BN, ReLU, global average pool, dropout, linear."""

    def __init__(self, channels: int, classes: int, *, dropout: float = 0.0) -> None:
        super().__init__(
            nn.BatchNorm2d(channels, eps=EPS),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(channels, classes),
        )


def initialise(model: nn.Module) -> None:
    """He initialisation by the fan-out of one group, for convolutions; zero linear bias.

    No batch normalisation follows a depthwise convolution here, so its scale matters. The N
    blocks' last BN starts at 1/√N: all branches together weigh what the stem does, and a
    network without statistics yet computes finite numbers (at 1 it overflows float32).
    """
    blocks = [module for module in model.modules() if isinstance(module, TreeBlock)]
    for block in blocks:
        nn.init.constant_(block.final_bn.weight, len(blocks) ** -0.5)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels // module.groups * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
