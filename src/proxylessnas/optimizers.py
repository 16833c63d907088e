"""Learning rates by step, and optimiser states as named tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def cosine(rate: float, step: int, steps: int) -> float:
    """`rate` at step 0, towards 0 at `steps`."""
    return 0.5 * rate * (1 + math.cos(math.pi * step / max(1, steps)))


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
