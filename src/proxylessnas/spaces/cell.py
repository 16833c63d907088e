"""The space of NAS-Bench-201 (Dong and Yang, ICLR 2020): one cell, repeated.

A cell has four nodes, of which the first is its input and the last its output; each of its six
edges chooses one of five operations, and a node is the sum of the edges that enter it. All cells
of a network are alike, so that an edge is one choice at as many positions as there are cells.
All 15,625 networks were trained on CIFAR-10, so a search result has a known accuracy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from proxylessnas.core.mixed import Zero, runs_zero
from proxylessnas.errors import ArchitectureError, ConfigError
from proxylessnas.schema import checked
from proxylessnas.spaces.blocks import ConvBN, Network, choose
from proxylessnas.spaces.bounds import InputShape, Size, Sizes, check
from proxylessnas.spaces.first_weights import initialise

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # in the order of the table's digits
OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")  # digits 0-4
# Outside of a search a mixed operation runs its first candidate: one that leads somewhere.
CANDIDATES = (*OPERATIONS[1:], "none")
CHOICES = tuple(f"edge_{i}_{j}" for i, j in EDGES)
LETTERS = "abcdef"  # of the convolutions on the edges, see `function`
EPS = 1e-5


@checked()
@dataclass(frozen=True, kw_only=True)
class CellSettings:
    """How the space is built; the defaults are NAS-Bench-201's."""

    input_shape: InputShape = (3, 32, 32)
    """Channels, height and width of an image."""
    classes: Size = 10
    """Outputs of the network."""
    widths: Sizes = (16, 32, 64)
    """Channels of every stage; each stage after the first halves the resolution."""
    cells: Size = 5
    """Cells of every stage."""
    alike: bool = True
    """Whether the supernet's candidates begin as one function, as far as they can."""

    def __post_init__(self) -> None:
        if any(not size >> len(self.widths) - 1 for size in self.input_shape[1:]):
            raise ConfigError(
                f"input_shape is {list(self.input_shape)}: too small to be halved "
                f"{len(self.widths) - 1} times"
            )
        layers = len(EDGES) * self.cells * len(self.widths)
        check(self.input_shape, layers, 85.0 * self.cells * sum(w * w for w in self.widths))


