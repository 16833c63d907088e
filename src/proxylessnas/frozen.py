"""The architecture step changes α alone: weights take no gradient, no buffer moves.

Batch normalisation uses batch statistics there, as published, but its running statistics
stay: with `track_running_stats` off a module in training mode computes the same output and
touches nothing. Buffers of any other module are put back afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .supernet import Supernet


@dataclass(frozen=True, eq=False)
class Part:
    """The parameters and the buffers of some modules, collected once."""

    parameters: tuple[nn.Parameter, ...]
    batch_norms: tuple[_BatchNorm, ...]
    with_buffers: tuple[nn.Module, ...]


@dataclass(frozen=True, eq=False)
class Parts:
    """A supernet taken apart: what always runs, and what each candidate adds."""

    fixed: Part
    candidates: tuple[tuple[Part, ...], ...]

    def of(self, path: Sequence[Sequence[int]]) -> Iterator[Part]:
        """The fixed part and, for each mixed operation, the candidates listed in `path`."""
        yield self.fixed
        for parts, indices in zip(self.candidates, path, strict=True):
            for index in indices:
                yield parts[index]


def take_apart(supernet: Supernet) -> Parts:
    # `memo` is what the walk has seen already: it does not enter the candidates.
    candidates = {c for mixed in supernet.mixed for c in mixed.candidates.values()}
    fixed = [m for _, m in supernet.model.named_modules(memo=set(candidates))]
    return Parts(
        fixed=_part(fixed),
        candidates=tuple(
            tuple(_part(candidate.modules()) for candidate in mixed.candidates.values())
            for mixed in supernet.mixed
        ),
    )


def _part(modules: Iterable[nn.Module]) -> Part:
    parameters: dict[int, nn.Parameter] = {}
    batch_norms, with_buffers = [], []
    for module in modules:
        parameters |= {id(p): p for p in module.parameters(recurse=False)}
        # A subclass may do anything in its forward; only the library's own is known.
        if isinstance(module, _BatchNorm) and type(module).__module__.startswith("torch."):
            batch_norms.append(module)
        elif module._buffers:
            with_buffers.append(module)
    return Part(tuple(parameters.values()), tuple(batch_norms), tuple(with_buffers))


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
