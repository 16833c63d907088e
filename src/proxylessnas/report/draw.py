"""A network drawn as the paper's figure 4 does: blocks in order, as a self-contained SVG.

Kernels are colours, expansions are heights, blocks left out are thin gaps; stages with their
width and resolution stand below. Tree cells are a grid of blocks by edges. Of a user's model,
every choice and its candidate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture
from proxylessnas.core.mixed import Residual
from proxylessnas.spaces import SPACES, build
from proxylessnas.spaces.blocks import MBConv, Network
from proxylessnas.spaces.tree_layers import Cell, TreeBlock

INK, PALE, LINE, PLAIN = "#24292f", "#6b7480", "#c3cad2", "#dfe3e8"
PAPER, ON_BLOCK = "#ffffff", "#1d2127"  # behind everything; words on a block, light in any theme
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
MARGIN, TITLE_Y = 24.0, 34.0  # pixels
SHARES = {"start": 1.0, "middle": 0.5, "end": 0.0}  # of a text's width right of its anchor


def draw(architecture: Architecture, milliseconds: Mapping[str, float] | None = None) -> str:
    """The network as a self-contained SVG; every text in it is escaped.

    milliseconds: by choice, written below its block. What belongs to a choice has its name as
    the attribute `data-choice`.

    Raises:
        ArchitectureError: the choices do not fit the space.
        ConfigError: its settings do not.
    """
    network = _network(architecture)
    if network is None:
        return _choices(architecture)
    image = Shape(*architecture.settings["input_shape"])
    if isinstance(network.blocks[0], TreeBlock):
        return _grid(architecture, network, image)
    if not _is_row(architecture, network):
        return _choices(architecture)
    return _row(architecture, network, image, milliseconds or {})


def _network(architecture: Architecture) -> Network | None:
    """The network of a space here, without weights; None of a user's model."""
    if architecture.space not in SPACES:
        return None
    with torch.device("meta"):  # only shapes are wanted
        network = build(architecture).eval()
    assert isinstance(network, Network)
    return network


def _is_row(architecture: Architecture, network: Network) -> bool:
    """Whether every choice is one of the blocks, and the head begins with a convolution."""
    chosen = all(re.fullmatch(r"blocks\.\d+(\.branch)?", name) for name in architecture.choices)
    return chosen and bool(_convolutions(network.head))


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
    network = _network(architecture)
    if network is None or not _is_row(architecture, network):
        return []
    image = Shape(*architecture.settings["input_shape"])
    before, *after = _output_shapes(network, image, [network.stem, *network.blocks])
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


def _output_shapes(network: nn.Module, image: Shape, modules: Iterable[nn.Module]) -> list[Shape]:
    """The shapes of these modules' outputs in a forward pass, in the order of their calls."""
    shapes: list[Shape] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shapes.append(Shape(*output.shape[1:]))

    for module in modules:
        module.register_forward_hook(record)
    with torch.no_grad():
        network(torch.zeros(1, *image, device="meta"))
    return shapes


class Canvas:
    """SVG elements, and the size they need; a title stands at the top."""

    def __init__(self, title: str) -> None:
        self.elements: list[str] = []
        self.width = self.height = 0.0
        self.text(MARGIN, TITLE_Y, title, size=15, anchor="start", weight=600)

    def rect(
        self, x: float, y: float, w: float, h: float, fill: str, tip: str = "", choice: str = ""
    ) -> None:
        title = f"<title>{_safe(tip)}</title>" if tip else ""
        of = f" data-choice='{_safe(choice)}'" if choice else ""
        self.elements.append(
            f"<rect x='{x:g}' y='{y:g}' width='{w:g}' height='{h:g}' rx='{min(3, w / 4):g}' "
            f"fill='{fill}' stroke='{INK}' stroke-opacity='.28' stroke-width='.8'"
            f"{of}>{title}</rect>"
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
            self.grow(x + SHARES[anchor] * len(words) * size * 0.56, y + size * 0.3)

    def grow(self, x: float, y: float) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)

    def stages(
        self,
        y: float,
        spans: Iterable[tuple[float, float, Shape]],
        same: Callable[[Shape], object],
        words: Callable[[Shape, Shape, float], tuple[str, str]],
    ) -> None:
        """A bracket and two lines of words below every run of (left, right, shape) alike in `same`.

        words: of a run's first shape, last shape and width in pixels.
        """
        for _, run in groupby(spans, key=lambda span: same(span[2])):
            stage = list(run)
            (left, _, first), (_, right, last) = stage[0], stage[-1]
            self.line(left, y, right, y, PALE)
            width, resolution = words(first, last, right - left)
            self.text((left + right) / 2, y + 17, width, weight=600)
            self.text((left + right) / 2, y + 32, resolution, size=10, colour=PALE)

    def legend(self, y: float, entries: Sequence[tuple[str, str]], note: str) -> None:
        x = MARGIN
        for colour, words in entries:
            self.rect(x, y - 10, 13, 13, colour)
            self.text(x + 19, y, words, colour=PALE, anchor="start")
            x += 38 + 6.2 * len(words)
        self.text(MARGIN, y + 22, note, colour=PALE, anchor="start")

    def svg(self, title: str) -> str:
        w, h = self.width + 24, self.height + 20
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {w:g} {h:g}' width='{w:g}' "
            f"height='{h:g}' role='img' {FONT}><title>{_safe(title)}</title>"
            f"<rect width='100%' height='100%' fill='{PAPER}'/>{''.join(self.elements)}</svg>\n"
        )


