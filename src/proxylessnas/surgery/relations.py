"""What each operation binds: elements of its inputs to elements of its output.

An operation that is not known fixes all that it reads and returns: what cannot be shown to be right
is not cut.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from proxylessnas.surgery.coupling import Coupling, Elements, Fold, atoms_of
from proxylessnas.surgery.graph import (
    CONVOLUTIONS,
    TRANSPOSED,
    argument,
    groups,
    is_pointwise,
    operation,
    shape,
)

OUTPUT = "its channels are an output of the model"
MOVED = "a convolution moves over it"

# Operations whose output has every number where the input has it, or where it is broadcast to. What
# torch itself marks as pointwise is not listed.
SAME = {
    *("alias", "alpha_dropout", "clone", "contiguous", "detach", "dropout", "expand", "expand_as"),
    *("feature_dropout", "feature_alpha_dropout", "hardswish", "hardtanh", "_to_copy", "to", "elu"),
    *("leaky_relu", "celu", "selu", "relu6", "mish", "softplus", "logsigmoid", "native_dropout"),
    *("lift_fresh_copy", "rrelu", "type_as", "broadcast_to"),
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
SPATIAL |= {"upsample_nearest3d": 3, "reflection_pad1d": 1, "reflection_pad2d": 2}
SPATIAL |= {"replication_pad1d": 1, "replication_pad2d": 2}
RESHAPES = {"flatten", "view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "unflatten"}
REDUCTIONS = {"mean", "sum", "amax", "amin", "var", "std", "prod", "logsumexp"}
ALONG = {"softmax", "log_softmax", "_softmax", "cumsum", "flip", "roll"}  # one axis, or several
SPLITS = {"split", "chunk", "split_with_sizes", "unbind", "tensor_split"}


def relate(coupling: Coupling) -> None:
    """Bind and fix the elements of all nodes, folds apart."""
    for node in coupling.graph.nodes:
        name = operation(node)
        if node.op == "placeholder":
            if coupling.graph.weight(node) is None:
                _fix_all(coupling, node, "it is an input of the model", node)
        elif node.op == "output":
            for source in node.all_input_nodes:
                _fix_all(coupling, source, OUTPUT, node)
        elif node.target is operator.getitem:
            _piece(coupling, node)
        elif name in HANDLERS:
            HANDLERS[name](coupling, node)
        elif name in SAME or is_pointwise(node):
            _aligned(coupling, node)
        elif name not in SPLITS and "val" in node.meta and node.meta["val"] is not None:
            _unknown(coupling, node)


def _fix_all(coupling: Coupling, node: Node, reason: str, by: Node) -> None:
    for axis in range(len(shape(node))):
        coupling.fix(coupling.axis(node, axis), reason, by)


def _unknown(coupling: Coupling, node: Node) -> None:
    reason = f"the operation `{operation(node)}` is not known to keep channels apart"
    for tensor in (*node.all_input_nodes, node):
        _fix_all(coupling, tensor, reason, node)


def _axes(coupling: Coupling, source: Node, node: Node, axes: Sequence[tuple[int, int]]) -> None:
    """Bind axes of a source to axes of a node."""
    for a, b in axes:
        coupling.bind(coupling.axis(source, a), coupling.axis(node, b))


def _lead(coupling: Coupling, source: Node, node: Node, count: int) -> None:
    _axes(coupling, source, node, [(k, k) for k in range(count)])


def _aligned(coupling: Coupling, node: Node) -> None:
    """Axes from the last one on; an axis of one number is there for all."""
    after = shape(node)
    for source in node.all_input_nodes:
        before = shape(source)
        for back in range(1, len(before) + 1):
            if before[-back] == after[-back]:
                _axes(coupling, source, node, [(len(before) - back, len(after) - back)])


# --- layers ---


def _linear(coupling: Coupling, node: Node) -> None:
    x, weight = node.args[0], node.args[1]
    assert isinstance(x, Node) and isinstance(weight, Node)
    last = len(shape(x)) - 1
    _lead(coupling, x, node, last)
    _axes(coupling, x, weight, [(last, 1)])
    _axes(coupling, weight, node, [(0, last)])
    _vectors(coupling, node, coupling.axis(node, last), [argument(node, 2, "bias")])


def _convolution(coupling: Coupling, node: Node) -> None:
    x, weight = node.args[0], node.args[1]
    assert isinstance(x, Node) and isinstance(weight, Node)
    spatial = (CONVOLUTIONS | TRANSPOSED)[operation(node)]
    first = len(shape(x)) - spatial
    _lead(coupling, x, node, first - 1)
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
                _fix_all(coupling, vector, "it is not of the channels", node)


def _batch_norm(coupling: Coupling, node: Node) -> None:
    x = node.args[0]
    assert isinstance(x, Node)
    _lead(coupling, x, node, 2)
    for axis in range(2, len(shape(x))):
        if operation(node) == "batch_norm":
            _axes(coupling, x, node, [(axis, axis)])
        else:
            coupling.fix(coupling.axis(x, axis), MOVED, node)
    names = ("weight", "bias", "running_mean", "running_var")
    vectors = [argument(node, k, name) for k, name in enumerate(names, 1)]
    _vectors(coupling, node, coupling.axis(node, 1), vectors)


def _group_norm(coupling: Coupling, node: Node) -> None:
    x, count = node.args[0], argument(node, 1, "num_groups")
    assert isinstance(x, Node)
    _lead(coupling, x, node, 2)
    for axis in range(2, len(shape(x))):
        coupling.fix(coupling.axis(x, axis), "group normalisation is over it", node)
    if count == 1:
        coupling.fix(coupling.axis(x, 1), "group normalisation is over all its channels", node)
    _whole_groups(coupling, count, coupling.axis(x, 1))
    vectors = [argument(node, k, name) for k, name in ((2, "weight"), (3, "bias"))]
    _vectors(coupling, node, coupling.axis(node, 1), vectors)


def _layer_norm(coupling: Coupling, node: Node) -> None:
    x = node.args[0]
    assert isinstance(x, Node)
    lead = len(shape(x)) - len(argument(node, 1, "normalized_shape"))
    _lead(coupling, x, node, len(shape(x)))
    for axis in range(lead, len(shape(x))):
        coupling.fix(coupling.axis(x, axis), "layer normalisation is over its channels", node)


def _prelu(coupling: Coupling, node: Node) -> None:
    x, slopes = node.args[0], node.args[1]
    assert isinstance(x, Node) and isinstance(slopes, Node)
    _lead(coupling, x, node, len(shape(x)))
    if len(shape(x)) > 1 and shape(slopes) != (1,):
        _vectors(coupling, node, coupling.axis(node, 1), [slopes])


def _embedding(coupling: Coupling, node: Node) -> None:
    weight, indices = node.args[0], node.args[1]
    assert isinstance(weight, Node) and isinstance(indices, Node)
    coupling.fix(coupling.axis(weight, 0), "it is looked up by an index", node)
    _lead(coupling, indices, node, len(shape(indices)))
    _axes(coupling, weight, node, [(1, len(shape(node)) - 1)])


# --- products ---


def _matmul(coupling: Coupling, node: Node) -> None:
    a, b = node.args[0], node.args[1]
    assert isinstance(a, Node) and isinstance(b, Node)
    after = shape(node)
    if min(len(shape(a)), len(shape(b))) < 2:
        _unknown(coupling, node)
        return
    coupling.bind(coupling.axis(a, -1), coupling.axis(b, -2))
    coupling.fix(coupling.axis(a, -1), "channels are multiplied and summed over it", node)
    _axes(coupling, a, node, [(len(shape(a)) - 2, len(after) - 2)])
    _axes(coupling, b, node, [(len(shape(b)) - 1, len(after) - 1)])
    _batches(coupling, node, (a, b))


def _batches(coupling: Coupling, node: Node, sources: Sequence[Node]) -> None:
    """Axes before the last two, each as long as the output's or 1."""
    for source in sources:
        for back in range(3, len(shape(source)) + 1):
            if shape(source)[-back] == shape(node)[-back]:
                coupling.bind(coupling.axis(source, -back), coupling.axis(node, -back))
            elif shape(source)[-back] > 1:  # heads that several queries share
                _unknown(coupling, node)


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


