"""What each operation binds: elements of its inputs to elements of its output.

An operation that is not known fixes all that it reads and returns: what cannot be shown to be right
is not cut.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node

from proxylessnas.surgery.coupling import Coupling, Elements
from proxylessnas.surgery.graph import (
    CONVOLUTIONS,
    TRANSPOSED,
    argument,
    groups,
    is_pointwise,
    operation,
    shape,
)
from proxylessnas.surgery.moves import (
    MOVED,
    MOVES,
    RANKED,
    SPATIAL,
    SPLITS,
    bind_axes,
    bind_lead,
    fix_all,
    piece_of,
    unknown,
)
from proxylessnas.surgery.repeats import REPEATS

OUTPUT = "its channels are an output of the model"
SUMMED = "channels are multiplied and summed over it"

# Operations whose output has every number where the input has it, or where it is broadcast to. What
# torch itself marks as pointwise is not listed.
SAME = {
    *("alias", "alpha_dropout", "clone", "contiguous", "detach", "dropout", "expand", "expand_as"),
    *("feature_dropout", "feature_alpha_dropout", "hardswish", "hardtanh", "_to_copy", "to", "elu"),
    *("leaky_relu", "celu", "selu", "relu6", "mish", "softplus", "logsigmoid", "native_dropout"),
    *("lift_fresh_copy", "rrelu", "type_as", "broadcast_to"),
}


SEVERAL = SPLITS | RANKED.keys() | SPATIAL.keys()  # that may return several tensors


def relate(coupling: Coupling) -> None:
    """Bind and fix the elements of all nodes, folds apart."""
    for node in coupling.graph.nodes:
        name, value = operation(node), node.meta.get("val")
        if node.op == "placeholder":
            if coupling.graph.weight(node) is None:
                fix_all(coupling, node, "it is an input of the model", node)
        elif node.op == "output":
            for source in node.all_input_nodes:
                fix_all(coupling, source, OUTPUT, node)
        elif node.target is operator.getitem:
            piece_of(coupling, node)
        elif name in HANDLERS and isinstance(value, Tensor):
            HANDLERS[name](coupling, node)
        elif name in SAME or is_pointwise(node):
            _aligned(coupling, node)
        elif value is not None and (isinstance(value, Tensor) or name not in SEVERAL):
            unknown(coupling, node)


def _aligned(coupling: Coupling, node: Node) -> None:
    """Axes from the last one on; an axis of one number is there for all."""
    after = shape(node)
    for source in node.all_input_nodes:
        before = shape(source)
        for back in range(1, len(before) + 1):
            if before[-back] == after[-back]:
                bind_axes(coupling, source, node, [(len(before) - back, len(after) - back)])


# --- layers ---


def _linear(coupling: Coupling, node: Node) -> None:
    x, weight = node.args[0], node.args[1]
    assert isinstance(x, Node) and isinstance(weight, Node)
    last = len(shape(x)) - 1
    bind_lead(coupling, x, node, last)
    bind_axes(coupling, x, weight, [(last, 1)])
    bind_axes(coupling, weight, node, [(0, last)])
    _vectors(coupling, node, coupling.axis(node, last), [argument(node, 2, "bias")])


def _convolution(coupling: Coupling, node: Node) -> None:
    x, weight = node.args[0], node.args[1]
    assert isinstance(x, Node) and isinstance(weight, Node)
    spatial = (CONVOLUTIONS | TRANSPOSED)[operation(node)]
    first = len(shape(x)) - spatial
    bind_lead(coupling, x, node, first - 1)
    for axis in range(first, first + spatial):
        coupling.fix(coupling.axis(x, axis), MOVED, node)
        coupling.fix(coupling.axis(node, axis), MOVED, node)
    into, out = coupling.axis(x, first - 1), coupling.axis(node, first - 1)
    backwards = operation(node) in TRANSPOSED
    reads, makes = (0, 1) if backwards else (1, 0)
    if groups(node) == 1:
        coupling.bind(into, coupling.axis(weight, reads))
        coupling.bind(out, coupling.axis(weight, makes))
    else:
        coupling.bind(into if backwards else out, coupling.axis(weight, 0))
        coupling.fix(coupling.axis(weight, 1), "it is within a group", node)
        _whole_groups(coupling, groups(node), into, out)
    _vectors(coupling, node, out, [argument(node, 2, "bias")])


def _whole_groups(coupling: Coupling, count: int, *channels: Elements) -> None:
    """All channels of a group go together."""
    first, *_ = (each.reshape(count, -1)[:, :1] for each in channels)
    for each in channels:
        of_group = each.reshape(count, -1)
        coupling.bind(of_group.ravel(), np.broadcast_to(first, of_group.shape).ravel())


def _vectors(coupling: Coupling, node: Node, channels: Elements, vectors: Sequence[Any]) -> None:
    """Bind vectors of one number a channel; of one number alone nothing."""
    for vector in vectors:
        if isinstance(vector, Node) and len(shape(vector)) == 1:
            if shape(vector)[0] == len(channels):
                coupling.bind(coupling.axis(vector, 0), channels)
            else:
                fix_all(coupling, vector, "it is not of the channels", node)


def _batch_norm(coupling: Coupling, node: Node) -> None:
    x = node.args[0]
    assert isinstance(x, Node)
    bind_lead(coupling, x, node, 2)
    for axis in range(2, len(shape(x))):
        if operation(node) == "batch_norm":
            bind_axes(coupling, x, node, [(axis, axis)])
        else:
            coupling.fix(coupling.axis(x, axis), MOVED, node)
    names = ("weight", "bias", "running_mean", "running_var")
    vectors = [argument(node, k, name) for k, name in enumerate(names, 1)]
    _vectors(coupling, node, coupling.axis(node, 1), vectors)


def _group_norm(coupling: Coupling, node: Node) -> None:
    x, count = node.args[0], argument(node, 1, "num_groups")
    assert isinstance(x, Node)
    bind_lead(coupling, x, node, 2)
    for axis in range(2, len(shape(x))):
        coupling.fix(coupling.axis(x, axis), "group normalisation is over it", node)
    vectors = [argument(node, k, name) for k, name in ((2, "weight"), (3, "bias"))]
    _vectors(coupling, node, coupling.axis(node, 1), vectors)
    if count == 1:
        coupling.normalise(x, 1, node)
    else:
        _whole_groups(coupling, count, coupling.axis(x, 1))


def _layer_norm(coupling: Coupling, node: Node) -> None:
    x = node.args[0]
    assert isinstance(x, Node)
    last = len(shape(x)) - 1
    vectors = [argument(node, k, name) for k, name in ((2, "weight"), (3, "bias"))]
    if operation(node) == "rms_norm":
        vectors = vectors[:1]
    bind_lead(coupling, x, node, last + 1)
    _vectors(coupling, node, coupling.axis(node, last), vectors)
    if len(argument(node, 1, "normalized_shape")) == 1:
        coupling.normalise(x, last, node)
    else:
        fix_all(coupling, x, "layer normalisation is over several dimensions", node)


def _prelu(coupling: Coupling, node: Node) -> None:
    x, slopes = node.args[0], node.args[1]
    assert isinstance(x, Node) and isinstance(slopes, Node)
    bind_lead(coupling, x, node, len(shape(x)))
    if len(shape(x)) > 1 and shape(slopes) != (1,):
        _vectors(coupling, node, coupling.axis(node, 1), [slopes])


def _embedding(coupling: Coupling, node: Node) -> None:
    weight, indices = node.args[0], node.args[1]
    assert isinstance(weight, Node) and isinstance(indices, Node)
    coupling.fix(coupling.axis(weight, 0), "it is looked up by an index", node)
    bind_lead(coupling, indices, node, len(shape(indices)))
    bind_axes(coupling, weight, node, [(1, len(shape(node)) - 1)])


# --- products ---


def _matmul(coupling: Coupling, node: Node) -> None:
    a, b = node.args[0], node.args[1]
    assert isinstance(a, Node) and isinstance(b, Node)
    after = shape(node)
    if min(len(shape(a)), len(shape(b))) < 2:
        unknown(coupling, node)
        return
    coupling.bind(coupling.axis(a, -1), coupling.axis(b, -2))
    coupling.fix(coupling.axis(a, -1), SUMMED, node)
    bind_axes(coupling, a, node, [(len(shape(a)) - 2, len(after) - 2)])
    bind_axes(coupling, b, node, [(len(shape(b)) - 1, len(after) - 1)])
    _batches(coupling, node, (a, b))


def _batches(coupling: Coupling, node: Node, sources: Sequence[Node]) -> None:
    """Axes before the last two, each as long as the output's or 1."""
    for source in sources:
        for back in range(3, len(shape(source)) + 1):
            if shape(source)[-back] == shape(node)[-back]:
                coupling.bind(coupling.axis(source, -back), coupling.axis(node, -back))
            elif shape(source)[-back] > 1:  # heads that several queries share
                unknown(coupling, node)


