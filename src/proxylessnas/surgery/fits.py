"""What remains of every pair at every width: channels by elimination, weights by least squares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from proxylessnas.errors import DataError
from proxylessnas.pretrained.least_squares import Moments, elimination_order, fit_projection
from proxylessnas.surgery.narrow import Narrowed
from proxylessnas.surgery.pairs import Pair
from proxylessnas.training.freezing import evaluating
from proxylessnas.training.task import call

ROWS, ROWS_AN_INPUT = 8192, 4  # that moments are taken of: at least, and times a layer's inputs
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

    The channels of a pair are ordered by the reader that has most weights; every reader is then
    fitted to its own outputs in the model.
    """
    rows = {cut.tensor: cut.rows for pair in widths for cut in pair.consumers}
    moments = moments_of_readers(model, rows, inputs)
    fits: dict[Pair, dict[int, Narrowed]] = {}
    for pair, wanted in widths.items():
        readers = {cut.tensor: moments[cut.tensor] for cut in pair.consumers}
        first = max(readers.values(), key=lambda m: m.weight.numel())
        order = elimination_order(first, min(wanted, default=pair.width), RIDGE)
        fits[pair] = {}
        for width in wanted:
            channels = order[:width].sort().values
            refits = {name: _refit(model, name, m, channels) for name, m in readers.items()}
            fits[pair][width] = Narrowed(channels, refits)
        progress(len(fits), len(widths))
    return fits


def _refit(
    model: nn.Module, name: str, moments: Moments, channels: Tensor
) -> tuple[Tensor, Tensor]:
    """(weight, bias) of a layer that reads these channels alone."""
    projection = fit_projection(moments, channels, RIDGE)
    bias = moments.target - moments.mean[moments.inputs_of(channels)] @ projection
    out, _, *kernel = model.get_parameter(name).shape
    return projection.T.reshape(out, -1, *kernel).float(), bias.float()


def moments_of_readers(
    model: nn.Module, rows: Mapping[str, int], inputs: Iterable[Any]
) -> dict[str, Moments]:
    """The moments of what layers read, by the name of their weight.

    rows: by that name, the numbers side by side that a channel owns in a place of the input.

    Raises:
        DataError: there is no batch.
    """
    batches = [batch for batch, _ in zip(inputs, range(BATCHES), strict=False)]
    if not batches:
        raise DataError("train gives no batch that channels could be chosen on")
    sums = {name: _Sums(model, name, len(batches)) for name in rows}
    with ExitStack() as stack:
        for reader in sums.values():
            handle = reader.layer.register_forward_pre_hook(reader.add)
            stack.callback(handle.remove)
        with evaluating(model):
            for batch in batches:
                call(model, batch)
    return {name: reader.moments(rows[name]) for name, reader in sums.items()}


class _Sums:
    """Sums over rows of what a layer reads; products in float32, sums over batches in float64."""

    def __init__(self, model: nn.Module, name: str, batches: int) -> None:
        self.layer: Any = model.get_submodule(name.rpartition(".")[0])
        inputs = model.get_parameter(name)[0].numel()
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

    def moments(self, rows: int) -> Moments:
        mean = self.total / self.count
        weight = self.layer.weight.detach().flatten(1).T.double()
        bias = self.layer.bias
        target = mean @ weight
        # A channel owns its numbers in the input, times the places of the kernel.
        return Moments(
            gram=self.gram / self.count - torch.outer(mean, mean),
            mean=mean,
            weight=weight,
            residual=torch.zeros_like(weight),
            target=target if bias is None else target + bias.detach().double(),
            rows=rows * self.layer.weight[0, 0].numel(),
        )


def read_rows(layer: Any, x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """What a layer multiplies its weight with, [rows, inputs]; some of the places, at random.

    x: its input: [..., features] of a linear layer, [batch, channels, *spatial] of a convolution.
    """
    if isinstance(layer, nn.Linear):
        places = x.reshape(-1, x.shape[-1])
    else:
        places = _windows(layer, x)
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