# --- operations that move, pool, drop and join dimensions ---


def _spatial(coupling: Coupling, node: Node) -> None:
    x = node.args[0]
    assert isinstance(x, Node)
    lead = len(shape(x)) - SPATIAL[operation(node)]
    _lead(coupling, x, node, lead)
    for axis in range(lead, len(shape(x))):
        for tensor in (x, node):
            coupling.fix(coupling.axis(tensor, axis), f"`{operation(node)}` is over it", node)


def _permute(coupling: Coupling, node: Node) -> None:
    x, count = node.args[0], len(shape(node))
    assert isinstance(x, Node)
    if operation(node) == "permute":
        dims = [d % count for d in argument(node, 1, "dims")]
    else:
        dims = list(range(count))
        i, j = (argument(node, k, f"dim{k - 1}", k - 1) % max(count, 1) for k in (1, 2))
        dims[i], dims[j] = j, i
    _axes(coupling, x, node, [(d, k) for k, d in enumerate(dims)])


def _reduction(coupling: Coupling, node: Node) -> None:
    x = node.args[0]
    assert isinstance(x, Node)
    count, axes = len(shape(x)), argument(node, 1, "dim")
    axes = [axes] if isinstance(axes, int) else list(axes or range(count))
    axes = [axis % count for axis in axes]
    _over(coupling, x, node, axes, kept=len(shape(node)) == count)


