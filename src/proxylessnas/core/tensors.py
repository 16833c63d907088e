"""What learns in a step, and what must stay: the tensors of every candidate, found once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from proxylessnas.core.supernet import Supernet
from proxylessnas.training.freezing import ModuleTensors


@dataclass(frozen=True, eq=False)
class SupernetTensors:
    """Parameters and buffers: of what always runs, and of every candidate.

    candidates: of every choice; a candidate's are those of all positions together, because
        they run, learn and are frozen together.
    """

    fixed: ModuleTensors
    candidates: tuple[tuple[ModuleTensors, ...], ...]

    def of(self, path: Sequence[Sequence[int]]) -> Iterator[ModuleTensors]:
        """The fixed part's and, for each choice, those of the candidates listed in `path`."""
        yield self.fixed
        for tensors, indices in zip(self.candidates, path, strict=True):
            for index in indices:
                yield tensors[index]


def collect_tensors(supernet: Supernet, beside: Iterable[nn.Module] = ()) -> SupernetTensors:
    """Walk the model once; steps then find their tensors without a walk of their own.

    beside: modules that learn with the model's fixed part, such as those of the loss.
    """
    candidates = {c for mixed in supernet.paths for c in mixed.candidates.values()}
    # `memo` holds what the walk has visited already: it does not enter the candidates. A module
    # that a candidate shares with the rest always runs, and is part of both.
    fixed = [module for _, module in supernet.model.named_modules(memo=set(candidates))]
    return SupernetTensors(
        fixed=ModuleTensors.of([*fixed, *beside]),
        candidates=tuple(
            tuple(
                ModuleTensors.of(m for mixed in positions for m in mixed.candidates[name].modules())
                for name in names
            )
            for names, positions in zip(supernet.candidates, supernet.positions, strict=True)
        ),
    )
