"""Batch normalisation folded into the convolution before it."""

from __future__ import annotations

import warnings

from torch import nn
from torch.fx.experimental import optimization

from proxylessnas.training.copying import copied


def fold(module: nn.Module) -> nn.Module:
    """A copy in eval mode with BN folded, as far as torch.fx can follow the module."""
    plain = copied(module).eval()
    if any(m._forward_pre_hooks or m._forward_hooks for m in plain.modules()):
        return plain  # a hook may stand between them, or make the weight (weight_norm)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optimization.fuse(plain, inplace=True).eval()
    except Exception:  # control flow that cannot be traced: it stays unfolded, as it would run
        return plain
