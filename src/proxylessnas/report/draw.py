"""A network drawn as the paper's figure does: blocks in order, as one SVG.

Kernels are colours, expansions are heights, blocks left out are thin gaps; stages with
their width and resolution stand below. Tree cells are a grid of blocks by edges. Of your
own models, every mixed operation and its candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

import torch
from torch import nn

from proxylessnas.architecture import Architecture
from proxylessnas.core.supernet import Residual
from proxylessnas.spaces import SPACES, build
from proxylessnas.spaces.blocks import MBConv, Network
from proxylessnas.spaces.tree_layers import Cell, TreeBlock

INK, PALE, LINE, PLAIN = "#24292f", "#6b7480", "#c3cad2", "#dfe3e8"
KERNELS = {1: "#c9b8e4", 3: "#8fc1e3", 5: "#f3bd5f", 7: "#dd7260"}
LAYERS = {
    "identity": PLAIN,
    "dw3": KERNELS[3],
    "dw5": KERNELS[5],
    "dw7": KERNELS[7],
    "dil3": "#63b79b",
    "avg3": "#c9b8e4",
    "max3": "#8c6fc0",
}
MORE = ("#8fc1e3", "#f3bd5f", "#dd7260", "#63b79b", "#c9b8e4", "#8c6fc0", "#b3a27e", "#7d8ca3")
FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"


def draw(architecture: Architecture) -> str:
    """The network as one self-contained SVG; every text in it is escaped.

    Raises:
        ArchitectureError: the choices do not fit the space.
        ConfigError: its settings do not.
    """
    if architecture.space not in SPACES:
        return _choices(architecture)
    with torch.device("meta"):  # only its shape is wanted
        network = build(architecture)
    assert isinstance(network, Network)
    channels, height, width = architecture.settings["input_shape"]
    image = Size(channels, height, width)
    tree = isinstance(network.blocks[0], TreeBlock)
    return _grid(architecture, network, image) if tree else _row(architecture, network, image)


@dataclass(frozen=True)
class Size:
    """Of a feature map."""

    channels: int
    height: int
    width: int

    def after(self, channels: int, stride: int) -> Size:
        return Size(channels, math.ceil(self.height / stride), math.ceil(self.width / stride))

    @property
    def resolution(self) -> str:
        return f"{self.height}×{self.width}"


class Canvas:
    """SVG elements, and the size they need."""

    def __init__(self) -> None:
        self.elements: list[str] = []
        self.width = self.height = 0.0

    def rect(self, x: float, y: float, w: float, h: float, fill: str, tip: str = "") -> None:
        title = f"<title>{_safe(tip)}</title>" if tip else ""
        self.elements.append(
            f"<rect x='{x:g}' y='{y:g}' width='{w:g}' height='{h:g}' rx='{min(3, w / 4):g}' "
            f"fill='{fill}' stroke='{INK}' stroke-opacity='.28' stroke-width='.8'>{title}</rect>"
        )
        self.grow(x + w, y + h)

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = LINE) -> None:
        self.elements.append(
            f"<line x1='{x1:g}' y1='{y1:g}' x2='{x2:g}' y2='{y2:g}' stroke='{colour}' "
            "stroke-width='1.4'/>"
        )
        self.grow(max(x1, x2), max(y1, y2))

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 11,
        colour: str = INK,
        anchor: str = "middle",
        weight: int = 400,
        turned: bool = False,
    ) -> None:
        """Around or from (x, y), the base line; turned: upwards."""
        turn = f" transform='rotate(-90 {x:g} {y:g})'" if turned else ""
        self.elements.append(
            f"<text x='{x:g}' y='{y:g}' font-size='{size:g}' fill='{colour}' "
            f"text-anchor='{anchor}' font-weight='{weight}'{turn}>{_safe(words)}</text>"
        )
        if not turned:
            share = {"start": 1.0, "middle": 0.5, "end": 0.0}[anchor]
            self.grow(x + share * len(words) * size * 0.56, y + size * 0.3)

    def grow(self, x: float, y: float) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)

    def legend(self, x: float, y: float, entries: Sequence[tuple[str, str]]) -> None:
        for colour, words in entries:
            self.rect(x, y - 10, 13, 13, colour)
            self.text(x + 19, y, words, colour=PALE, anchor="start")
            x += 38 + 6.2 * len(words)

    def svg(self, title: str) -> str:
        w, h = self.width + 24, self.height + 20
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {w:g} {h:g}' width='{w:g}' "
            f"height='{h:g}' role='img' {FONT}><title>{_safe(title)}</title>"
            f"<rect width='100%' height='100%' fill='#ffffff'/>{''.join(self.elements)}</svg>\n"
        )


def _safe(words: str) -> str:
    """Escaped, and without the characters that XML cannot hold."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words))


# --- a row of blocks ---


