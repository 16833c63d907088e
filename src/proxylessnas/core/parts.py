"""The architecture step changes α alone: weights take no gradient, no buffer moves.

Batch normalisation uses batch statistics there, as published, but its running statistics
stay: with `track_running_stats` off a module in training mode computes the same output and
touches nothing. Buffers of any other module are put back afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from proxylessnas.core.supernet import Supernet
from proxylessnas.training.freezing import Part


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
