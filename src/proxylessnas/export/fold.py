"""Batch normalisation folded into the convolution before it."""

from __future__ import annotations

import warnings
from inspect import signature

import torch
from torch import nn
from torch.fx.experimental import optimization

from proxylessnas.training.copying import copied


def fold(module: nn.Module, inputs: int = 1) -> nn.Module:
    """A copy in eval mode with BN folded, as far as torch.fx can follow the module.

    inputs: tensors that it is called with; arguments beyond them are what they are by default.
    """
    plain = copied(module).eval()
    if any(m._forward_pre_hooks or m._forward_hooks for m in plain.modules()):
        return plain  # a hook may stand between them, or make the weight (weight_norm)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # `if mask is not None` would hold of what stands for an argument while it is traced.
            arguments = list(signature(plain.forward).parameters.values())[inputs:]
            fixed = {a.name: a.default for a in arguments if a.default is not a.empty}
            traced = torch.fx.symbolic_trace(plain, concrete_args=fixed)
            return optimization.fuse(traced, inplace=True, no_trace=True).eval()
    except Exception:  # control flow that cannot be traced: it stays unfolded, as it would run
        return plain
