"""Pairs: layers whose output channels can be taken out, and the layers that read them.

From every convolution and linear layer the graph is walked forward, over operations that keep
channels apart, to the layers that read its channels. An operation that is not known, or that mixes
channels with others, is a refusal with its reason: what cannot be shown to be right is not cut.

Refused so far: what a residual stream adds up, concatenation, grouped convolutions, normalisation
over the narrowed channels (layer and group norm), attention's queries, keys and values, transposed
convolutions, and weights that are used several times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn
from torch.fx import Node

from proxylessnas.errors import UserError
from proxylessnas.hardware.fingerprint import Convolution
from proxylessnas.surgery.graph import (
    CONVOLUTIONS,
    LAYERS,
    Graph,
    argument,
    channel_axis,
    groups,
    is_pointwise,
    operation,
    shape,
)

LARGEST = 8192  # inputs of a layer that are fitted: the square of it is a matrix in memory

# Operations whose output has every channel where the input has it. What torch itself marks as
# pointwise is not listed.
SAME = {
    *("alias", "alpha_dropout", "clone", "contiguous", "detach", "dropout", "expand"),
    *("feature_dropout", "feature_alpha_dropout", "hardswish", "hardtanh", "_to_copy", "to", "elu"),
    *("leaky_relu", "celu", "selu", "relu6", "mish", "softplus", "logsigmoid", "native_dropout"),
}
# Operations over the last dimensions, and how many those are.
SPATIAL = {
    f"{adaptive}{kind}_pool{d}d": d
    for d in (1, 2, 3)
    for adaptive in ("", "adaptive_")
    for kind in ("avg", "max")
}
SPATIAL |= {"upsample_nearest1d": 1, "upsample_linear1d": 1, "upsample_trilinear3d": 3}
SPATIAL |= {"upsample_nearest2d": 2, "upsample_bilinear2d": 2, "upsample_bicubic2d": 2}
SPATIAL |= {"upsample_nearest3d": 3}
RESHAPES = {"flatten", "view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "unflatten"}
REDUCTIONS = {"mean", "sum", "amax", "amin"}


@dataclass(frozen=True)
class Cut:
    """A tensor of the model that is cut with the channels.

    tensor: its name. axis: along which. rows: indices that a channel owns there, side by side.
    """

    tensor: str
    axis: int
    rows: int = 1

    @property
    def module(self) -> str:
        """The path of the module that holds the tensor."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Channels that can be taken out: layers that make them, and layers that read them.

    name: the path of the first layer that makes them. kind: its operation. width: channels.
    producers: paths; several where one gates the other (squeeze-and-excitation, gated MLPs).
    consumers: of the layers that read them, the weights. cuts: every other tensor that is cut.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    width: int
    producers: tuple[str, ...]
    consumers: tuple[Cut, ...]
    cuts: tuple[Cut, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of all modules that hold what is cut."""
        return tuple(dict.fromkeys(cut.module for cut in (*self.cuts, *self.consumers)))


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A layer that keeps its width, and why."""

    name: str
    kind: str
    shape: tuple[int, ...]
    reason: str


class Refusal(UserError):
    """Why channels cannot be taken out."""


def find_pairs(
    model: nn.Module, graph: Graph, wanted: Callable[[str], bool] = lambda path: True
) -> tuple[list[Pair], list[Refused]]:
    """Every pair of the model whose first layer is wanted, and the other wanted layers.

    graph: of this model.
    """
    pairs: list[Pair] = []
    refused: list[Refused] = []
    for layer in graph.layers:
        name = (graph.weight(layer.args[1]) or str(layer.args[1])).removesuffix(".weight")
        if not wanted(name) or any(name in pair.producers for pair in pairs):
            continue
        try:
            pairs.append(_Walk(model, graph, layer).pair(name))
        except Refusal as refusal:
            refused.append(
                Refused(name=name, kind=operation(layer), shape=shape(layer), reason=str(refusal))
            )
    # A depthwise convolution is cut with the channels that it reads.
    cut = {cut.module for pair in pairs for cut in pair.cuts}
    return pairs, [layer for layer in refused if layer.name not in cut]


@dataclass(frozen=True)
class _Place:
    """Where channels are in a tensor: along which axis, and numbers of each side by side."""

    axis: int
    rows: int = 1


class _Walk:
    """The way of one layer's output channels to the layers that read them."""

    def __init__(self, model: nn.Module, graph: Graph, start: Node) -> None:
        self.model, self.graph, self.start = model, graph, start
        self.width = shape(start)[channel_axis(start)]
        self.places: dict[Node, _Place] = {}
        self.waiting: list[Node] = []
        self.cuts: dict[Cut, None] = {}
        self.consumers: dict[Cut, None] = {}
        self.producers: list[str] = []
        self.gates: dict[Node, _Place] = {}  # where the channels of other producers must arrive

    def pair(self, name: str) -> Pair:
        """The pair that begins with this layer.

        Raises:
            Refusal: its channels cannot be taken out.
        """
        self._produce(self.start)
        while self.waiting:
            source = self.waiting.pop(0)
            for node in source.users:
                place = self._after(node, source)
                if place is not None and node not in self.places:
                    self.places[node] = place
                    self.waiting.append(node)
        for gate, place in self.gates.items():
            if self.places.get(gate) != place:
                raise Refusal("it is multiplied with other channels, whose origin is not clear")
        if not self.consumers:
            raise Refusal("no layer reads its channels")
        return Pair(
            name=name,
            kind=operation(self.start),
            shape=shape(self.start),
            width=self.width,
            producers=tuple(self.producers),
            consumers=tuple(self.consumers),
            cuts=tuple(self.cuts),
        )

    def _produce(self, layer: Node) -> None:
        if groups(layer) != 1:
            raise Refusal("a grouped convolution makes its channels")
        self.producers.append(self._cut_layer(layer))
        self.places[layer] = _Place(channel_axis(layer))
        self.waiting.append(layer)

    def _after(self, node: Node, source: Node) -> _Place | None:
        """Where the channels of `source` are in the output of a node; None after the last layer."""
        place, name = self.places[source], operation(node)
        if name == "output":
            raise Refusal("its channels are an output of the model")
        if name in LAYERS:
            return self._layer(node, source, place)
        if name == "batch_norm":
            self._cut_vectors(node, ("weight", "bias", "running_mean", "running_var"), place)
            return place
        if (name in SAME and len(node.all_input_nodes) == 1) or name == "prelu":
            if name == "prelu" and self.model.get_parameter(self._tensor(node.args[1])).numel() > 1:
                self._cut_vectors(node, ("weight",), place)
            return _Place(place.axis + len(shape(node)) - len(shape(source)), place.rows)
        if is_pointwise(node):
            return self._pointwise(node, source, place)
        return self._moved(node, source, place, name)

    # --- layers and tensors that are cut ---

    def _layer(self, node: Node, source: Node, place: _Place) -> _Place | None:
        if node.args[0] is not source:
            raise Refusal("its channels are the weights of another layer")
        kind = operation(node)
        axis = len(shape(source)) - 1 - CONVOLUTIONS.get(kind, 0)
        if place.axis != axis:
            if kind == "linear":  # over another dimension: every channel by itself
                return place
            raise Refusal("a convolution moves over its channels")
        if groups(node) == 1:
            self._consume(node, place)
            return None
        alone = groups(node) == self.width == shape(node)[channel_axis(node)]
        if not alone or place.rows != 1:
            raise Refusal("a grouped convolution reads its channels")
        self._cut_layer(node)
        return _Place(channel_axis(node))

    def _consume(self, node: Node, place: _Place) -> None:
        name = self._weight(node)
        inputs = self.model.get_parameter(name)[0].numel()
        if inputs > LARGEST:
            raise Refusal(
                f"{name.removesuffix('.weight')} reads {inputs} numbers, and fits are of {LARGEST} "
                "at most"
            )
        self.consumers[Cut(name, 1, place.rows)] = None

    def _cut_layer(self, layer: Node) -> str:
        """Cut a layer's output channels; the path of its module."""
        name = self._weight(layer)
        self.cuts[Cut(name, 0)] = None
        self._cut_vectors(layer, ("bias",), _Place(0), first=2)
        return name.removesuffix(".weight")

    def _weight(self, layer: Node) -> str:
        """The name of a layer's weight, which an `nn.Linear` or a convolution holds."""
        name = self._tensor(layer.args[1])
        path, _, attribute = name.rpartition(".")
        owner = self.model.get_submodule(path)
        if attribute != "weight" or not isinstance(owner, nn.Linear | Convolution):
            raise Refusal(f"the weight {name} is of no nn.Linear or nn.Conv module")
        return name

    def _cut_vectors(
        self, node: Node, names: tuple[str, ...], place: _Place, *, first: int = 1
    ) -> None:
        """Cut vectors of one number a channel. first: the position of the first argument."""
        for index, name in enumerate(names, first):
            vector = argument(node, index, name)
            if vector is not None:
                self.cuts[Cut(self._tensor(vector), 0, place.rows)] = None

    def _tensor(self, node: Any) -> str:
        name = self.graph.weight(node)
        if name is None:
            raise Refusal("a weight beside it is computed (a parametrisation, or an input)")
        if self.graph.is_shared(node):
            raise Refusal(f"{name} is used several times")
        return name

    # --- operations between them ---

    def _pointwise(self, node: Node, source: Node, place: _Place) -> _Place:
        from_end = len(shape(source)) - place.axis
        for other in node.all_input_nodes:
            if other is not source:
                self._beside(node, other, _Place(len(shape(other)) - from_end, place.rows))
        return _Place(len(shape(node)) - from_end, place.rows)

    def _beside(self, node: Node, other: Node, place: _Place) -> None:
        """What a pointwise operation takes beside the channels."""
        if place.axis < 0 or shape(other)[place.axis] == 1 or self.places.get(other) == place:
            return  # the same for all channels, or of the same channels
        if self.graph.weight(other) is not None:
            self.cuts[Cut(self._tensor(other), place.axis, place.rows)] = None
            return
        if operation(node) != "mul":
            raise Refusal(
                f"`{operation(node)}` joins its channels with another stream (a residual stream?)"
            )
        origin = next((n for n in _back(other) if operation(n) in LAYERS), None)
        if origin is None or shape(origin)[channel_axis(origin)] != self.width:
            raise Refusal("it is multiplied with other channels, whose origin is not clear")
        self.gates[other] = place
        if origin not in self.places:
            self._produce(origin)

    def _moved(self, node: Node, source: Node, place: _Place, name: str) -> _Place:
        """Operations that move, pool or drop dimensions."""
        before, after = shape(source), shape(node)
        if name in SPATIAL and place.axis < len(before) - SPATIAL[name]:
            return place
        if name == "permute":
            dims = [d % len(before) for d in argument(node, 1, "dims")]
            return _Place(dims.index(place.axis), place.rows)
        if name in ("transpose", "swapaxes"):
            i, j = (argument(node, k, f"dim{k - 1}") % len(before) for k in (1, 2))
            return _Place({i: j, j: i}.get(place.axis, place.axis), place.rows)
        if name in REDUCTIONS:
            return _reduced(node, len(before), place)
        if name in RESHAPES:
            return _reshaped(before, after, place)
        if name == "layer_norm" and place.axis < len(before) - len(argument(node, 1, "shape")):
            return place
        words = {
            "cat": "it is concatenated with other channels",
            "layer_norm": "layer normalisation is over its channels",
            "group_norm": "group normalisation is over its channels",
            "scaled_dot_product_attention": "its channels are attention's queries, keys or values",
        }
        raise Refusal(
            words.get(name, f"the operation `{name}` is not known to keep channels apart")
        )


def _back(node: Node) -> Iterator[Node]:
    """A node and those that it follows from, as long as there is one way back."""
    while True:
        yield node
        inputs = node.all_input_nodes
        if operation(node) in LAYERS or not inputs:
            return
        node = inputs[0]


def _reduced(node: Node, dimensions: int, place: _Place) -> _Place:
    axes = argument(node, 1, "dim")
    axes = [axes] if isinstance(axes, int) else list(axes or range(dimensions))
    axes = [axis % dimensions for axis in axes]
    if place.axis in axes:
        raise Refusal(f"`{operation(node)}` is over its channels")
    if argument(node, 2, "keepdim", False):
        return place
    return _Place(place.axis - sum(axis < place.axis for axis in axes), place.rows)


def _reshaped(before: tuple[int, ...], after: tuple[int, ...], place: _Place) -> _Place:
    """Channels after a reshape, which may put the numbers of a channel side by side."""
    ahead, own = prod(before[: place.axis]), before[place.axis]
    for axis, size in enumerate(after):
        if prod(after[:axis]) != ahead:
            continue
        for last in range(place.axis + 1, len(before) + 1):
            if size == own * (inside := prod(before[place.axis + 1 : last])):
                return _Place(axis, place.rows * inside)
    raise Refusal("a reshape mixes its channels with other dimensions")
