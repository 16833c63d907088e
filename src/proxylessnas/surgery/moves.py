"""What operations bind that move, pool, split, join and drop dimensions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import Node

from proxylessnas.surgery.coupling import Coupling, Elements, Fold, atoms_of
from proxylessnas.surgery.graph import argument, operation, shape

MOVED = "a convolution moves over it"

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
SPATIAL |= {f"max_pool{d}d_with_indices": d for d in (1, 2, 3)}
RESHAPES = {"flatten", "view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "unflatten"}
RESHAPES |= {"reshape_as", "view_as"}
REDUCTIONS = {"mean", "sum", "amax", "amin", "var", "std", "prod", "logsumexp"}
REDUCTIONS |= {"linalg_vector_norm"}
# One axis, or several.
ALONG = {"softmax", "log_softmax", "_softmax", "cumsum", "flip", "roll", "index_select"}
SPLITS = {"split", "chunk", "split_with_sizes", "unbind", "tensor_split"}
# Operations along one axis that return several tensors, and which argument the axis is.
RANKED = {"max": 1, "min": 1, "median": 1, "mode": 1, "cummax": 1, "cummin": 1, "sort": 1}
RANKED |= {"topk": 2, "kthvalue": 2, "var_mean": 1, "std_mean": 1}
# Of what remains of the channels, where they are kept as an axis of one: hand-written norms.
STATISTICS = {"mean", "var", "std", "var_mean", "std_mean", "amax", "max", "linalg_vector_norm"}


def fix_all(coupling: Coupling, node: Node, reason: str, by: Node) -> None:
    for axis in range(len(shape(node))):
        coupling.fix(coupling.axis(node, axis), reason, by)


def unknown(coupling: Coupling, node: Node) -> None:
    reason = f"the operation `{operation(node)}` is not known to keep channels apart"
    for tensor in (*node.all_input_nodes, node):
        fix_all(coupling, tensor, reason, node)


def bind_axes(
    coupling: Coupling, source: Node, node: Node, axes: Sequence[tuple[int, int]]
) -> None:
    """Bind axes of a source to axes of a node."""
    for a, b in axes:
        coupling.bind(coupling.axis(source, a), coupling.axis(node, b))


def bind_lead(coupling: Coupling, source: Node, node: Node, count: int) -> None:
    bind_axes(coupling, source, node, [(k, k) for k in range(count)])


def _spatial(coupling: Coupling, node: Node, made: Node | None = None) -> None:
    """made: the output, where the node returns several."""
    x, made = node.args[0], made or node
    assert isinstance(x, Node)
    lead = len(shape(x)) - SPATIAL[operation(node)]
    bind_lead(coupling, x, made, lead)
    for axis in range(lead, len(shape(x))):
        for tensor in (x, made):
            coupling.fix(coupling.axis(tensor, axis), f"`{operation(node)}` is over it", node)


def _permute(coupling: Coupling, node: Node) -> None:
    x, count = node.args[0], len(shape(node))
    assert isinstance(x, Node)
    if operation(node) == "permute":
        dims = [d % count for d in argument(node, 1, "dims")]
    elif operation(node) in ("movedim", "moveaxis"):
        both = (argument(node, 1, "source"), argument(node, 2, "destination"))
        source, target = ([d] if isinstance(d, int) else list(d) for d in both)
        rest = iter(d for d in range(count) if d not in [s % count for s in source])
        moved = {t % count: s % count for s, t in zip(source, target, strict=True)}
        dims = [moved[d] if d in moved else next(rest) for d in range(count)]
    else:
        dims = list(range(count))
        i, j = (argument(node, k, f"dim{k - 1}", k - 1) % max(count, 1) for k in (1, 2))
        dims[i], dims[j] = j, i
    bind_axes(coupling, x, node, [(d, k) for k, d in enumerate(dims)])


def _reduction(coupling: Coupling, node: Node, made: Node | None = None) -> None:
    """made: the output, where the node returns several."""
    x, made = node.args[0], made or node
    assert isinstance(x, Node)
    at = 2 if operation(node) == "linalg_vector_norm" else RANKED.get(operation(node), 1)
    count, axes = (
        len(shape(x)),
        argument(node, at, "dim", -1 if operation(node) in RANKED else None),
    )
    axes = [axes] if isinstance(axes, int) else list(axes or range(count))
    axes = [axis % max(count, 1) for axis in axes]
    kept = len(shape(made)) == count
    if kept and len(axes) == 1 and operation(node) in STATISTICS:
        coupling.normalise(x, axes[0], node)
        bind_axes(coupling, x, made, [(k, k) for k in range(count) if k != axes[0]])
    else:
        _over(coupling, x, made, axes, kept=kept)


def _along(coupling: Coupling, node: Node) -> None:
    """An axis, or several, along which numbers are mixed or moved."""
    x, at = node.args[0], {"roll": (2, "dims"), "flip": (1, "dims")}
    assert isinstance(x, Node)
    axes = argument(node, *at.get(operation(node), (1, "dim")))
    axes = [axes] if isinstance(axes, int) else list(axes or range(len(shape(x))))
    _over(coupling, x, node, [axis % len(shape(x)) for axis in axes], kept=True)


def _over(coupling: Coupling, x: Node, node: Node, axes: Sequence[int], *, kept: bool) -> None:
    """Some axes are worked over, the others stay. kept: whether the output has all of them."""
    by = node.args[0] if node.target is operator.getitem else node
    assert isinstance(by, Node)
    reason, after = f"`{operation(by)}` is over its channels", 0
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
            fix_all(coupling, tensor, "a reshape mixes its channels with others", node)
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
        bind_axes(coupling, source, node, [(k, k) for k in range(len(shape(node))) if k != dim])
        size = shape(source)[dim]
        coupling.bind(coupling.axis(source, dim), whole[begin : begin + size])
        begin += size


def _stack(coupling: Coupling, node: Node) -> None:
    sources: Any = node.args[0]
    dim = argument(node, 1, "dim", 0) % len(shape(node))
    coupling.fix(coupling.axis(node, dim), "it is stacked", node)
    for source in sources:
        count = len(shape(source))
        bind_axes(coupling, source, node, [(k, k + (k >= dim)) for k in range(count)])


def piece_of(coupling: Coupling, node: Node) -> None:
    """One of the tensors that an operation returns."""
    source: Any = node.args[0]
    name = operation(source)
    if name in SPATIAL:
        _spatial(coupling, source, node)
    elif name in RANKED:
        _reduction(coupling, source, node)
    elif name in SPLITS:
        _part(coupling, node)
    elif shape(node):
        fix_all(coupling, node, f"`{name}` is not understood", node)


def _part(coupling: Coupling, node: Node) -> None:
    """Of a tensor that is split."""
    source: Any = node.args[0]
    index: Any = node.args[1]
    x = source.args[0]
    unbound = operation(source) == "unbind"
    at = (1, "dim", 0) if unbound else (2, "dim", 0)
    dim = argument(source, *at) % len(shape(x))
    if unbound:
        _over(coupling, x, node, [dim], kept=False)
        return
    bind_axes(coupling, x, node, [(k, k) for k in range(len(shape(x))) if k != dim])
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
            bind_axes(coupling, x, node, [(axis, axis)])
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
        unknown(coupling, node)
        return
    more = len(shape(places)) - 1
    coupling.fix(coupling.axis(x, dim), "it is looked up by an index", node)
    for axis in range(dim, dim + more + 1):
        coupling.fix(coupling.axis(node, axis), "it is looked up by an index", node)
    axes = [(k, k + more * (k > dim)) for k in range(len(shape(x))) if k != dim]
    bind_axes(coupling, x, node, axes)


def _pad(coupling: Coupling, node: Node) -> None:
    x, amounts = node.args[0], argument(node, 1, "pad")
    assert isinstance(x, Node)
    count = len(shape(x))
    ends = {count - 1 - k // 2 for k, amount in enumerate(amounts) if amount}
    _over(coupling, x, node, sorted(ends), kept=True)


def _grid_sample(coupling: Coupling, node: Node) -> None:
    x, grid = node.args[:2]
    assert isinstance(x, Node) and isinstance(grid, Node)
    bind_lead(coupling, x, node, 2)
    fix_all(coupling, grid, "it says where a tensor is sampled", node)
    for tensor in (x, node):
        for axis in range(2, len(shape(tensor))):
            coupling.fix(coupling.axis(tensor, axis), "it is sampled", node)


def _new(coupling: Coupling, node: Node) -> None:
    fix_all(coupling, node, "a tensor beside it has a size of its own", node)


MOVES: dict[str, Callable[[Coupling, Node], None]] = {
    **{name: _spatial for name in SPATIAL},
    **{name: _reshape for name in RESHAPES},
    **{name: _reduction for name in REDUCTIONS},
    **{name: _along for name in ALONG},
    **{name: _permute for name in ("permute", "transpose", "swapaxes", "t", "movedim", "moveaxis")},
    **{name: _new for name in ("zeros", "ones", "full", "arange", "empty", "rand", "randn")},
    **{name: _new for name in ("new_zeros", "new_ones", "new_full", "linspace", "scalar_tensor")},
    **{"cat": _cat, "concat": _cat, "stack": _stack, "slice": _slice, "select": _select},
    **{"index": _index, "pad": _pad, "constant_pad_nd": _pad},
    **{"narrow": _slice, "grid_sampler": _grid_sample},
}