class Cell(nn.Module):
    """Four nodes, and the operations on the edges between them.

    Edges that contribute nothing do not run: those that carry zeros, because no path of other
    operations than `none` leads to them from the input, and those whose result reaches no output.
    """

    def __init__(self, edges: Sequence[nn.Module]) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(dict(zip(CHOICES, edges, strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        edges = list(self.edges.values())
        running = contributing([not runs_zero(edge) for edge in edges])
        nodes: list[Tensor | None] = [x, None, None, None]
        for (i, j), edge, runs in zip(EDGES, edges, running, strict=True):
            if runs:
                out, before = edge(nodes[i]), nodes[j]
                nodes[j] = out if before is None else before + out
        return torch.zeros_like(x) if nodes[-1] is None else nodes[-1]


def contributing(present: Sequence[bool]) -> list[bool]:
    """Which edges lie on a path from the input to the output along edges that are `present`.

    >>> contributing([False, True, True, False, True, True])  # nothing enters node 1
    [False, True, False, False, False, True]
    """
    edges = list(zip(EDGES, present, strict=True))
    reached, needed = {0}, {len(EDGES) // 2}
    for (i, j), on in edges:  # edges come in the order of the nodes that they enter
        reached |= {j} if on and i in reached else set()
    for (i, j), on in reversed(edges):
        needed |= {i} if on and j in needed else set()
    return [on and i in reached and j in needed for (i, j), on in edges]


class Reduction(nn.Module):
    """The residual block between two stages: half the resolution, other channels."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _convolution(channels, out, 3, stride=2), _convolution(out, out, 3)
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(channels, out, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shortcut(x) + self.branch(x)
        return out


class CellNetwork(Network):
    """A network of cells that are all alike."""

    def as_it_runs(self, names: Sequence[str]) -> list[str]:
        """The operations of all edges, `none` on those that contribute nothing."""
        runs = contributing([name != "none" for name in names])
        return [name if on else "none" for name, on in zip(names, runs, strict=True)]


def build(settings: CellSettings, choices: dict[str, str] | None = None) -> nn.Module:
    """The supernet, or with `choices` the plain network of one architecture."""
    s, channels = settings, settings.widths[0]
    blocks: list[nn.Module] = []
    for width in s.widths:
        if blocks:
            blocks.append(Reduction(channels, width))
        channels = width
        for _ in range(s.cells):
            blocks.append(Cell([_edge(name, width, choices) for name in CHOICES]))
    if choices is not None:  # all positions are built
        for name in CHOICES:
            del choices[name]
    stem = ConvBN(s.input_shape[0], s.widths[0], 3, activation=None, eps=EPS)
    head = nn.Sequential(
        nn.BatchNorm2d(channels, eps=EPS),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, s.classes),
    )
    model = CellNetwork(stem, blocks, head)
    initialise(model)
    if choices is None and s.alike:
        _start_alike(model)
    return model


@torch.no_grad()
def _start_alike(model: nn.Module) -> None:
    """Let every operation but `none` begin by passing its input on.

    Whatever comes next then meets the same features on all paths, see
    `first_weights.start_alike`.
    """
    for cell in (m for m in model.modules() if isinstance(m, Cell)):
        for conv in (m for m in cell.modules() if isinstance(m, nn.Conv2d)):
            nn.init.dirac_(conv.weight)


def _edge(name: str, width: int, choices: dict[str, str] | None) -> nn.Module:
    makers: dict[str, Callable[[], nn.Module]] = {
        "none": Zero,
        "skip_connect": nn.Identity,
        "nor_conv_1x1": lambda: _convolution(width, width, 1),
        "nor_conv_3x3": lambda: _convolution(width, width, 3),
        "avg_pool_3x3": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    }
    return choose(name, {key: makers[key] for key in CANDIDATES}, choices, shared=True)


def _convolution(channels: int, out: int, kernel: int, *, stride: int = 1) -> nn.Module:
    """ReLU, convolution, normalisation."""
    conv = ConvBN(channels, out, kernel, stride, activation=None, eps=EPS)
    return nn.Sequential(nn.ReLU(), conv)


# --- networks by the table's names ---


def code(choices: Mapping[str, str]) -> str:
    """The table's name of a network: one digit an edge, as `031230`."""
    return "".join(str(OPERATIONS.index(choices[name])) for name in CHOICES)


def from_code(code: str) -> dict[str, str]:
    """The choices of a network that the table names `code`.

    Raises:
        ArchitectureError: it is not six digits from 0 to 4.
    """
    if len(code) != len(EDGES) or set(code) - set("01234"):
        raise ArchitectureError(f"{code!r} is not a NAS-Bench-201 code: six digits from 0 to 4")
    return {name: OPERATIONS[int(d)] for name, d in zip(CHOICES, code, strict=True)}


def function(code: str) -> str:
    """What a cell computes, as an expression: equal for codes that compute the same.

    A convolution whose result is used more than once has a letter, because another one of the same
    input has weights of its own. Nothing that is multiplied by zero, nor what leads nowhere, is
    part of the expression; the order of a sum does not count, and a pooled sum is the sum of what
    is pooled. Of the 15,625 codes 5,044 differ. (The table tells 6,466 apart: its rules write down
    how many zeros a sum has, and take a convolution that is used twice for two.)

    >>> function("301230"), function("041000"), function("000040")
    ('((x)3)3+(x)2', '', '')
    >>> function("301112"), function("103132")  # one convolution, and two of the same input
    ('((x)3a)2+(x)3a+x', '((x)3)2+(x)3+x')
    """
    written = _expression(code, LETTERS)
    often = [e for e, letter in enumerate(LETTERS) if written.count(letter) > 1]
    # Whichever of them is called a: the first expression in the order of text.
    orders = itertools.permutations(LETTERS[: len(often)])
    named = (dict(zip(often, order, strict=True)) for order in orders)
    return min(_expression(code, [names.get(e, "") for e in range(len(EDGES))]) for names in named)


def _expression(code: str, names: Sequence[str]) -> str:
    """The sum at the output; names: of the convolution on every edge, written behind it."""
    nodes: list[list[str]] = [["x"], [], [], []]  # of each the terms of its sum
    for (i, j), digit, name in zip(EDGES, code, names, strict=True):
        if digit == "1":
            nodes[j] += nodes[i]
        elif digit == "4":
            nodes[j] += [f"({term})4" for term in nodes[i]]
        elif digit != "0" and nodes[i]:
            nodes[j].append(f"({'+'.join(sorted(nodes[i]))}){digit}{name}")
    return "+".join(sorted(nodes[-1]))
