"""The pairs of a model: classes of elements that are in the same tensors, and why others stay.

A layer that reads the channels is fitted anew when some are gone, so it has to be a module of torch
whose weight nothing else uses; all other tensors are cut alone. A module that is called several
times has the channels of all its calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import Node

from proxylessnas.hardware.fingerprint import Convolution
from proxylessnas.surgery.coupling import APART, Coupling, Elements
from proxylessnas.surgery.graph import Graph, channel_axis, groups, operation, shape, weight_axes
from proxylessnas.surgery.moves import RESHAPES, SPLITS
from proxylessnas.surgery.pairs import Cut, Norm, Pair, Refused, Size
from proxylessnas.surgery.relations import relate

SIZED = {"expand", "repeat", "layer_norm", "rms_norm"}  # operations that are given sizes
LARGEST = 8192  # inputs of a layer that are fitted: the square of it is a matrix in memory


def find_pairs(
    model: nn.Module, graph: Graph, wanted: Callable[[str], bool] = lambda path: True
) -> tuple[list[Pair], list[Refused]]:
    """Every pair of the model whose makers are wanted, and why the other wanted layers stay.

    graph: of this model.
    """
    coupling = coupled(model, graph)
    pairs: list[Pair] = []
    refused: list[Refused] = []
    sized, reasons = _attributes(coupling), dict[str, str]()
    for axes, own in _groups(coupling, _axes(coupling)):
        pair = _pair(coupling, axes, own, sized)
        reason = _why_not(model, pair, wanted)
        if not reason:
            pairs.append(pair)
            continue
        reasons |= dict.fromkeys(pair.producers, reason)
        if wanted(pair.name):
            refused.append(Refused(name=pair.name, kind=pair.kind, shape=pair.shape, reason=reason))
    told = {cut.module for pair in pairs for cut in pair.cuts} | {each.name for each in refused}
    for layer in graph.layers:
        name = path_of(graph, layer)
        if wanted(name) and name not in told:
            told.add(name)
            reason = reasons.get(name) or _why_fixed(coupling, layer)
            refused.append(
                Refused(name=name, kind=operation(layer), shape=shape(layer), reason=reason)
            )
    order = {path_of(graph, layer): k for k, layer in reversed([*enumerate(graph.layers)])}
    return _named_apart(pairs), sorted(refused, key=lambda each: order[each.name])


def path_of(graph: Graph, layer: Node) -> str:
    """The path of the module that holds a layer's weight."""
    return (graph.weight(layer.args[1]) or str(layer.args[1])).removesuffix(".weight")


# --- what is bound ---


def coupled(model: nn.Module, graph: Graph) -> Coupling:
    """The elements of a model's graph, all bound."""
    coupling = Coupling(graph)
    relate(coupling)
    for layer in graph.layers:
        weight: Any = layer.args[1]
        name = graph.weight(weight)
        if name is None:
            reason = "a weight beside it is computed (a parametrisation, or an input)"
        elif graph.is_shared(weight):
            reason = f"{name} has several names, or uses of several kinds"
        else:
            if groups(layer) == 1 and (why := _why_not_fitted(model, name)):
                coupling.fix(coupling.axis(weight, weight_axes(layer)[1]), why, layer)
            continue
        # Of a grouped convolution nothing is fitted: filters that blur may be repeated by the code.
        for axis in range(int(name is None and groups(layer) > 1), len(shape(weight))):
            coupling.fix(coupling.axis(weight, axis), reason, layer)
    weights = [coupling.axis(node, k) for node, k in _weight_axes(graph)]
    coupling.decide_folds(np.concatenate(weights) if weights else np.arange(0))
    return coupling


def _why_not_fitted(model: nn.Module, name: str) -> str:
    """Why a layer that reads channels cannot be fitted; empty where it can."""
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    if attribute != "weight" or not isinstance(owner, nn.Linear | Convolution):
        return f"the weight {name} is of no nn.Linear or nn.Conv module"
    if isinstance(model.get_submodule(path.rpartition(".")[0]), nn.MultiheadAttention):
        return "nn.MultiheadAttention has as many numbers in its heads as it reads"
    return ""


def _weight_axes(graph: Graph) -> Iterator[tuple[Node, int]]:
    """Every axis of every tensor of the model."""
    for node in graph.nodes:
        if graph.weight(node) is not None:
            yield from ((node, axis) for axis in range(len(shape(node))))


# --- pairs of it ---


@dataclass(frozen=True, eq=False)
class _Axis:
    """An axis of a tensor of the model.

    classes: of every index. maker: the layer that makes channels along it. is_read: by a layer.
    """

    tensor: str
    axis: int
    classes: NDArray[np.int32]
    maker: Node | None
    is_read: bool


def _axes(coupling: Coupling) -> list[_Axis]:
    graph, axes = coupling.graph, []
    # Of several calls of a layer the first.
    makers = {(x.args[1], weight_axes(x)[0]): x for x in reversed(graph.layers)}
    read = {(x.args[1], weight_axes(x)[1]) for x in graph.layers if groups(x) == 1}
    for node, axis in _weight_axes(graph):
        name, at = graph.weight(node) or "", (node, axis)
        axes.append(_Axis(name, axis, coupling.of(node, axis), makers.get(at), at in read))
    return axes


