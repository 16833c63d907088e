"""What operations bind that fold, repeat, shuffle and pair channels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch.fx import Node

from proxylessnas.surgery.coupling import Coupling
from proxylessnas.surgery.graph import argument, operation, shape
from proxylessnas.surgery.moves import MOVED, bind_axes, bind_lead, unknown


def _pixels(coupling: Coupling, node: Node) -> None:
    """The pixels of a square are channels side by side, before or after."""
    x, shuffles = node.args[0], operation(node) == "pixel_shuffle"
    assert isinstance(x, Node)
    factor = argument(node, 1, "upscale_factor" if shuffles else "downscale_factor")
    first = len(shape(x)) - 2
    bind_lead(coupling, x, node, first - 1)
    fine, coarse = (node, x) if shuffles else (x, node)
    channels = np.repeat(coupling.axis(fine, first - 1), int(factor) ** 2)
    coupling.bind(channels, coupling.axis(coarse, first - 1))
    for tensor in (x, node):
        for axis in (first, first + 1):
            coupling.fix(coupling.axis(tensor, axis), MOVED, node)


def _shuffle_channels(coupling: Coupling, node: Node) -> None:
    """[groups, channels of one] is transposed: the same ones of every group go together."""
    x, count = node.args[0], int(argument(node, 1, "groups"))
    assert isinstance(x, Node)
    bind_axes(coupling, x, node, [(k, k) for k in range(len(shape(x))) if k != 1])
    read = coupling.axis(x, 1).reshape(count, -1)
    coupling.bind(read.T.ravel(), coupling.axis(node, 1))
    coupling.bind(read.ravel(), np.broadcast_to(read[:1], read.shape).ravel())


def _repeat(coupling: Coupling, node: Node) -> None:
    """Whole tensors side by side along each axis; one number is there for all."""
    x = node.args[0]
    assert isinstance(x, Node)
    lead = len(shape(node)) - len(shape(x))
    for axis, size in enumerate(shape(x)):
        read, made = coupling.axis(x, axis), coupling.axis(node, lead + axis)
        if size > 1:
            coupling.bind(np.tile(read, len(made) // size), made)


def _repeat_each(coupling: Coupling, node: Node) -> None:
    """Every channel several times side by side, as heads that several queries share."""
    x, times, dim = (argument(node, k, n) for k, n in enumerate(("self", "repeats", "dim")))
    if not isinstance(times, int) or dim is None:
        unknown(coupling, node)
        return
    dim %= len(shape(x))
    bind_axes(coupling, x, node, [(k, k) for k in range(len(shape(x))) if k != dim])
    coupling.bind(np.repeat(coupling.axis(x, dim), times), coupling.axis(node, dim))


def _glu(coupling: Coupling, node: Node) -> None:
    x = node.args[0]
    assert isinstance(x, Node)
    dim = argument(node, 1, "dim", -1) % len(shape(x))
    bind_axes(coupling, x, node, [(k, k) for k in range(len(shape(x))) if k != dim])
    coupling.bind(coupling.axis(x, dim), np.tile(coupling.axis(node, dim), 2))


REPEATS: dict[str, Callable[[Coupling, Node], None]] = {
    **{"pixel_shuffle": _pixels, "pixel_unshuffle": _pixels, "channel_shuffle": _shuffle_channels},
    **{"repeat": _repeat, "tile": _repeat, "repeat_interleave": _repeat_each, "glu": _glu},
}