def _safe(words: str) -> str:
    """Escaped, and without the characters that XML cannot hold."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words))


# --- a row of blocks ---

WIDE, GAP, SKIPPED = 30.0, 5.0, 9.0
HEIGHTS = {1: 66.0, 3: 96.0, 6: 150.0}  # of an expansion
MIDDLE = 150.0


@dataclass(frozen=True, kw_only=True)
class Block:
    """words: written on the block. height: in pixels, 0 for a block that is left out.

    choice: which the block was chosen by; empty for what is fixed.
    """

    words: str
    fill: str = PLAIN
    height: float = HEIGHTS[1]
    choice: str = ""

    @property
    def width(self) -> float:
        return WIDE if self.height else SKIPPED


def _row(
    architecture: Architecture, network: Network, image: Shape, milliseconds: Mapping[str, float]
) -> str:
    space = architecture.space
    canvas = Canvas(f"{space} network")
    mix = _convolutions(network.head)[0]
    parts = [network.stem, *network.blocks, mix, network.head]
    shapes = _output_shapes(network, image, parts)
    of_block = {name.split(".")[1]: name for name in architecture.choices if "." in name}
    blocks = [
        _block(part, fixed=part in (network.stem, mix), choice=of_block.get(str(i), ""))
        for i, part in enumerate(parts[:-1], start=-1)
    ]
    blocks.append(Block(words="Pool, FC"))
    canvas.text(MARGIN, MIDDLE - 7, "input", anchor="start", colour=PALE)
    size = f"{image.channels}×{image.resolution}"
    canvas.text(MARGIN, MIDDLE + 9, size, anchor="start")
    x = left = MARGIN + 84
    end = left + sum(block.width + GAP for block in blocks) - GAP
    canvas.line(left - 10, MIDDLE, end + 10, MIDDLE)
    spans = []
    for block, before, shape in zip(blocks, [image, *shapes], shapes, strict=False):
        pooled = block is blocks[-1]
        _draw_block(canvas, x, block, 1 if pooled else round(before.height / shape.height))
        if block.height and block.choice in milliseconds:
            words_ms = f"{milliseconds[block.choice]:.2g}"
            canvas.text(x + block.width / 2, MIDDLE + 90, words_ms, size=9, colour=PALE)
        spans.append((x, x + block.width, shape))
        x += block.width + GAP
    canvas.text(end + 16, MIDDLE + 4, "classes", anchor="start", colour=PALE)

    def words(shape: Shape, _: Shape, width: float) -> tuple[str, str]:
        narrow = width < 50 and shape.height == shape.width
        return str(shape.channels), f"{shape.height}²" if narrow else shape.resolution

    below = MIDDLE + (100 if milliseconds else 92)
    canvas.stages(below, spans, lambda shape: shape, words)
    entries = [(c, f"kernel {k}×{k}") for k, c in KERNELS.items() if c in {b.fill for b in blocks}]
    note = "height: expansion (3, 6) · ÷2: halves the resolution · below: channels, resolution"
    skipped = sum(not block.height for block in blocks)
    note += f" · thin line: left out ({skipped})" if skipped else ""
    note += " · under a block: its milliseconds" if milliseconds else ""
    canvas.legend(below + 76, [*entries, (PLAIN, "fixed")], note)
    return canvas.svg(f"{space} network of {len(blocks)} blocks")


def _draw_block(canvas: Canvas, x: float, block: Block, stride: int) -> None:
    middle = x + block.width / 2
    if not block.height:
        canvas.line(middle, MIDDLE - 26, middle, MIDDLE + 26, PALE)
        if block.choice:  # something to point at
            canvas.rect(x, MIDDLE - 26, block.width, 52, "transparent", "left out", block.choice)
        return
    top = MIDDLE - block.height / 2
    canvas.rect(x, top, block.width, block.height, block.fill, block.words, block.choice)
    canvas.text(middle + 4, MIDDLE, block.words, turned=True, colour=ON_BLOCK)
    if stride > 1:
        canvas.text(middle, top - 6, f"÷{stride}", size=10, colour=PALE)


def _block(module: nn.Module, *, fixed: bool, choice: str) -> Block:
    """fixed: not searched. The first block, of expansion 1, is not either."""
    convolutions = _convolutions(module)
    if not convolutions:
        return Block(words="left out", height=0, choice=choice)
    inner = module.branch if isinstance(module, Residual) else module
    kernel, words, height = convolutions[0].kernel_size[0], "Conv", HEIGHTS[1]
    if isinstance(inner, MBConv):
        kernel, words = inner.kernel, f"MB{inner.expansion:.3g}"
        height = HEIGHTS.get(round(inner.expansion), 150.0)
        fixed = fixed or inner.expand is None
    fill = PLAIN if fixed else KERNELS.get(kernel, MORE[-1])
    return Block(words=f"{words} {kernel}×{kernel}", fill=fill, height=height, choice=choice)


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


# --- a grid of blocks by edges ---

SIDE, LEFT, TOP = 15.0, 150.0, 74.0


def _grid(architecture: Architecture, network: Network, image: Shape) -> str:
    """A column a block, a row an edge of its cell; a gap is between branches and between scales."""
    canvas = Canvas(f"{architecture.space} network")
    size = f"input {image.channels}×{image.resolution}"
    canvas.text(MARGIN, 54, size, anchor="start", colour=PALE)
    columns: dict[int, dict[str, str]] = {}
    names: dict[tuple[int, str], str] = {}
    for name, candidate in architecture.choices.items():
        _, block, _, _, edge = name.split(".", 4)  # blocks.7.cell.branches.0.nodes.1.edges.0
        columns.setdefault(int(block), {})[edge] = candidate
        names[int(block), edge] = name
    edges = sorted(columns[0], key=_edge_order)
    ys = [TOP + SIDE * j + 10.0 * int(edge.split(".")[0]) for j, edge in enumerate(edges)]
    for edge, y in zip(edges, ys, strict=True):
        canvas.text(LEFT - 10, y + 11, _edge_words(edge), size=10, colour=PALE, anchor="end")
    cells = [module for module in network.modules() if isinstance(module, Cell)]
    shapes = _output_shapes(network, image, cells)
    x, before, spans = LEFT, image, []
    for i, shape in enumerate(shapes):
        x += 10 if shape.height < before.height else 0
        for edge, y in zip(edges, ys, strict=True):
            candidate = columns[i][edge]
            tip = f"block {i + 1}, {_edge_words(edge)}: {candidate}"
            colour = LAYERS.get(candidate, MORE[-1])
            canvas.rect(x, y, SIDE - 1.5, SIDE - 1.5, colour, tip, names[i, edge])
        spans.append((x, x + SIDE - 1.5, shape))
        x, before = x + SIDE, shape
    bottom = ys[-1] + SIDE + 12
    canvas.stages(
        bottom,
        spans,
        lambda shape: shape.resolution,
        lambda first, last, _: (f"{first.channels} to {last.channels}", first.resolution),
    )
    counts = list(architecture.choices.values())
    entries = [(LAYERS[n], f"{n} ({counts.count(n)})") for n in LAYERS if n in counts]
    note = "a column a block, a row an edge of its cell · below: inner channels, resolution"
    canvas.legend(bottom + 74, entries, note)
    return canvas.svg(f"{architecture.space} network of {len(shapes)} blocks")


def _edge_order(edge: str) -> tuple[int, int, str]:
    """By branch, then by level, then by place: `0.edges.1` before `0.nodes.0.edges.0`."""
    return int(edge.split(".")[0]), edge.count("nodes"), edge


def _edge_words(edge: str) -> str:
    """`branch 1, edge 2.1`: the second edge's node's first."""
    branch, *place = [int(step) + 1 for step in edge.split(".") if step.isdigit()]
    return f"branch {branch}, edge {'.'.join(map(str, place))}"


# --- any model ---


def _choices(architecture: Architecture, rows: int = 24) -> str:
    """Every choice with its candidate, in the model's order, in columns."""
    canvas = Canvas(f"network of {architecture.space}")
    candidates = list(dict.fromkeys(architecture.choices.values()))
    colours = {name: MORE[i % len(MORE)] for i, name in enumerate(candidates)}
    x, items = MARGIN, list(architecture.choices.items())
    for start in range(0, len(items), rows):
        column = items[start : start + rows]
        wide = max(len(f"{name}{candidate}") for name, candidate in column) * 6.4 + 50
        for j, (name, candidate) in enumerate(column):
            y = 58 + 20.0 * j
            canvas.rect(x, y, 14, 14, colours[candidate], candidate, name)
            canvas.text(x + 22, y + 11, name, anchor="start", colour=PALE)
            canvas.text(x + wide - 16, y + 11, candidate, anchor="end")
        x += wide + 12
    canvas.grow(x - 28, 58)
    return canvas.svg(f"network of {architecture.space}, {len(items)} choices")
