"""Reader of the authors' CIFAR-10 network (`PyramidTreeNet`), a point of the space `tree`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

from annotated_types import Ge, Le

from proxylessnas.architecture import Architecture
from proxylessnas.config import parse_settings
from proxylessnas.errors import ArchitectureError, ConfigError, did_you_mean
from proxylessnas.schema import dotted
from proxylessnas.spaces.tree import CANDIDATES, TreeSettings
from proxylessnas.zoo.config_layers import (
    Choices,
    DropRate,
    Fields,
    architecture,
    at,
    classifier,
    compare,
    conv_layer,
    plain_layer,
    same,
)

SIZE = 32  # of the images; the config does not say it
Place = tuple[str | int, ...]
STEM: Place = ("blocks", 0, "layers", 0)
CELL: Place = ("blocks", 1, "cell")
OPTIONAL = ("tree_node_config", "cell_drop_rate", "cell_drop_scheme")


def read_tree(config: Fields) -> Architecture:
    """The architecture of a decoded config.

    Raises:
        ArchitectureError: it is no network of the space; the message names the place.
    """
    last = len(at(config, "blocks", hint=list[Any])) - 1
    if last < 2:
        raise ArchitectureError("blocks needs a stem, a cell and a head")
    blocks = range(1, last)
    inner = [at(config, "blocks", i, "in_bottle", "out_channels") for i in blocks]
    levels = _levels(config)
    rates = [at(config, *node, "path_drop_rate", hint=DropRate) for node in levels]
    cell_rates = [at(config, "blocks", i, "cell_drop_rate", hint=DropRate) for i in blocks]
    settings: Fields = {
        "input_shape": [at(config, *STEM, "in_channels"), SIZE, SIZE],
        "classes": at(config, "classifier", "out_features"),
        "blocks": _scales(config, blocks),
        "start": at(config, *STEM, "out_channels"),
        "bottleneck": max(1, at(config, "blocks", 1, "out_bottle", "out_channels") // inner[0]),
        "branches": len(at(config, *levels[1], "edges", hint=list[Any])),
        "depth": len(levels) - 2,
        "branching": len(at(config, *levels[2], "edges", hint=list[Any])),
        "groups": at(config, *CELL, "edges", 0, "groups", hint=Annotated[int, Ge(1), Le(64)]),
        "path_drop": _path_drop(config, rates),
        "cell_drop": _cell_drop(config, cell_rates),
        "dropout": at(config, "classifier", "dropout_rate", hint=DropRate),
    }
    tree = _grown(settings, inner)
    choices = {name: choice for i in blocks for name, choice in _cell_choices(config, tree, i)}
    expected = _config(tree, choices, rates, cell_rates)
    compare(config, {**expected, **{k: config[k] for k in OPTIONAL if k in config}})
    return architecture("tree", {**settings, "growth": tree.growth}, choices)


def _levels(config: Fields) -> list[Place]:
    """The first node of every level: the cell's convolution, its branches, the tree's levels."""
    nodes, node = [], CELL
    while at(config, *node, hint=Fields | None) is not None:
        nodes.append(node)
        node = (*node, "child_nodes", 0)
    if len(nodes) < 3:
        raise ArchitectureError(f"{dotted('', node)} is null; a tree is expected")
    return nodes


def _scales(config: Fields, blocks: Iterable[int]) -> list[int]:
    """Blocks at every scale; a block whose shortcut pools begins one."""
    scales = [0]
    for i in blocks:
        if at(config, "blocks", i, "shortcut", "name", hint=str) == "PoolingLayer":
            scales.append(0)
        scales[-1] += 1
    return scales


def _path_drop(config: Fields, rates: list[float]) -> list[float]:
    """Rates by level; the network's, where it has one, holds below the convolution."""
    if "tree_node_config" in config:
        nodes = at(config, "tree_node_config", hint=Fields)
        compare(dict.fromkeys(nodes), {"path_drop_rate": None} if nodes else {}, "tree_node_config")
        if nodes:
            rate = at(config, "tree_node_config", "path_drop_rate", hint=DropRate)
            rates = [rates[0], *[rate] * (len(rates) - 1)]
    return rates[1:2] if rates[0] == 0 and len(set(rates[1:])) == 1 else rates


def _cell_drop(config: Fields, rates: list[float]) -> list[float]:
    """Drop rates of the blocks: the network's, even or growing linearly, or their own."""
    if "cell_drop_rate" in config:
        rate, n = at(config, "cell_drop_rate", hint=DropRate), len(rates)
        even = config.get("cell_drop_scheme", "linear") != "linear"
        rates = [rate if even else 2 * i * rate / (n + 1) for i in range(1, n + 1)]
    return rates[:1] if len(set(rates)) == 1 else rates


def _grown(settings: Fields, inner: list[int]) -> TreeSettings:
    """The settings with the growth whose widths are the blocks', found from the last width.

    Raises:
        ArchitectureError: the widths do not grow evenly, or the space has no such settings.
    """
    nearest = inner[-1] - settings["start"]
    for growth in range(max(0, nearest), nearest + settings["groups"]):
        try:
            tree = parse_settings(TreeSettings, {**settings, "growth": growth})
        except ConfigError as error:
            raise ArchitectureError(f"it does not fit the space tree: {error}") from None
        if [tree.inner(i) for i in range(1, len(inner) + 1)] == inner:
            return tree
    raise ArchitectureError(
        f"the inner widths {inner[0]} to {inner[-1]} of the blocks do not grow evenly from "
        f"the stem's {settings['start']}"
    )