@dataclass(frozen=True, kw_only=True)
class Block:
    """words: written on the block. height: in pixels, 0 for a block that is left out.

    size: of its output. stride: greater than 1 where the resolution falls.
    """

    words: str
    fill: str
    height: float
    size: Size
    stride: int = 1
    searched: bool = True


WIDE, GAP, SKIPPED = 30.0, 5.0, 9.0
HEIGHTS = {1: 66.0, 3: 96.0, 6: 150.0}


def _row(architecture: Architecture, network: Network, image: Size) -> str:
    canvas, middle = Canvas(), 150.0
    canvas.text(24, 34, f"{architecture.space} network", size=15, anchor="start", weight=600)
    blocks = _blocks(network, image)
    x = 24.0
    canvas.text(x, middle - 7, "input", anchor="start", colour=PALE)
    canvas.text(x, middle + 9, f"{image.channels}×{image.resolution}", anchor="start")
    left = x = x + 84
    end = left + sum((WIDE if b.height else SKIPPED) + GAP for b in blocks) - GAP
    canvas.line(left - 10, middle, end + 10, middle)
    spans: list[tuple[float, float, Block]] = []
    for block in blocks:
        wide = WIDE if block.height else SKIPPED
        if block.height:
            top = middle - block.height / 2
            canvas.rect(x, top, wide, block.height, block.fill, block.words)
            canvas.text(x + wide / 2 + 4, middle, block.words, turned=True)
            if block.stride > 1:
                canvas.text(x + wide / 2, top - 6, f"÷{block.stride}", size=10, colour=PALE)
        else:
            canvas.line(x + wide / 2, middle - 26, x + wide / 2, middle + 26, PALE)
        spans.append((x, x + wide, block))
        x += wide + GAP
    canvas.text(end + 16, middle + 4, "classes", anchor="start", colour=PALE)
    _stages(canvas, spans, middle + 92)
    _row_legend(canvas, blocks, middle + 168)
    return canvas.svg(f"{architecture.space} network of {len(blocks)} blocks")


def _stages(canvas: Canvas, spans: list[tuple[float, float, Block]], y: float) -> None:
    """A bracket, the width and the resolution below every run of blocks of one output size."""
    for size, run in groupby(spans, key=lambda span: span[2].size):
        stage = list(run)
        left, right = stage[0][0], stage[-1][1]
        canvas.line(left, y, right, y, PALE)
        canvas.text((left + right) / 2, y + 17, str(size.channels), weight=600)
        narrow = right - left < 50 and size.height == size.width
        words = f"{size.height}²" if narrow else size.resolution
        canvas.text((left + right) / 2, y + 32, words, size=10, colour=PALE)


def _row_legend(canvas: Canvas, blocks: list[Block], y: float) -> None:
    used = {block.fill for block in blocks if block.height and block.searched}
    entries = [(c, f"kernel {k}×{k}") for k, c in KERNELS.items() if c in used]
    canvas.legend(24, y, [*entries, (PLAIN, "fixed")])
    note = "height: expansion (3, 6) · ÷2: halves the resolution · below: channels, resolution"
    left_out = sum(not block.height for block in blocks)
    note += f" · thin line: left out ({left_out})" if left_out else ""
    canvas.text(24, y + 22, note, colour=PALE, anchor="start")


def _blocks(network: Network, image: Size) -> list[Block]:
    """Stem, blocks and head with the sizes of their outputs."""
    stem = _convolutions(network.stem)[0]
    size = image.after(stem.out_channels, stem.stride[0])
    blocks = [_fixed("Conv 3×3", size, stem.stride[0])]
    for i, module in enumerate(network.blocks):
        convs = _convolutions(module)
        if not convs:
            blocks.append(Block(words="left out", fill=PLAIN, height=0, size=size))
            continue
        stride = math.prod(c.stride[0] for c in convs)
        size = size.after(convs[-1].out_channels, stride)
        inner = module.branch if isinstance(module, Residual) else module
        if isinstance(inner, MBConv):
            words, kernel = f"MB{inner.expansion} {inner.kernel}×{inner.kernel}", inner.kernel
            height = HEIGHTS.get(inner.expansion, 150.0)
        else:
            kernel = convs[0].kernel_size[0]
            words, height = f"Conv {kernel}×{kernel}", HEIGHTS[1]
        fixed = i == 0 and isinstance(inner, MBConv) and inner.expansion == 1
        fill = PLAIN if fixed else KERNELS.get(kernel, MORE[-1])
        blocks.append(
            Block(
                words=words, fill=fill, height=height, size=size, stride=stride, searched=not fixed
            )
        )
    mix = _convolutions(network.head)[0]
    size = size.after(mix.out_channels, 1)
    classes = next(m.out_features for m in network.head.modules() if isinstance(m, nn.Linear))
    last = _fixed("Pool, FC", Size(classes, 1, 1), 1)
    return [*blocks, _fixed("Conv 1×1", size, 1), last]


