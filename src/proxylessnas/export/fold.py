"""Batch normalisation folded into the convolution before it."""

from __future__ import annotations

import copy
import warnings

from torch import nn
from torch.fx.experimental import optimization


def fold(module: nn.Module) -> nn.Module:
    """A copy in eval mode with BN folded, as far as torch.fx can follow the module."""
    plain = copy.deepcopy(module).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optimization.fuse(plain).eval()
    except Exception:  # control flow that cannot be traced: it stays unfolded, as it would run
        return plain