def _along(coupling: Coupling, node: Node) -> None:
    """An axis, or several, along which numbers are mixed or moved."""
    x, at = node.args[0], {"roll": (2, "dims"), "flip": (1, "dims")}
    assert isinstance(x, Node)
    axes = argument(node, *at.get(operation(node), (1, "dim")))
    axes = [axes] if isinstance(axes, int) else list(axes or range(len(shape(x))))
    _over(coupling, x, node, [axis % len(shape(x)) for axis in axes], kept=True)


def _over(coupling: Coupling, x: Node, node: Node, axes: Sequence[int], *, kept: bool) -> None:
    """Some axes are worked over, the others stay. kept: whether the output has all of them."""
    reason, after = f"`{operation(node)}` is over its channels", 0
    for axis in range(len(shape(x))):
        if axis in axes:
            coupling.fix(coupling.axis(x, axis), reason, node)
            if kept:
                coupling.fix(coupling.axis(node, after), reason, node)
        else:
            coupling.bind(coupling.axis(x, axis), coupling.axis(node, after))
        after += kept or axis not in axes


def _reshape(coupling: Coupling, node: Node) -> None:
    x = node.args[0]
    assert isinstance(x, Node)
    before, after = shape(x), shape(node)
    sizes = atoms_of(before, after)
    if sizes is None:
        for tensor in (x, node):
            _fix_all(coupling, tensor, "a reshape mixes its channels with others", node)
        return
    atoms = [coupling.fresh(size) for size in sizes]
    for tensor in (x, node):
        left = list(atoms)
        for axis, size in enumerate(shape(tensor)):
            parts: list[Elements] = []
            while size > 1:
                parts.append(left.pop(0))
                size //= len(parts[-1])
            whole = coupling.axis(tensor, axis)
            if len(parts) == 1:
                coupling.bind(whole, parts[0])
            elif parts:
                coupling.folds.append(Fold(whole, tuple(parts), node))


def _cat(coupling: Coupling, node: Node) -> None:
    sources: Any = node.args[0]
    dim = argument(node, 1, "dim", 0) % len(shape(node))
    begin, whole = 0, coupling.axis(node, dim)
    for source in sources:
        if shape(source) == (0,):  # torch lets an empty vector stand beside anything
            continue
        _axes(coupling, source, node, [(k, k) for k in range(len(shape(node))) if k != dim])
        size = shape(source)[dim]
        coupling.bind(coupling.axis(source, dim), whole[begin : begin + size])
        begin += size


def _stack(coupling: Coupling, node: Node) -> None:
    sources: Any = node.args[0]
    dim = argument(node, 1, "dim", 0) % len(shape(node))
    coupling.fix(coupling.axis(node, dim), "it is stacked", node)
    for source in sources:
        count = len(shape(source))
        _axes(coupling, source, node, [(k, k + (k >= dim)) for k in range(count)])


def _piece(coupling: Coupling, node: Node) -> None:
    """One of the tensors that an operation returns."""
    source: Any = node.args[0]
    if operation(source) not in SPLITS:
        if shape(node):
            _fix_all(coupling, node, f"`{operation(source)}` is not understood", node)
        return
    index: Any = node.args[1]
    x = source.args[0]
    unbound = operation(source) == "unbind"
    at = (1, "dim", 0) if unbound else (2, "dim", 0)
    dim = argument(source, *at) % len(shape(x))
    if unbound:
        _over(coupling, x, node, [dim], kept=False)
        return
    _axes(coupling, x, node, [(k, k) for k in range(len(shape(x))) if k != dim])
    sizes = [piece.shape[dim] for piece in source.meta["val"]]
    whole, piece = coupling.axis(x, dim), coupling.axis(node, dim)
    begin = sum(sizes[:index])
    coupling.bind(whole[begin : begin + sizes[index]], piece)
    if len(set(sizes)) == 1:  # pieces are of equal size, whatever the size of the whole
        coupling.bind(whole[: sizes[0]], piece)
    else:
        coupling.fix(whole, "it is split into parts of unequal size", node)


