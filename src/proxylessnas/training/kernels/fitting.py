"""Where a call may be stood in for."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook


def hooked(module: nn.Module) -> bool:
    """Whether someone listens to this module: a call that stands in would not tell."""
    forward = module._forward_pre_hooks or module._forward_hooks
    backward = module._backward_pre_hooks or module._backward_hooks
    return bool(forward or backward) or bool(_has_any_global_hook())  # type: ignore[no-untyped-call]


def are_images(x: Any, weight: Tensor) -> TypeGuard[Tensor]:
    """Whether it is a batch of images on the CPU, in float32 like the weight."""
    if not isinstance(x, Tensor) or torch.is_autocast_enabled("cpu"):
        return False
    return x.device.type == "cpu" and x.dim() == 4 and x.dtype == weight.dtype == torch.float32
