"""What remains of every pair at every width: channels by elimination, weights by least squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.conv import _ConvTransposeNd

from proxylessnas.errors import DataError
from proxylessnas.pretrained.least_squares import (
    Moments,
    elimination_order,
    fit_projection,
    rows_of,
)
from proxylessnas.surgery.narrow import Narrowed
from proxylessnas.surgery.pairs import Cut, Pair
from proxylessnas.training.freezing import evaluating
from proxylessnas.training.task import call

ROWS, ROWS_AN_INPUT = 8192, 4  # that moments are taken of: at least, and times a layer's inputs
ORDERED_BY = 3  # readers, at most
BATCHES = 32  # over which they are spread, at most
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

    The channels of a pair are ordered by the readers that have most weights. Every reader is then
    fitted to what it made of all channels of the pair in the model, by those that remain: what it
    makes of other pairs' channels stays, so that any widths of pairs go together.
    """
    names = dict.fromkeys(cut.tensor for pair in widths for cut in pair.consumers)
    read = moments_of_readers(model, names, inputs)
    fits: dict[Pair, dict[int, Narrowed]] = {}
    for pair, wanted in widths.items():
        readers = {cut: _of_channels(read[cut.tensor], cut) for cut in pair.consumers}
        heaviest = sorted(readers.values(), key=lambda m: -m.weight.numel())[:ORDERED_BY]
        order = elimination_order(heaviest, min(wanted, default=pair.width), RIDGE)
        fits[pair] = {}
        for width in wanted:
            channels = order[:width].sort().values
            refits = {cut.tensor: _refit(model, cut, m, channels) for cut, m in readers.items()}
            fits[pair][width] = Narrowed(channels, refits)
        progress(len(fits), len(widths))
    return fits


def _of_channels(moments: Moments, cut: Cut) -> Moments:
    """The moments of a pair's channels alone, of what a layer reads."""
    inputs = rows_of(cut.places.flatten(), moments.rows)
    return Moments(
        gram=moments.gram[inputs][:, inputs],
        mean=moments.mean[inputs],
        weight=moments.weight[inputs],
        residual=moments.residual[inputs],
        target=moments.mean[inputs] @ moments.weight[inputs],
        rows=cut.places.shape[1] * moments.rows,
    )


def _refit(model: nn.Module, cut: Cut, moments: Moments, channels: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer does that reads these channels alone, and what is added to its bias."""
    projection = fit_projection(moments, channels, RIDGE)
    shift = moments.target - moments.mean[moments.inputs_of(channels)] @ projection
    layer: Any = model.get_submodule(cut.module)
    if _is_transposed(layer):
        # Every place of the output is the sum of so many numbers of the kernel, in the mean.
        by_place = shift.view(layer.out_channels, -1).sum(1) / math.prod(layer.stride)
        return projection.view(-1, *layer.weight.shape[1:]).float(), by_place.float()
    out, _, *kernel = layer.weight.shape
    return projection.T.reshape(out, -1, *kernel).float(), shift.float()


def moments_of_readers(
    model: nn.Module, names: Iterable[str], inputs: Iterable[Any]
) -> dict[str, Moments]:
    """The moments of what layers read, by the name of their weight; a channel is one of its inputs.

    Raises:
        DataError: there is no batch.
    """
    batches = [batch for batch, _ in zip(inputs, range(BATCHES), strict=False)]
    if not batches:
        raise DataError("train gives no batch that channels could be chosen on")
    sums = {name: _Sums(model, name, len(batches)) for name in names}
    with ExitStack() as stack:
        for reader in sums.values():
            handle = reader.layer.register_forward_pre_hook(reader.add)
            stack.callback(handle.remove)
        with evaluating(model):
            for batch in batches:
                call(model, batch)
    return {name: reader.moments() for name, reader in sums.items()}


class _Sums:
    """Sums over rows of what a layer reads; products in float32, sums over batches in float64."""

    def __init__(self, model: nn.Module, name: str, batches: int) -> None:
        self.layer: Any = model.get_submodule(name.rpartition(".")[0])
        weight = model.get_parameter(name).detach()
        self.weight = weight.flatten(1) if _is_transposed(self.layer) else weight.flatten(1).T
        inputs = len(self.weight)
        self.rows = -(-max(ROWS, ROWS_AN_INPUT * inputs) // batches)
        self.gram = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.total = torch.zeros(inputs, dtype=torch.float64)
        self.count = 0
        self.generator = torch.Generator().manual_seed(0)

    def add(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        h = read_rows(layer, args[0].float(), self.rows, self.generator)
        self.gram += (h.T @ h).double()
        self.total += h.double().sum(0)
        self.count += len(h)

    def moments(self) -> Moments:
        mean = self.total / self.count
        weight = self.weight.double()
        # A channel owns the places of the kernel.
        return Moments(
            gram=self.gram / self.count - torch.outer(mean, mean),
            mean=mean,
            weight=weight,
            residual=torch.zeros_like(weight),
            target=mean @ weight,
            rows=1 if _is_transposed(self.layer) else self.layer.weight[0, 0].numel(),
        )


def _is_transposed(layer: nn.Module) -> bool:
    """Whether each number of the input is multiplied with a kernel, and products are added up."""
    return isinstance(layer, _ConvTransposeNd)


def read_rows(layer: Any, x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """What a layer multiplies its weight with, [rows, inputs]; some of the places, at random.

    x: its input: [..., features] of a linear layer, [batch, channels, *spatial] of a convolution.
    """
    if isinstance(layer, nn.Linear):
        places = x.reshape(-1, x.shape[-1])
    else:
        spatial = layer.weight.dim() - 2
        x = x if x.dim() > spatial + 1 else x[None]
        places = x.movedim(1, -1) if _is_transposed(layer) else _windows(layer, x)
    sizes = places.shape[:-1] if isinstance(layer, nn.Linear) else places.shape[: x.dim() - 1]
    count = sizes.numel()
    if count > most:
        chosen = torch.randperm(count, generator=generator)[:most]
    else:
        chosen = torch.arange(count)
    return places[torch.unravel_index(chosen, sizes)].flatten(1)


def _windows(layer: Any, x: Tensor) -> Tensor:
    """What a convolution's kernel covers at each place, [batch, *places, channels, *kernel].

    A view: only the rows that are looked at are copied.
    """
    mode = layer.padding_mode if layer.padding_mode != "zeros" else "constant"
    x = pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    for axis, (k, step, d) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
    ):
        x = x.unfold(axis, d * (k - 1) + 1, step)[..., ::d]
    spatial = layer.weight.dim() - 2
    return x.movedim(1, 1 + spatial)
