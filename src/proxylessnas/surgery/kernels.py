"""A smaller kernel: the centre of a layer's own, which takes over what the rest of it made.

Of every channel that the layer reads, what the kernel's outer numbers see is predicted from what
its centre sees, by least squares. That is linear in the weight, so that it goes with whatever
channels other choices leave, and with the refits of those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from proxylessnas.hardware.fingerprint import Convolution
from proxylessnas.pretrained.least_squares import RIDGE
from proxylessnas.surgery.moments import Statistics, is_transposed, read_rows, statistics_of
from proxylessnas.surgery.narrow import Remaining, matched, precise, replace_tensor

LEAST = 5  # of a side that becomes smaller, by two
NUMBERS = 1 << 24  # that are looked at of a batch


@dataclass(frozen=True, eq=False)
class Crop:
    """layer: its path. centre: the numbers of the kernel that remain, as indices of all.

    taps: [channels, numbers, centre], what each number of the centre takes over. rest: [channels,
    numbers], what is left of each number in the mean.
    """

    layer: str
    centre: Tensor
    taps: Tensor
    rest: Tensor
    fitted: ClassVar = ("taps", "rest")

    def __str__(self) -> str:
        return f"{self.layer} with a smaller kernel"

    def apply(self, network: nn.Module, remaining: Remaining) -> None:
        """Let a layer have its smaller kernel. remaining: as `narrow` returns."""
        layer: Any = network.get_submodule(self.layer)
        kept = remaining.get((f"{self.layer}.weight", int(layer.groups == 1)))
        weight = precise(layer.weight).flatten(2)
        taps, rest = ((t if kept is None else t[kept]).to(weight) for t in (self.taps, self.rest))
        if layer.groups > 1:  # one channel to each output
            taps, rest = taps[:, None], rest[:, None]
        small = (weight[:, :, None] @ taps).view(*weight.shape[:2], *_smaller(layer.kernel_size))
        shift = (weight * rest).sum((1, 2)) + (0.0 if layer.bias is None else precise(layer.bias))
        replace_tensor(network, f"{self.layer}.weight", small)
        replace_tensor(network, f"{self.layer}.bias", shift)
        layer.padding = _padding(layer)
        matched(layer)

    def attributes(self, model: nn.Module) -> dict[str, int]:
        """What the layer then has other numbers in than the model's, besides its kernel."""
        padding = _padding(model.get_submodule(self.layer))
        return {f"{self.layer}.padding[{axis}]": side for axis, side in enumerate(padding)}


def _smaller(sides: Iterable[int]) -> tuple[int, ...]:
    return tuple(side - 2 if side >= LEAST else side for side in sides)


def _padding(layer: Any) -> tuple[int, ...]:
    """With which the smaller kernel makes as much."""
    each = zip(layer.padding, layer.kernel_size, layer.dilation, strict=True)
    return tuple(p - d * (side >= LEAST) for p, side, d in each)


def blank(layer: Any, path: str) -> Crop:
    """The centre as it is."""
    sides = layer.kernel_size
    inner = [range(1, k - 1) if k >= LEAST else range(k) for k in sides]
    numbers = torch.arange(layer.weight[0, 0].numel()).view(sides)
    centre = torch.tensor([int(numbers[place]) for place in product(*inner)])
    taps = torch.eye(numbers.numel())[:, centre].repeat(layer.in_channels, 1, 1)
    return Crop(path, centre, taps, torch.zeros(layer.in_channels, numbers.numel()))


def blanks(model: nn.Module, paths: Iterable[str]) -> dict[str, Crop]:
    """Of the layers whose kernel can be smaller."""
    layers = {path: model.get_submodule(path) for path in paths}
    return {path: blank(layer, path) for path, layer in layers.items() if _can_be(layer)}


def _can_be(layer: Any) -> bool:
    if not isinstance(layer, Convolution) or is_transposed(layer) or layer.padding_mode != "zeros":
        return False
    alone = layer.groups == layer.in_channels == layer.out_channels
    wide = [side >= LEAST and side % 2 == 1 for side in layer.kernel_size]
    plain = (layer.groups == 1 or alone) and not isinstance(layer.padding, str)
    return plain and any(wide) and min(_padding(layer)) >= 0


def cropped(model: nn.Module, blanks: Iterable[Crop], batches: Iterable[Any]) -> dict[str, Crop]:
    """The crops fitted on what their layers read of these batches."""
    blanks = list(blanks)

    def read(layer: Any) -> Callable[[Tensor], Statistics]:
        most = max(64, NUMBERS // (layer.in_channels * layer.weight[0, 0].numel()))

        def of(x: Tensor) -> Statistics:
            rows = read_rows(layer, x.float(), most, torch.Generator().manual_seed(0))
            by_channel = rows.view(len(rows), layer.in_channels, -1).transpose(0, 1)
            products = (by_channel.mT @ by_channel).double()
            return len(rows), by_channel.double().sum(1), products

        return of

    readers = {crop.layer: read(model.get_submodule(crop.layer)) for crop in blanks}
    sums = statistics_of(model, readers, batches)
    return {crop.layer: _fitted(crop, *sums[crop.layer]) for crop in blanks}


def _fitted(crop: Crop, count: int, total: Tensor, products: Tensor) -> Crop:
    mean = total / count
    gram = products / count - mean[:, :, None] * mean[:, None]
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp_min(1e-12)
    inner = crop.centre
    system = gram[:, inner][:, :, inner] + ridge * torch.eye(len(inner), dtype=gram.dtype)
    # Towards the centre as it is, as all fits of weights here.
    wanted = gram[:, inner] + ridge * crop.taps.double().mT
    taps = torch.linalg.solve(system, wanted).mT
    rest = mean - (taps @ mean[:, inner, None])[:, :, 0]
    return Crop(crop.layer, inner, taps.float(), rest.float())
