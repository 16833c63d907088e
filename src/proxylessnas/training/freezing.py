"""The architecture step changes α alone: weights take no gradient, no buffer moves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True, eq=False)
class Part:
    """The parameters and the buffers of some modules, collected once."""

    parameters: tuple[nn.Parameter, ...]
    batch_norms: tuple[_BatchNorm, ...]
    with_buffers: tuple[nn.Module, ...]


@contextmanager
def frozen(parts: Iterable[Part]) -> Iterator[None]:
    """Within the block these parts compute as usual, but nothing in them changes."""
    parts = list(parts)
    learning = {id(p): p for part in parts for p in part.parameters if p.requires_grad}
    norms = {id(n): n for part in parts for n in part.batch_norms if n.track_running_stats}
    kept = [Kept(m._buffers) for part in parts for m in part.with_buffers]
    try:
        for parameter in learning.values():
            parameter.requires_grad_(False)
        for norm in norms.values():
            # In evaluation mode the running statistics are used, and do not move anyway.
            norm.track_running_stats = not norm.training
        yield
    finally:
        for parameter in learning.values():
            parameter.requires_grad_(True)
        for norm in norms.values():
            norm.track_running_stats = True
        for buffers in kept:
            buffers.put_back()


class Kept:
    """A module's buffers as they were, whether it writes into them or replaces them."""

    def __init__(self, buffers: dict[str, Tensor | None]) -> None:
        self.buffers, self.tensors = buffers, dict(buffers)
        self.values = [(b, b.clone()) for b in buffers.values() if b is not None]

    @torch.no_grad()
    def put_back(self, unless: Tensor | None = None) -> None:
        """unless: a bool on the buffers' device; where it is true they stay as they are now."""
        if unless is not None and any(self.buffers[n] is not t for n, t in self.tensors.items()):
            if bool(unless):  # replaced ones cannot be chosen between there
                return
            unless = None
        self.buffers.update(self.tensors)
        for buffer, value in self.values:
            buffer.copy_(value if unless is None else torch.where(unless, buffer, value))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every submodule's training mode is put back."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in before:
            module.training = training
