"""Moments of what layers read: in the model, and where norms are over some channels alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.conv import _ConvTransposeNd

from proxylessnas.errors import DataError
from proxylessnas.pretrained.least_squares import Moments, rows_of
from proxylessnas.surgery.finding import LARGEST
from proxylessnas.surgery.narrow import precise
from proxylessnas.surgery.norms import over_some
from proxylessnas.surgery.pairs import Cut, Pair
from proxylessnas.training.freezing import evaluating
from proxylessnas.training.task import call

ROWS, ROWS_AN_INPUT = 8192, 4  # that moments are taken of: at least, and times a layer's inputs

Statistics = tuple[int, Tensor, Tensor]  # of rows: how many, and sums over them
_Hook = Callable[[nn.Module, tuple[Tensor, ...]], None]


def moments_of_readers(
    model: nn.Module, cuts: Iterable[Cut], inputs: Iterable[Any]
) -> dict[Cut, Moments]:
    """The moments of what layers read of pairs' channels, and of what they make of those.

    cuts: of the layers' weights.

    Raises:
        DataError: there is no batch.
    """
    batches = list(inputs)
    if not batches:
        raise DataError("train gives no batch that channels could be chosen on")
    sums = {cut: _Sums(model, cut, len(batches)) for cut in cuts}
    _run_watched(model, [(each.layer, each.add) for each in sums.values()], batches)
    return {cut: each.moments() for cut, each in sums.items()}


@torch.no_grad()
def statistics_of(
    model: nn.Module, read: Mapping[str, Callable[[Tensor], Statistics]], batches: Iterable[Any]
) -> dict[str, Statistics]:
    """Sums over all batches, by the layer's path. read: of what a layer is given in one call."""
    sums: dict[str, Any] = {path: (0, 0, 0) for path in read}

    def add(path: str) -> _Hook:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            both = zip(sums[path], read[path](args[0]), strict=True)
            sums[path] = tuple(a + b for a, b in both)

        return hook

    _run_watched(model, [(model.get_submodule(path), add(path)) for path in read], batches)
    return sums


def _run_watched(
    model: nn.Module, hooks: Iterable[tuple[nn.Module, _Hook]], batches: Iterable[Any]
) -> None:
    """The batches through the model, in evaluation mode; hooks see what their layers are given."""
    with ExitStack() as stack, evaluating(model):
        for layer, hook in hooks:
            stack.callback(layer.register_forward_pre_hook(hook).remove)
        for batch in batches:
            call(model, batch)


