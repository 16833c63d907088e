"""Where a call may be stood in for, and how torch.compile is asked for what stands in."""

from __future__ import annotations

import inspect
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

# Each since some release. Else all functions or modules that share their code would share a
# handful of graphs too, and the rest be eager.
APART: dict[str, Any] = {"isolate_recompiles": True, "recompile_limit": 64}


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


def apart() -> dict[str, Any]:
    """The options that this torch.compile knows, for static shapes."""
    known = inspect.signature(torch.compile).parameters
    return {"dynamic": False, **{k: v for k, v in APART.items() if k in known}}