def _einsum(coupling: Coupling, node: Node) -> None:
    """Axes of one letter go together; those that the output has not are summed over."""
    equation: Any = node.args[0]
    sources: Any = node.args[1]
    terms = equation.replace(" ", "").replace("->", ",").split(",")
    tensors: list[Node] = [*sources, node]
    if list(map(len, terms)) != [len(shape(x)) for x in tensors]:  # an ellipsis, or no arrow
        unknown(coupling, node)
        return
    axes: dict[str, list[Elements]] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for axis, letter in enumerate(term):
            axes.setdefault(letter, []).append(coupling.axis(tensor, axis))
    for letter, (first, *others) in axes.items():
        if letter not in terms[-1]:
            coupling.fix(first, SUMMED, node)
        for other in others:
            if len(first) == len(other):
                coupling.bind(first, other)
            else:  # one number is there for all
                coupling.fix(np.concatenate((first, other)), SUMMED, node)


def _attention(coupling: Coupling, node: Node) -> None:
    q, k, v = node.args[:3]
    assert isinstance(q, Node) and isinstance(k, Node) and isinstance(v, Node)
    _batches(coupling, node, (q, k, v))
    coupling.bind(coupling.axis(q, -1), coupling.axis(k, -1))
    coupling.fix(coupling.axis(q, -1), "queries and keys are multiplied and summed over it", node)
    coupling.bind(coupling.axis(q, -2), coupling.axis(node, -2))
    coupling.bind(coupling.axis(k, -2), coupling.axis(v, -2))
    coupling.fix(coupling.axis(k, -2), "attention is over it", node)
    coupling.bind(coupling.axis(v, -1), coupling.axis(node, -1))
    mask = argument(node, 3, "attn_mask")
    if isinstance(mask, Node):
        _batches(coupling, node, (mask,))
        for axis in (-1, -2):
            coupling.fix(coupling.axis(mask, axis), "attention is over it", node)


HANDLERS: dict[str, Callable[[Coupling, Node], None]] = {
    **MOVES,
    **REPEATS,
    **{name: _convolution for name in (*CONVOLUTIONS, *TRANSPOSED)},
    **{name: _matmul for name in ("matmul", "bmm", "mm")},
    "einsum": _einsum,
    **{"linear": _linear, "batch_norm": _batch_norm, "instance_norm": _batch_norm},
    **{"group_norm": _group_norm, "layer_norm": _layer_norm, "rms_norm": _layer_norm},
    **{"embedding": _embedding, "scaled_dot_product_attention": _attention, "prelu": _prelu},
}