class _Sums:
    """Sums over rows of what a layer reads; products in float32, sums over batches in float64."""

    def __init__(self, model: nn.Module, cut: Cut, batches: int) -> None:
        self.layer: Any = model.get_submodule(cut.module)
        self.by_place = reads_by_place(self.layer, cut)
        weight = precise(model.get_parameter(cut.tensor))
        kernel = 1 if self.by_place else weight[0, 0].numel()  # numbers of a row, of each input
        self.inputs = rows_of(cut.places.flatten(), kernel)
        if self.by_place:
            weight = weight.movedim(cut.axis, 0).flatten(1)
        else:
            weight = weight.flatten(1).T
        self.weight = weight[self.inputs]
        self.rows = cut.places.shape[1] * kernel
        size = len(self.inputs)
        self.most = -(-max(ROWS, ROWS_AN_INPUT * size) // batches)
        self.gram = torch.zeros(size, size, dtype=torch.float64)
        self.total = torch.zeros(size, dtype=torch.float64)
        self.count = 0
        self.generator = torch.Generator().manual_seed(0)

    def add(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.add_rows(self.read(args[0], self.generator))

    def read(self, x: Tensor, generator: torch.Generator) -> Tensor:
        rows = read_rows(self.layer, x.float(), self.most, generator, by_place=self.by_place)
        return rows[:, self.inputs]

    def add_rows(self, h: Tensor) -> None:
        self.gram += (h.T @ h).double()
        self.total += h.double().sum(0)
        self.count += len(h)

    def moments(self) -> Moments:
        mean, weight = self.total / self.count, self.weight.double()
        return Moments(
            gram=self.gram / self.count - torch.outer(mean, mean),
            mean=mean,
            weight=weight,
            residual=torch.zeros_like(weight),
            target=mean @ weight,
            rows=self.rows,
        )


@torch.no_grad()
def moments_within(
    model: nn.Module, kept: Mapping[Pair, Tensor], batches: Sequence[Any]
) -> dict[Pair, dict[Cut, Moments]]:
    """What layers read where norms are over some channels alone, and what they made of all.

    kept: of each pair the channels. Every batch passes twice: once through the model, and once with
    the normalisations over some channels, and with all readers returning what they returned before.
    So each is looked at by itself, whatever comes before it.
    """
    cuts = {cut: pair for pair in kept for cut in pair.consumers}
    sums = {cut: _Targets(model, cut, len(batches)) for cut in cuts}
    with evaluating(model):
        for batch in batches:
            with ExitStack() as stack:
                for each in sums.values():
                    stack.callback(each.layer.register_forward_hook(each.remember).remove)
                call(model, batch)
            with ExitStack() as stack:
                for each in sums.values():
                    stack.callback(each.layer.register_forward_hook(each.compare).remove)
                stack.enter_context(over_some(model, kept.items()))
                call(model, batch)
    within: dict[Pair, dict[Cut, Moments]] = {pair: {} for pair in kept}
    for cut, each in sums.items():
        within[cuts[cut]][cut] = each.moments()
    return within


class _Targets(_Sums):
    """Sums of what a layer reads now, and of what it made of a pair's channels before."""

    def __init__(self, model: nn.Module, cut: Cut, batches: int) -> None:
        super().__init__(model, cut, batches)
        self.cross = torch.zeros(self.weight.shape, dtype=torch.float64)
        self.target = torch.zeros(self.weight.shape[1], dtype=torch.float64)
        self.calls: list[tuple[Tensor, Any]] = []  # of the first pass, compared in their order
        self.seen = 0  # calls of all first passes, and of all second ones
        self.compared = 0

    def remember(self, layer: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        self.calls.append((self._rows(args[0], self.seen) @ self.weight, output))
        self.seen += 1

    def compare(self, layer: nn.Module, args: tuple[Tensor, ...], output: Any) -> Any:
        h, (made, before) = self._rows(args[0], self.compared), self.calls.pop(0)
        self.compared += 1
        self.add_rows(h)
        self.cross += (h.T @ made).double()
        self.target += made.double().sum(0)
        return before

    def _rows(self, x: Tensor, call: int) -> Tensor:
        """The same places in both passes."""
        return self.read(x, torch.Generator().manual_seed(call))

    def moments(self) -> Moments:
        own, target = super().moments(), self.target / self.count
        cross = self.cross / self.count - torch.outer(own.mean, target)
        return replace(own, residual=cross - own.gram @ own.weight, target=target)


def is_transposed(layer: nn.Module) -> bool:
    """Whether each number of the input is multiplied with a kernel, and products are added up."""
    return isinstance(layer, _ConvTransposeNd)


def reads_by_place(layer: nn.Module, cut: Cut) -> bool:
    """Whether a layer is fitted to what it reads at single places.

    As a transposed convolution has to be, and one whose kernel covers too many numbers at once:
    each number of its kernel then is a layer of its own, and their errors are added up.
    """
    weight: Any = layer.weight
    wide = cut.axis == 1 and cut.places.numel() * weight[0, 0].numel() > LARGEST
    return is_transposed(layer) or (wide and not isinstance(layer, nn.Linear))


def read_rows(
    layer: Any, x: Tensor, most: int, generator: torch.Generator, *, by_place: bool = False
) -> Tensor:
    """What a layer multiplies its weight with, [rows, inputs]; some of the places, at random.

    by_place: the channels at each place alone, whatever the kernel covers.
    x: its input: [..., features] of a linear layer, [batch, channels, *spatial] of a convolution.
    """
    if isinstance(layer, nn.Linear):
        places = x.reshape(-1, x.shape[-1])
    else:
        spatial = layer.weight.dim() - 2
        x = x if x.dim() > spatial + 1 else x[None]
        by_place = by_place or is_transposed(layer)
        places = x.movedim(1, -1) if by_place else _windows(layer, x)
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