def _slice(coupling: Coupling, node: Node) -> None:
    x = node.args[0]
    assert isinstance(x, Node)
    dim = argument(node, 1, "dim", 0) % len(shape(x))
    whole = shape(x) == shape(node)
    for axis in range(len(shape(x))):
        if axis != dim or whole:
            _axes(coupling, x, node, [(axis, axis)])
        else:
            for tensor in (x, node):
                coupling.fix(coupling.axis(tensor, axis), "a slice of it is taken", node)


def _select(coupling: Coupling, node: Node) -> None:
    x = node.args[0]
    assert isinstance(x, Node)
    _over(coupling, x, node, [argument(node, 1, "dim") % len(shape(x))], kept=False)


def _index(coupling: Coupling, node: Node) -> None:
    """One axis by a tensor of places, as of a table of biases."""
    x, indices = node.args[0], argument(node, 1, "indices")
    assert isinstance(x, Node)
    (dim, places), *others = [(k, i) for k, i in enumerate(indices) if i is not None]
    if others:
        _unknown(coupling, node)
        return
    more = len(shape(places)) - 1
    coupling.fix(coupling.axis(x, dim), "it is looked up by an index", node)
    for axis in range(dim, dim + more + 1):
        coupling.fix(coupling.axis(node, axis), "it is looked up by an index", node)
    axes = [(k, k + more * (k > dim)) for k in range(len(shape(x))) if k != dim]
    _axes(coupling, x, node, axes)


def _pad(coupling: Coupling, node: Node) -> None:
    x, amounts = node.args[0], argument(node, 1, "pad")
    assert isinstance(x, Node)
    count = len(shape(x))
    ends = {count - 1 - k // 2 for k, amount in enumerate(amounts) if amount}
    _over(coupling, x, node, sorted(ends), kept=True)


def _shuffle_pixels(coupling: Coupling, node: Node) -> None:
    x, factor = node.args[0], int(argument(node, 1, "upscale_factor"))
    assert isinstance(x, Node)
    first = len(shape(x)) - 2
    _lead(coupling, x, node, first - 1)
    made = coupling.axis(node, first - 1)
    coupling.bind(coupling.axis(x, first - 1), np.repeat(made, factor * factor))
    for tensor in (x, node):
        for axis in (first, first + 1):
            coupling.fix(coupling.axis(tensor, axis), MOVED, node)


def _glu(coupling: Coupling, node: Node) -> None:
    x = node.args[0]
    assert isinstance(x, Node)
    dim = argument(node, 1, "dim", -1) % len(shape(x))
    _axes(coupling, x, node, [(k, k) for k in range(len(shape(x))) if k != dim])
    coupling.bind(coupling.axis(x, dim), np.tile(coupling.axis(node, dim), 2))


def _new(coupling: Coupling, node: Node) -> None:
    _fix_all(coupling, node, "a tensor beside it has a size of its own", node)


HANDLERS: dict[str, Callable[[Coupling, Node], None]] = {
    **{name: _convolution for name in (*CONVOLUTIONS, *TRANSPOSED)},
    **{name: _spatial for name in SPATIAL},
    **{name: _reshape for name in RESHAPES},
    **{name: _reduction for name in REDUCTIONS},
    **{name: _along for name in ALONG},
    **{name: _permute for name in ("permute", "transpose", "swapaxes", "t")},
    **{name: _matmul for name in ("matmul", "bmm", "mm")},
    **{name: _new for name in ("zeros", "ones", "full", "arange", "empty", "rand", "randn")},
    **{name: _new for name in ("new_zeros", "new_ones", "new_full", "linspace", "scalar_tensor")},
    **{"linear": _linear, "batch_norm": _batch_norm, "instance_norm": _batch_norm},
    **{"group_norm": _group_norm, "layer_norm": _layer_norm, "prelu": _prelu},
    **{"embedding": _embedding, "scaled_dot_product_attention": _attention},
    **{"cat": _cat, "concat": _cat, "stack": _stack, "slice": _slice, "select": _select},
    **{"index": _index, "pad": _pad, "constant_pad_nd": _pad, "glu": _glu},
    "pixel_shuffle": _shuffle_pixels,
}
