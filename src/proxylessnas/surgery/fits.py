"""What remains of every pair at every width: channels by elimination, weights by least squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.pretrained.least_squares import Moments, elimination_order, fit_projection
from proxylessnas.surgery.finding import LARGEST
from proxylessnas.surgery.moments import (
    is_transposed,
    moments_of_readers,
    moments_within,
    reads_by_place,
)
from proxylessnas.surgery.narrow import Narrowed
from proxylessnas.surgery.pairs import Cut, Pair

BATCHES, WITHIN = 32, 8  # that moments are taken of, at most; and of norms over fewer channels
# Rows are fewer than in a layer of one pixel a channel, and neighbouring pixels alike.
RIDGE = 1e-2


@torch.no_grad()
def narrow_fits(
    model: nn.Module,
    widths: Mapping[Pair, Sequence[int]],
    inputs: Iterable[Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Pair, dict[int, Narrowed]]:
    """What remains of each pair at each of its widths.

    inputs: of training batches, as the model takes them. progress: called with (pairs, all).

    The channels of a pair are ordered by the readers all along it. Every reader is then fitted to
    what it made of all channels of the pair in the model, by those that remain: what it makes of
    other pairs' channels stays, so that any widths of pairs go together.

    Raises:
        DataError: there is no batch.
    """
    batches = [batch for batch, _ in zip(inputs, range(BATCHES), strict=False)]
    cuts = [cut for pair in widths for cut in pair.consumers]
    read = moments_of_readers(model, cuts, batches)
    readers = {pair: {cut: read[cut] for cut in pair.consumers} for pair in widths}
    fits: dict[Pair, dict[int, Narrowed]] = {pair: {} for pair in widths}
    remaining: dict[Pair, list[Tensor]] = {}
    for done, (pair, wanted) in enumerate(widths.items(), 1):
        several = _thinned(list(readers[pair].values()))
        order = elimination_order(several, min(wanted, default=pair.width), RIDGE)
        remaining[pair] = [order[:width].sort().values for width in wanted]
        progress(done, len(widths))
    normalised = [pair for pair in widths if pair.norms]
    for k in range(max(map(len, widths.values()), default=0)):
        narrower = {pair: remaining[pair][k] for pair in normalised if k < len(remaining[pair])}
        renewed = moments_within(model, narrower, batches[:WITHIN]) if narrower else {}
        for pair in widths:
            if k < len(remaining[pair]):
                moments, channels = renewed.get(pair, readers[pair]), remaining[pair][k]
                refits = {c.tensor: refit(model, c, m, channels) for c, m in moments.items()}
                fits[pair][len(channels)] = Narrowed(channels, refits)
    return fits


def _thinned(readers: Sequence[Moments]) -> Sequence[Moments]:
    """As many of the readers, from the first on in equal steps, as there is memory for."""
    step = 1
    while sum(len(m.gram) ** 2 for m in readers[::step]) > LARGEST**2 and step < len(readers):
        step += 1
    return readers[::step]


def refit(model: nn.Module, cut: Cut, moments: Moments, channels: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer does that reads these channels alone, and what is added to its bias."""
    projection = fit_projection(moments, channels, RIDGE)
    shift = moments.target - moments.mean[moments.inputs_of(channels)] @ projection
    layer: Any = model.get_submodule(cut.module)
    if reads_by_place(layer, cut):
        # Every place of the output is the sum of so many numbers of the kernel, in the mean.
        each = math.prod(layer.stride) if is_transposed(layer) else 1
        by_place = shift.view(layer.out_channels, -1).sum(1) / each
        shape = layer.weight.movedim(cut.axis, 0).shape[1:]
        return projection.view(-1, *shape).movedim(0, cut.axis).float(), by_place.float()
    out, _, *kernel = layer.weight.shape
    return projection.T.reshape(out, -1, *kernel).float(), shift.float()
