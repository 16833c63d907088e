"""Reader of the authors' CIFAR-10 network (`PyramidTreeNet`), a point of the space `tree`."""

from __future__ import annotations

from typing import Any

from proxylessnas.architecture import Architecture
from proxylessnas.errors import ArchitectureError, ConfigError
from proxylessnas.spaces import tree
from proxylessnas.zoo.config_fields import Place
from proxylessnas.zoo.config_layers import (
    Choices,
    Fields,
    architecture,
    classifier,
    conv_layer,
    plain_layer,
)

SIZE = 32  # of the images; the config does not say it


def read_tree(network: Place) -> Architecture:
    optional = ("tree_node_config", "cell_drop_rate", "cell_drop_scheme")
    network.only("name", "blocks", "classifier", optional=optional)
    blocks = network.items("blocks")
    if len(blocks) < 3:
        network.get("blocks").fail("needs a stem, a cell and a head")
    image, start = _stem(blocks[0])
    cells = blocks[1:-1]
    shape = _CellShape(cells[0].get("cell"))
    bottleneck = _bottleneck(cells[0])
    channels, scales, choices = start, [0], Choices()
    inners: list[int] = []
    for i, block in enumerate(cells):
        stride = 2 if block.get("shortcut").text("name") == "PoolingLayer" else 1
        scales = [*scales, 0] if stride == 2 else scales
        scales[-1] += 1
        inner, out = _tree_block(block, channels, stride, bottleneck)
        choices |= shape.choices(block.get("cell"), inner, stride, f"blocks.{i}.cell.branches")
        inners.append(inner)
        channels = out
    pool = SIZE >> (len(scales) - 1)
    pooling = plain_layer("PoolingLayer", channels, pool_type="avg", use_bn=True, act_func="relu")
    _transition(blocks[-1], {**pooling, "kernel_size": pool, "stride": pool})
    classes, dropout = classifier(network.get("classifier"), channels, "bn_act_weight")
    settings = {
        "input_shape": [image, SIZE, SIZE],
        "classes": classes,
        "blocks": scales,
        "start": start,
        "bottleneck": bottleneck,
        "branches": shape.branches,
        "depth": shape.depth,
        "branching": shape.branching,
        "groups": shape.groups,
        "path_drop": shape.path_drop(network),
        "cell_drop": _cell_drop(network, cells),
        "dropout": dropout,
    }
    return architecture("tree", {**settings, "growth": _growth(settings, inners)}, choices)


def _transition(block: Place, *layers: Fields) -> None:
    block.expect({"name": "TransitionBlock"}, "layers")
    found = block.items("layers")
    if len(found) != len(layers):
        block.get("layers").fail(f"has {len(found)} layers; {len(layers)} are expected")
    for place, layer in zip(found, layers, strict=True):
        place.expect(layer)


def _stem(block: Place) -> tuple[int, int]:
    """(image channels, width) of the stem: a plain convolution, then BN."""
    conv = block.items("layers")[0] if block.items("layers") else block.fail("has no layers")
    image, width = conv.integer("in_channels"), conv.integer("out_channels")
    norm = plain_layer("IdentityLayer", width, use_bn=True)
    _transition(block, conv_layer(image, width, 3, use_bn=False, act_func=None), norm)
    return image, width


