"""A network drawn as the paper's figure 4 does: blocks in order, as a self-contained SVG.

Kernels are colours, expansions are heights, blocks left out are thin gaps; stages with their
width and resolution stand below. Tree cells are a grid of blocks by edges. Of a user's model,
every choice and its candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from proxylessnas.architecture import Architecture
from proxylessnas.core.mixed import Residual
from proxylessnas.report.canvas import MARGIN, ON_BLOCK, PALE, PLAIN, Canvas
from proxylessnas.report.shapes import Shape, convolutions, is_row, network_of, output_shapes
from proxylessnas.spaces.blocks import MBConv, Network
from proxylessnas.spaces.tree_layers import Cell, TreeBlock

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


def draw(architecture: Architecture, milliseconds: Mapping[str, float] | None = None) -> str:
    """The network as a self-contained SVG; every text in it is escaped.

    milliseconds: by choice, written below its block. What belongs to a choice has its name as
    the attribute `data-choice`.

    Raises:
        ArchitectureError: the choices do not fit the space.
        ConfigError: its settings do not.
    """
    network = network_of(architecture)
    if network is None:
        return _choices(architecture)
    image = Shape(*architecture.settings["input_shape"])
    if isinstance(network.blocks[0], TreeBlock):
        return _grid(architecture, network, image)
    if not is_row(architecture, network):
        return _choices(architecture)
    return _row(architecture, network, image, milliseconds or {})


def _stages(
    canvas: Canvas,
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
        canvas.line(left, y, right, y, PALE)
        width, resolution = words(first, last, right - left)
        canvas.text((left + right) / 2, y + 17, width, weight=600)
        canvas.text((left + right) / 2, y + 32, resolution, size=10, colour=PALE)


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
    mix = convolutions(network.head)[0]
    parts = [network.stem, *network.blocks, mix, network.head]
    shapes = output_shapes(network, image, parts)
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
    _stages(canvas, below, spans, lambda shape: shape, words)
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
    layers = convolutions(module)
    if not layers:
        return Block(words="left out", height=0, choice=choice)
    inner = module.branch if isinstance(module, Residual) else module
    kernel, words, height = layers[0].kernel_size[0], "Conv", HEIGHTS[1]
    if isinstance(inner, MBConv):
        kernel, words = inner.kernel, f"MB{inner.expansion:.3g}"
        height = HEIGHTS.get(round(inner.expansion), 150.0)
        fixed = fixed or inner.expand is None
    fill = PLAIN if fixed else KERNELS.get(kernel, MORE[-1])
    return Block(words=f"{words} {kernel}×{kernel}", fill=fill, height=height, choice=choice)


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
    shapes = output_shapes(network, image, cells)
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
    _stages(
        canvas,
        bottom,
        spans,
        lambda shape: shape.resolution,
        _scale,
    )
    counts = list(architecture.choices.values())
    entries = [(LAYERS[n], f"{n} ({counts.count(n)})") for n in LAYERS if n in counts]
    note = "a column a block, a row an edge of its cell · below: inner channels, resolution"
    canvas.legend(bottom + 74, entries, note)
    return canvas.svg(f"{architecture.space} network of {len(shapes)} blocks")


def _scale(first: Shape, last: Shape, width: float) -> tuple[str, str]:
    """A scale's channels and resolution, short where it has few blocks."""
    same = width < 60 or first.channels == last.channels
    channels = str(last.channels) if same else f"{first.channels} to {last.channels}"
    short = width < 40 and first.height == first.width
    return channels, f"{first.height}²" if short else first.resolution


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