def _fixed(words: str, size: Size, stride: int) -> Block:
    return Block(
        words=words, fill=PLAIN, height=HEIGHTS[1], size=size, stride=stride, searched=False
    )


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


# --- a grid of blocks by edges ---

SIDE = 15.0


def _grid(architecture: Architecture, network: Network, image: Size) -> str:
    """A column a block, a row an edge of its cell; branches and scales stand apart."""
    canvas, left, top = Canvas(), 150.0, 74.0
    canvas.text(24, 34, f"{architecture.space} network", size=15, anchor="start", weight=600)
    canvas.text(
        24,
        54,
        f"input {image.channels}×{image.resolution}",
        anchor="start",
        colour=PALE,
    )
    columns: dict[int, dict[str, str]] = {}
    for name, candidate in architecture.choices.items():
        _, block, _, _, edge = name.split(".", 4)  # blocks.7.cell.branches.0.nodes.1.edges.0
        columns.setdefault(int(block), {})[edge] = candidate
    rows = sorted(columns[0], key=_edge_order)
    ys = [top + SIDE * j + 10.0 * int(edge.split(".")[0]) for j, edge in enumerate(rows)]
    for edge, y in zip(rows, ys, strict=True):
        canvas.text(left - 10, y + 11, _edge_words(edge), size=10, colour=PALE, anchor="end")
    x, spans, size = left, [], image
    for i, module in enumerate(network.blocks):
        assert isinstance(module, TreeBlock) and isinstance(module.cell, Cell)
        stride = module.cell.conv.conv.stride[0]
        x += 10 if stride > 1 else 0
        size = size.after(module.in_bottle.conv.out_channels, stride)
        for edge, y in zip(rows, ys, strict=True):
            candidate = columns[i][edge]
            tip = f"block {i + 1}, {_edge_words(edge)}: {candidate}"
            canvas.rect(x, y, SIDE - 1.5, SIDE - 1.5, LAYERS.get(candidate, MORE[-1]), tip)
        spans.append((x, x + SIDE - 1.5, size))
        x += SIDE
    bottom = ys[-1] + SIDE + 12
    _scales(canvas, spans, bottom)
    names = [name for name in LAYERS if name in set(architecture.choices.values())]
    counts = list(architecture.choices.values())
    canvas.legend(24, bottom + 74, [(LAYERS[n], f"{n} ({counts.count(n)})") for n in names])
    canvas.text(
        24,
        bottom + 96,
        "a column a block, a row an edge of its cell · below: inner channels, resolution",
        colour=PALE,
        anchor="start",
    )
    return canvas.svg(f"{architecture.space} network of {len(network.blocks)} blocks")


def _scales(canvas: Canvas, spans: list[tuple[float, float, Size]], y: float) -> None:
    for resolution, run in groupby(spans, key=lambda span: span[2].resolution):
        scale = list(run)
        left, right = scale[0][0], scale[-1][1]
        widths = f"{scale[0][2].channels} to {scale[-1][2].channels}"
        canvas.line(left, y, right, y, PALE)
        canvas.text((left + right) / 2, y + 17, widths, weight=600)
        canvas.text((left + right) / 2, y + 32, resolution, size=10, colour=PALE)


def _edge_order(edge: str) -> tuple[int, int, str]:
    """By branch, then by level, then by place: `0.edges.1` before `0.nodes.0.edges.0`."""
    return int(edge.split(".")[0]), edge.count("nodes"), edge


def _edge_words(edge: str) -> str:
    """`branch 1, edge 2.1`: the second edge's node's first."""
    branch, *place = [int(step) + 1 for step in edge.split(".") if step.isdigit()]
    return f"branch {branch}, edge {'.'.join(map(str, place))}"


# --- any model ---


def _choices(architecture: Architecture, rows: int = 24) -> str:
    """Every mixed operation with its candidate, in the model's order, in columns."""
    canvas = Canvas()
    canvas.text(24, 34, f"network of {architecture.space}", size=15, anchor="start", weight=600)
    candidates = list(dict.fromkeys(architecture.choices.values()))
    colours = {name: MORE[i % len(MORE)] for i, name in enumerate(candidates)}
    x, items = 24.0, list(architecture.choices.items())
    for start in range(0, len(items), rows):
        column = items[start : start + rows]
        wide = max(len(f"{name}{candidate}") for name, candidate in column) * 6.4 + 50
        for j, (name, candidate) in enumerate(column):
            y = 58 + 20.0 * j
            canvas.rect(x, y, 14, 14, colours[candidate], candidate)
            canvas.text(x + 22, y + 11, name, anchor="start", colour=PALE)
            canvas.text(x + wide - 16, y + 11, candidate, anchor="end")
        x += wide + 12
    canvas.grow(x - 28, 58)
    return canvas.svg(f"network of {architecture.space}, {len(items)} mixed operations")