def _cell_choices(config: Fields, s: TreeSettings, block: int) -> Iterator[tuple[str, str]]:
    """The candidate of every edge of a cell."""

    def below(node: Place, name: str, level: int) -> Iterator[tuple[str, str]]:
        for j in range(s.branching):
            yield f"{name}.edges.{j}", _candidate(config, (*node, "edges", j))
        if level < s.depth + 1:
            for j in range(s.branching):
                yield from below((*node, "child_nodes", j), f"{name}.nodes.{j}", level + 1)

    for b in range(s.branches):
        root = ("blocks", block, "cell", "child_nodes", 0, "child_nodes", b)
        yield from below(root, f"blocks.{block - 1}.cell.branches.{b}", 2)


def _candidate(config: Fields, place: Place) -> str:
    """The candidate that an edge's layer is, or the first of its kind, from which it differs."""
    edge = at(config, *place, hint=Fields)
    kind = at(config, *place, "name", hint=str)
    layers = {str(name): _edge_layer(name, 1) for name in CANDIDATES}
    alike = [name for name, layer in layers.items() if layer["name"] == kind]
    if not alike:
        near = did_you_mean(kind, {layer["name"] for layer in layers.values()})
        raise ArchitectureError(f"{dotted('', place)}.name is the unknown layer {kind!r}; {near}")
    return max(alike, key=lambda name: sum(same(edge.get(k), v) for k, v in layers[name].items()))


# --- the config of an architecture ---


def _config(
    s: TreeSettings, choices: Choices, path_rates: Sequence[float], cell_rates: Sequence[float]
) -> Fields:
    stem = conv_layer(s.input_shape[0], s.start, 3, use_bn=False, act_func=None)
    blocks = [_transition(stem, plain_layer("IdentityLayer", s.start, use_bn=True))]
    channels = s.start
    strides = [2 if scale and not i else 1 for scale, n in enumerate(s.blocks) for i in range(n)]
    for i, stride in enumerate(strides):
        inner = s.inner(i + 1)
        cell = _cell(s, inner, stride, choices, f"blocks.{i}.cell.branches", path_rates)
        blocks.append(_block(channels, inner, inner * s.bottleneck, stride, cell_rates[i], cell))
        channels = inner * s.bottleneck
    side = SIZE >> (len(s.blocks) - 1)
    pool = plain_layer("PoolingLayer", channels, pool_type="avg", use_bn=True, act_func="relu")
    blocks.append(_transition({**pool, "kernel_size": side, "stride": side}))
    final = classifier(channels, s.classes, s.dropout, "bn_act_weight")
    return {"name": "PyramidTreeNet", "blocks": blocks, "classifier": final}


def _transition(*layers: Fields) -> Fields:
    return {"name": "TransitionBlock", "layers": list(layers)}


def _block(channels: int, inner: int, out: int, stride: int, rate: float, cell: Fields) -> Fields:
    shortcut = plain_layer("IdentityLayer", channels)
    if stride > 1:
        pool = {"pool_type": "avg", "kernel_size": stride, "stride": stride}
        shortcut = plain_layer("PoolingLayer", channels, **pool)
    return {
        "name": "ResidualTreeBlock",
        "cell_drop_rate": rate,
        "final_bn": True,
        "shortcut": shortcut,
        "in_bottle": conv_layer(channels, inner, 1, act_func=None),
        "out_bottle": conv_layer(inner, out, 1),
        "cell": cell,
    }


def _cell(
    s: TreeSettings,
    width: int,
    stride: int,
    choices: Choices,
    name: str,
    rates: Sequence[float],
) -> Fields:
    """A grouped convolution, its parts, and a tree below each of them."""

    def tree(name: str, level: int) -> Fields:
        edges = [_edge_layer(choices[f"{name}.edges.{j}"], width) for j in range(s.branching)]
        last = level == s.depth + 1
        below = [None if last else tree(f"{name}.nodes.{j}", level + 1) for j in range(s.branching)]
        kind = {"split_type": "copy", "merge_type": "add", "has_branch_bn": False}
        return _node(width, width, rates[level], edges, below, **kind)

    wide, shuffle = width * s.branches, s.groups > 1
    conv = conv_layer(width, wide, 3, stride=stride, groups=s.groups, has_shuffle=shuffle)
    parts = [plain_layer("IdentityLayer", width)] * s.branches
    trees: list[Fields | None] = [tree(f"{name}.{b}", 2) for b in range(s.branches)]
    kind = {"split_type": "split", "merge_type": "add", "has_branch_bn": True}
    split = _node(wide, width, rates[1], parts, trees, **kind)
    kind = {"split_type": None, "merge_type": None, "has_branch_bn": False}
    return _node(width, width, rates[0], [conv], [split], **kind)


def _node(
    channels: int,
    out: int,
    rate: float,
    edges: Sequence[Fields],
    below: Sequence[Fields | None],
    **kind: object,
) -> Fields:
    return {
        "name": "TreeNode",
        "in_channels": channels,
        "out_channels": out,
        **kind,
        "path_drop_rate": rate,
        "edges": list(edges),
        "child_nodes": list(below),
    }


def _edge_layer(name: str, width: int) -> Fields:
    if name == "identity":
        return plain_layer("IdentityLayer", width)
    kernel = int(name[-1])
    if name in ("avg3", "max3"):
        pool = {"pool_type": name[:3], "kernel_size": kernel, "stride": 1}
        return plain_layer("PoolingLayer", width, **pool)
    dilation = 2 if name.startswith("dil") else 1
    return conv_layer(width, width, kernel, name="DepthConvLayer", dilation=dilation)