def _groups(coupling: Coupling, axes: Sequence[_Axis]) -> list[tuple[list[_Axis], Elements]]:
    """Axes and the classes in all of them, which layers make and nothing fixes."""
    if not axes:
        return []
    made = np.zeros(coupling.classes.max() + 1, bool)
    for axis in axes:
        if axis.maker is not None:
            made[axis.classes] = True
    made[list(coupling.reasons)] = False
    classes = np.concatenate([axis.classes for axis in axes])
    numbers = np.repeat(np.arange(len(axes)), [len(axis.classes) for axis in axes])
    numbers, classes = numbers[made[classes]], classes[made[classes]]
    # By class; within one the axes stay in their order, and so does what is first in them.
    order = np.argsort(classes, kind="stable")
    own, begins = np.unique(classes[order], return_index=True)
    alike: dict[bytes, list[int]] = {}
    where = np.split(numbers[order], begins[1:])
    for k in np.argsort(order[begins], kind="stable").tolist():
        alike.setdefault(where[k].tobytes(), []).append(k)
    return [
        ([axes[n] for n in dict.fromkeys(where[ks[0]].tolist())], own[ks].astype(np.int64))
        for ks in alike.values()
    ]


def _pair(
    coupling: Coupling, axes: Sequence[_Axis], own: Elements, sized: Sequence[_Sized]
) -> Pair:
    graph = coupling.graph
    channel_of = np.full(coupling.classes.max() + 1, -1)
    channel_of[own] = np.arange(len(own))
    cuts = {
        axis: Cut(axis.tensor, axis.axis, torch.from_numpy(channel_of[axis.classes]))
        for axis in axes
    }
    made = [(axis, axis.maker) for axis in axes if axis.maker is not None]
    # A depthwise or grouped convolution is only cut with what it reads.
    made = [each for each in made if groups(each[1]) == 1] or made
    made.sort(key=lambda each: graph.order[each[1]])
    axis, first = made[0]
    return Pair(
        name=path_of(graph, first),
        kind=operation(first),
        shape=shape(first),
        width=len(own),
        unit=cuts[axis].places.shape[1],
        producers=tuple(path_of(graph, maker) for _, maker in made),
        gates=tuple(path_of(graph, maker) for _, maker in made if graph.is_gate(maker)),
        consumers=tuple(cut for axis, cut in cuts.items() if axis.is_read),
        cuts=tuple(cut for axis, cut in cuts.items() if not axis.is_read),
        norms=tuple(
            Norm(graph.module(node), axis, torch.from_numpy(channels))
            for node, axis, elements in coupling.norms
            if ((channels := channel_of[coupling.classes[elements]]) >= 0).any()
        ),
        sizes=tuple(
            dict.fromkeys(
                Size(path, name, len(elements) // len(own))
                for elements, path, name in sized
                if (channel_of[coupling.classes[elements]] >= 0).all()
            )
        ),
    )


_Sized = tuple[Elements, str, str]  # elements of an axis, and an attribute of a module


def _attributes(coupling: Coupling) -> list[_Sized]:
    """What the modules' code may take numbers of channels from, where it gives sizes."""
    graph, sized = coupling.graph, []
    for node in graph.nodes:
        if operation(node) in RESHAPES | SIZED or (node in graph.layers and groups(node) > 1):
            axes = [coupling.axis(node, axis) for axis in range(len(shape(node)))]
            axes += [part for fold in coupling.folds if fold.node is node for part in fold.parts]
        elif operation(node) in SPLITS - {"chunk", "unbind"}:
            both: list[Any] = [node.args[0], next(iter(node.users))]
            axes = [coupling.axis(x, axis) for x in both for axis in range(len(shape(x)))]
        else:
            continue
        path = graph.module(node)
        for name, held in _numbers(graph.model.get_submodule(path)):
            sized += [(axis, path, name) for axis in axes if len(axis) == held > 1]
    return sized


def _numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Attributes that are whole numbers, or tuples of such."""
    for name, held in vars(module).items():
        if name.startswith("_"):
            continue
        if isinstance(held, tuple):
            yield from ((f"{name}[{k}]", n) for k, n in enumerate(held) if type(n) is int)
        elif type(held) is int:
            yield name, held


def _named_apart(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs of one layer's channels, as of the halves of its output, have names of their own."""
    seen: dict[str, int] = {}
    named = []
    for pair in pairs:
        number = seen[pair.name] = seen.get(pair.name, 0) + 1
        name = pair.name if number == 1 else f"{pair.name}#{number}"
        named.append(replace(pair, name=name))
    return named


# --- why not ---


def _why_not(model: nn.Module, pair: Pair, wanted: Callable[[str], bool]) -> str:
    if not pair.consumers:
        return "no layer reads its channels"
    if pair.width == 1:
        return "all its channels go together"
    if other := next((path for path in pair.producers if not wanted(path)), None):
        return f"its channels go with those of {other}, which `blocks` leaves out"
    for cut in pair.consumers:
        if (numbers := cut.places.numel()) > LARGEST:
            return f"{cut.module} reads {numbers} numbers of it, and fits are of {LARGEST} at most"
    return ""


def _why_fixed(coupling: Coupling, layer: Node) -> str:
    """Of the reasons the one that the layer comes to first."""
    order = coupling.graph.order
    reasons = [
        (reason == APART, order[node] < order[layer], abs(order[node] - order[layer]), reason)
        for number in np.unique(coupling.of(layer, channel_axis(layer))).tolist()
        for node, reason in coupling.reasons.get(number, [])
    ]
    return min(reasons)[3] if reasons else "its channels go with others"