def _bottleneck(block: Place) -> int:
    inside, outside = block.get("in_bottle"), block.get("out_bottle")
    return max(1, outside.integer("out_channels") // inside.integer("out_channels"))


def _tree_block(block: Place, channels: int, stride: int, bottleneck: int) -> tuple[int, int]:
    """(inner, outer) width of a residual block; everything but its cell is checked."""
    inside = block.get("in_bottle")
    inner = inside.integer("out_channels")
    out = inner * bottleneck
    inside.expect(conv_layer(channels, inner, 1, act_func=None))
    block.get("out_bottle").expect(conv_layer(inner, out, 1))
    if stride == 1:
        shortcut = plain_layer("IdentityLayer", channels)
    else:
        pool = {"pool_type": "avg", "kernel_size": stride, "stride": stride}
        shortcut = plain_layer("PoolingLayer", channels, **pool)
    block.get("shortcut").expect(shortcut)
    block.rate("cell_drop_rate")
    parts = ("cell_drop_rate", "shortcut", "in_bottle", "out_bottle", "cell")
    block.expect({"name": "ResidualTreeBlock", "final_bn": True}, *parts)
    return inner, out


def _cell_drop(network: Place, cells: list[Place]) -> list[float]:
    """Drop rates of the blocks: the network's, even or growing linearly, or their own."""
    rates = [cell.rate("cell_drop_rate") for cell in cells]
    if network.has("cell_drop_rate"):
        rate = network.rate("cell_drop_rate")
        scheme = network.text("cell_drop_scheme") if network.has("cell_drop_scheme") else "linear"
        linear = [2 * i * rate / (len(cells) + 1) for i in range(1, len(cells) + 1)]
        rates = linear if scheme == "linear" else [rate] * len(cells)
    return rates[:1] if len(set(rates)) == 1 else rates


def _growth(settings: dict[str, Any], inners: list[int]) -> int:
    """The growth whose widths are the blocks', found from the last one's.

    Raises:
        ArchitectureError: the widths do not grow evenly; the first that does not is named.
    """
    nearest, groups = inners[-1] - settings["start"], settings["groups"]
    for growth in range(max(0, nearest), nearest + groups):
        try:
            space = tree.TreeSettings(**_tuples(settings), growth=growth)
        except ConfigError as error:
            raise ArchitectureError(f"it does not fit the space tree: {error}") from None
        if all(space.inner(i) == inner for i, inner in enumerate(inners, 1)):
            return growth
    raise ArchitectureError(
        f"the inner widths {inners[0]} to {inners[-1]} of the blocks do not grow evenly from "
        f"the stem's {settings['start']}"
    )


def _tuples(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}


class _CellShape:
    """The shape that all cells share, taken from the first; reads their choices."""

    def __init__(self, cell: Place) -> None:
        self.groups = cell.items("edges", 1)[0].integer("groups")
        split = cell.items("child_nodes", 1)[0]
        self.branches = len(split.items("edges"))
        if self.groups > 64 or not self.branches:
            cell.fail(f"has {self.groups} groups and {self.branches} branches")
        node = split.items("child_nodes", self.branches)[0]
        self.branching, self.depth = len(node.items("edges")), 1
        while self.branching and (below := node.items("child_nodes")) and below[0].value:
            node, self.depth = below[0], self.depth + 1
        self.rates: dict[int, float] = {}

    def choices(self, cell: Place, width: int, stride: int, name: str) -> Choices:
        """The candidate of every edge of one cell, of `width` channels inside."""
        wide = width * self.branches
        shuffle = self.groups > 1
        conv = conv_layer(width, wide, 3, stride=stride, groups=self.groups, has_shuffle=shuffle)
        self._node(cell, width, width, 0, None, None)
        cell.items("edges", 1)[0].expect(conv)
        split = cell.items("child_nodes", 1)[0]
        self._node(split, wide, width, 1, "split", "add", bn=True)
        for edge in split.items("edges", self.branches):
            edge.expect(plain_layer("IdentityLayer", width))
        choices: Choices = {}
        for b, node in enumerate(split.items("child_nodes", self.branches)):
            choices |= self._edges(node, width, 2, f"{name}.{b}")
        return choices

    def _edges(self, node: Place, width: int, level: int, name: str) -> Choices:
        self._node(node, width, width, level, "copy", "add")
        edges, below = (node.items(part, self.branching) for part in ("edges", "child_nodes"))
        choices = {f"{name}.edges.{j}": _edge(edge, width) for j, edge in enumerate(edges)}
        for j, child in enumerate(below):
            if level < self.depth + 1:
                choices |= self._edges(child, width, level + 1, f"{name}.nodes.{j}")
            elif child.value is not None:
                child.fail("is deeper than the first cell's tree")
        return choices

    def _node(
        self,
        node: Place,
        channels: int,
        out: int,
        level: int,
        split: str | None,
        merge: str | None,
        bn: bool = False,
    ) -> None:
        rate = node.rate("path_drop_rate")
        if self.rates.setdefault(level, rate) != rate:
            node.fail(f"has path_drop_rate {rate}, others of its level {self.rates[level]}")
        fields = {"name": "TreeNode", "in_channels": channels, "out_channels": out}
        fields |= {"split_type": split, "merge_type": merge, "has_branch_bn": bn}
        node.expect({**fields, "path_drop_rate": rate}, "edges", "child_nodes")

    def path_drop(self, network: Place) -> list[float]:
        """Rates by level; the network's own, where it has one, holds below the convolution."""
        rates = [self.rates[level] for level in range(self.depth + 2)]
        if network.has("tree_node_config"):
            nodes = network.get("tree_node_config")
            nodes.only(optional=("path_drop_rate",))
            if nodes.has("path_drop_rate"):
                rates[1:] = [nodes.rate("path_drop_rate")] * (self.depth + 1)
        return rates[1:2] if rates[0] == 0 and len(set(rates[1:])) == 1 else rates


def _edge(place: Place, width: int) -> str:
    """The candidate that an edge's layer is."""
    layers = {str(name): _edge_layer(name, width) for name in tree.CANDIDATES}
    return place.one_of(layers)


def _edge_layer(name: str, width: int) -> Fields:
    if name == "identity":
        return plain_layer("IdentityLayer", width)
    kernel = int(name[-1])
    if name in ("avg3", "max3"):
        pool = {"pool_type": name[:3], "kernel_size": kernel, "stride": 1}
        return plain_layer("PoolingLayer", width, **pool)
    dilation = 2 if name.startswith("dil") else 1
    return conv_layer(width, width, kernel, name="DepthConvLayer", dilation=dilation)
