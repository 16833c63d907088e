"""Layers that compute what PyTorch's compute, to rounding, in less time on a CPU.

    depthwise_strips   depthwise convolutions take their weight gradient in strips: `depthwise`
    fused_batch_norm   batch normalisation takes the activation after it along: `normalise`
    frozen_statistics  batch normalisation keeps its statistics, folded into the convolution before
                       it: `folding`; not to be had with fused_batch_norm, and nothing to gain there

The first two are found by trying whether they pay on this machine (`trials`). They stand in for
the call of a module that is in the model and change nothing else about it: copies and pickles are
plain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from proxylessnas.training.kernels import depthwise, folding, normalise

__all__ = ["gains", "speed_up"]


def speed_up(
    modules: Iterable[nn.Module],
    *,
    depthwise_strips: bool,
    fused_batch_norm: bool,
    frozen_statistics: bool = False,
) -> Callable[[], None]:
    """Let these modules of a model compute faster, where they can; returns what undoes it.

    frozen_statistics: for a model in training mode whose normalisations shall compute as in
        evaluation mode.

    Raises:
        ConfigError: no kernel can be compiled here.
    """
    modules = list(modules)
    free = [module for module in modules if module._compiled_call_impl is None]
    calls: dict[nn.Module, Callable[..., object]] = {}
    if depthwise_strips:
        calls |= {m: depthwise.SplitCall(m) for m in free if depthwise.is_wide(m)}
    norms: list[_BatchNorm] = []
    if frozen_statistics:
        calls |= folding.calls(free, depthwise_strips=depthwise_strips)
        norms = [norm for norm in folding.norms(modules) if norm.training]
    elif fused_batch_norm:
        calls |= normalise.calls(free)
    for norm in norms:
        norm.training = False
    for module, call in calls.items():
        module._compiled_call_impl = call

    def undo() -> None:
        for module in calls:
            module._compiled_call_impl = None
        for norm in norms:
            norm.training = True

    return undo


def gains(modules: Iterable[nn.Module]) -> tuple[bool, bool]:
    """Whether any depthwise convolution gains by strips, and any normalisation by fusing."""
    modules = list(modules)
    return any(map(depthwise.is_wide, modules)), any(map(normalise.is_norm, modules))
