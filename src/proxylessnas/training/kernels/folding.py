"""Batch normalisation with frozen statistics, folded into the convolution before it.

A pretrained network is fine-tuned with the statistics it was trained with: a few thousand images
are too few to estimate others. Normalisation is then a fixed affine map of each channel, and
norm(conv(x, W)) is one convolution with weights W·s and bias β − μ·s, where s = γ / sqrt(σ² + ε).
Autograd goes through this product, so that W, γ and β learn as they would unfolded; what is saved
is reading, writing and keeping the activations between the two layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from proxylessnas.training.kernels import depthwise
from proxylessnas.training.kernels.fitting import hooked


def calls(
    modules: Sequence[nn.Module], *, depthwise_strips: bool
) -> dict[nn.Module, Callable[..., object]]:
    """What stands in for the calls of convolutions and normalisations that follow one another.

    Only in sequences without a forward of their own is it sure that the one's output is the
    other's input and nobody else's.
    """
    result: dict[nn.Module, Callable[..., object]] = {}
    for conv, norm in pairs(modules):
        pair = Folded(conv, norm, strips=depthwise_strips and depthwise.is_wide(conv))
        result[conv], result[norm] = pair.convolve, pair.normalise
    return result


def pairs(modules: Sequence[nn.Module]) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions with the normalisation right behind them; layers that are shared are left."""
    sequences = [
        list(module)
        for module in modules
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    ]
    uses = Counter(layer for layers in sequences for layer in layers)
    free = set(modules)
    for layers in sequences:
        for conv, norm in pairwise(layers):
            known = type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d
            if known and {conv, norm} <= free and uses[conv] == uses[norm] == 1:
                assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
                if norm.track_running_stats:
                    yield conv, norm


def norms(modules: Sequence[nn.Module]) -> list[_BatchNorm]:
    """The normalisations that have statistics to keep."""
    return [m for m in modules if isinstance(m, _BatchNorm) and m.track_running_stats]


class Folded:
    """Stands in for the calls of a convolution and of the normalisation behind it.

    Where someone listens to one of the two modules (a hook), both compute as they always do.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, *, strips: bool) -> None:
        self.conv, self.norm, self.strips = conv, norm, strips

    @property
    def is_off(self) -> bool:
        return self.norm.training or hooked(self.conv) or hooked(self.norm)

    def convolve(self, x: Tensor) -> Any:
        if self.is_off:
            return self.conv._call_impl(x)  # type: ignore[no-untyped-call]
        weight, bias = folded_parameters(self.conv, self.norm)
        if self.strips:
            return depthwise.convolve(self.conv, x, weight, bias)
        return self.conv._conv_forward(x, weight, bias)

    def normalise(self, x: Tensor) -> Any:
        return self.norm._call_impl(x) if self.is_off else x  # type: ignore[no-untyped-call]


def folded_parameters(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that both layers are, as functions of theirs."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    shift = -mean * scale
    bias = shift if norm.bias is None else norm.bias + shift
    return conv.weight * scale[:, None, None, None], bias
