"""Learning rates by step; models and optimiser states as named tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def cosine(rate: float, step: int, steps: int) -> float:
    """`rate` at step 0, towards 0 at `steps`."""
    return 0.5 * rate * (1 + math.cos(math.pi * step / max(1, steps)))


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """`model.name` -> parameters and buffers, those too that a `state_dict` leaves out."""
    saved = model.state_dict()
    others = {k: v for k, v in model.named_buffers(remove_duplicate=False) if k not in saved}
    return {f"model.{k}": v for k, v in saved.items()} | {
        f"unsaved.{k}": v for k, v in others.items()
    }


@torch.no_grad()
def load_model(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse."""
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for name, value in tensors.items():
        if name.startswith("unsaved."):
            buffers[name[8:]].copy_(value)


def optimizer_tensors(
    prefix: str, optimizer: torch.optim.Optimizer, names: dict[int, str]
) -> dict[str, Tensor]:
    """`prefix.parameter:key` -> tensor, for every parameter that has a state."""
    return {
        f"{prefix}.{names[id(parameter)]}:{key}": value
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(
    prefix: str,
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, Any],
    tensors: dict[str, Tensor],
) -> None:
    """The inverse: states that the tensors do not name are empty."""
    optimizer.state.clear()
    for name, value in tensors.items():
        if name.startswith(prefix + "."):
            parameter, _, key = name[len(prefix) + 1 :].rpartition(":")
            target = parameters[parameter]
            on = value if key == "step" else value.to(target.device)
            optimizer.state[target][key] = on.clone()
