"""The paper's CIFAR-10 space: path-level search in tree-structured cells of a PyramidNet.

    stem      conv 3x3
    blocks    18 at each of 3 scales, their inner width growing evenly from 16 to 100
      cell    grouped conv 3x3 to two parts; each part is the root of a binary tree of
              2 + 4 edges, and every edge chooses one of seven layers
    head      BN, ReLU, average pool, linear

12 edges a cell and 54 blocks make 648 mixed operations. See the paper, section 4.1; the
space was never released, this is it as the published network shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Le
from torch import nn

from proxylessnas.config import ShareBelowOne
from proxylessnas.errors import ConfigError
from proxylessnas.schema import checked
from proxylessnas.spaces.blocks import ConvBN, Network, choose
from proxylessnas.spaces.bounds import InputShape, Size, Sizes, check
from proxylessnas.spaces.tree_layers import (
    EPS,
    Cell,
    Node,
    TreeBlock,
    TreeHead,
    edge_layer,
    initialise,
)

MAX_EDGES = 10_000
Candidate = Literal["identity", "dw3", "dw5", "dw7", "dil3", "avg3", "max3"]
CANDIDATES: tuple[Candidate, ...] = get_args(Candidate)
Degree = Annotated[int, Ge(1), Le(8)]


@checked()
@dataclass(frozen=True, kw_only=True)
class TreeSettings:
    """How the space is built; the defaults are the published network's."""

    input_shape: InputShape = (3, 32, 32)
    """Channels, height and width of an image."""
    classes: Size = 10
    """Outputs of the network."""
    blocks: Sizes = (18, 18, 18)
    """Blocks at every scale; each scale after the first halves the resolution."""
    start: Size = 16
    """Channels of the stem, from which the inner width of the blocks grows evenly."""
    growth: Annotated[int, Ge(0), Le(1 << 20)] = 84
    """How much wider the last block is inside; the widths are multiples of `groups`."""
    bottleneck: Size = 4
    """A block's outer width as a multiple of its inner width."""
    branches: Degree = 2
    """Parts that a cell's convolution is split into, each the root of a tree."""
    depth: Degree = 2
    """Levels of edges in a tree."""
    branching: Degree = 2
    """Edges below each node of a tree."""
    groups: Size = 2
    """Groups of a cell's convolution."""
    candidates: tuple[Candidate, ...] = CANDIDATES
    """Layers that an edge chooses from, in this order."""
    path_drop: tuple[ShareBelowOne, ...] = (0.0,)
    """Rate of leaving out a path: one for all, or one a level of the cell."""
    cell_drop: tuple[ShareBelowOne, ...] = (0.0,)
    """Rate of leaving out a block's branch: one for all, or one a block."""
    dropout: ShareBelowOne = 0.0
    """Rate of dropout before the classifier."""

    def __post_init__(self) -> None:
        self._check_size()
        self._check_widths()
        if not self.candidates or len(set(self.candidates)) != len(self.candidates):
            raise ConfigError(f"candidates are {list(self.candidates)}; name each once")
        self._check_rates()

    def _check_size(self) -> None:
        edges = self.branches * sum(self.branching**level for level in range(1, self.depth + 1))
        blocks, inner = sum(self.blocks), self.start + self.growth
        if edges * blocks > MAX_EDGES:
            raise ConfigError(
                f"{blocks} blocks of {edges} edges are {edges * blocks:,} mixed operations; at "
                f"most {MAX_EDGES:,} are built: lower depth, branching, branches or blocks"
            )
        outer = float(inner * self.bottleneck)
        block = inner * (2 * outer + 9 * self.branches * inner + 4 * edges * (inner + 49))
        check(self.input_shape, blocks, blocks * block + outer * self.classes)

    def _check_widths(self) -> None:
        first = self.inner(1)
        if first < 1 or first * self.bottleneck < self.start:
            raise ConfigError(
                f"start {self.start} is wider than the first block: {self.bottleneck} (bottleneck) "
                f"x {first}, the nearest multiple of {self.groups} (groups)"
            )
        scale = 2 ** (len(self.blocks) - 1)
        if any(side < scale or side % scale for side in self.input_shape[1:]):
            raise ConfigError(
                f"input_shape is {list(self.input_shape)}; with {len(self.blocks)} scales its "
                f"height and width must be multiples of {scale}"
            )

    def _check_rates(self) -> None:
        for name, count, of in (
            ("path_drop", self.depth + 2, "level of the cell: convolution, branches, edges"),
            ("cell_drop", sum(self.blocks), "block"),
        ):
            rates = getattr(self, name)
            if len(rates) not in (1, count):
                raise ConfigError(
                    f"{name} has {len(rates)} rates; give one, or {count}: one a {of}"
                )

    def inner(self, index: int) -> int:
        """The inner width of block `index`, counted from 1."""
        width = round(self.start + self.growth * index / sum(self.blocks))
        return width - width % self.groups

    def path_rate(self, level: int) -> float:
        """Path drop at a level: 0 the cell's convolution, 1 its branches, from 2 the edges."""
        if len(self.path_drop) > 1:
            return self.path_drop[level]
        return self.path_drop[0] if level else 0.0  # a cell's only path has its own cell_drop


def build(settings: TreeSettings, choices: dict[str, str] | None = None) -> nn.Module:
    """The supernet, or with `choices` the plain network of one architecture."""
    s = settings
    channels = s.start
    blocks: list[nn.Module] = []
    for scale, count in enumerate(s.blocks):
        for i in range(count):
            stride = 2 if scale and i == 0 else 1
            blocks.append(_block(s, channels, stride, len(blocks), choices))
            channels = s.inner(len(blocks)) * s.bottleneck
    stem = ConvBN(s.input_shape[0], s.start, 3, activation=None, eps=EPS)
    model = Network(stem, blocks, TreeHead(channels, s.classes, dropout=s.dropout))
    initialise(model)
    return model


def _block(
    s: TreeSettings, channels: int, stride: int, index: int, choices: dict[str, str] | None
) -> nn.Module:
    inner = s.inner(index + 1)
    candidates = {str(name): partial(edge_layer, name, inner) for name in s.candidates}

    def node(name: str, level: int) -> Node:
        edges = [choose(f"{name}.edges.{j}", candidates, choices) for j in range(s.branching)]
        last = level == s.depth + 1
        nodes = [] if last else [node(f"{name}.nodes.{j}", level + 1) for j in range(s.branching)]
        return Node(edges, nodes, drop=s.path_rate(level))

    branches = [node(f"blocks.{index}.cell.branches.{b}", 2) for b in range(s.branches)]
    drops = (s.path_rate(0), s.path_rate(1))
    cell = Cell(inner, branches, stride=stride, groups=s.groups, drops=drops)
    cell_drop = s.cell_drop[index if len(s.cell_drop) > 1 else 0]
    return TreeBlock(channels, inner, inner * s.bottleneck, cell, stride=stride, drop=cell_drop)
