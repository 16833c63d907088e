"""The search space around a model: the plain network of every choice of candidates."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from proxylessnas.core.costs import Costs
from proxylessnas.surgery.candidates import LEFT_OUT, OWN, Choice
from proxylessnas.surgery.in_place import put_back
from proxylessnas.surgery.lowrank import Factors
from proxylessnas.surgery.narrow import narrow, sizes_of
from proxylessnas.training.copying import copied


class Space:
    """Choices with their candidates, as decoding, the prior and the costs take them.

    names, candidates: of the choices, as in a `Supernet`. mask: [choices, candidates], True where
    there is a candidate. alpha: the same shape, float64.
    """

    def __init__(self, model: nn.Module, choices: Sequence[Choice]) -> None:
        self.model, self.choices = model, tuple(choices)
        self.names = tuple(choice.name for choice in choices)
        self.candidates = tuple(tuple(c.name for c in choice.candidates) for choice in choices)
        widest = max(map(len, self.candidates))
        self.mask = torch.tensor([[j < len(c) for j in range(widest)] for c in self.candidates])
        self.alpha = torch.zeros(self.mask.shape, dtype=torch.float64)

    def __contains__(self, indices: object) -> bool:
        """Whether all candidates of a network are offered."""
        return isinstance(indices, tuple) and all(self.mask[m, j] for m, j in enumerate(indices))

    def log_probabilities(self) -> Tensor:
        """log softmax of α, -inf at pads."""
        return torch.log_softmax(self.alpha.masked_fill(~self.mask, -torch.inf), dim=1)

    def as_it_runs(self, indices: Sequence[int]) -> tuple[int, ...]:
        """The same network: every candidate matters."""
        return tuple(indices)

    def network(self, indices: Sequence[int]) -> nn.Module:
        """A plain copy of the model with one candidate for every choice."""
        network = copied(self.model)
        self._shape(network, indices)
        return network.eval()

    @contextmanager
    def in_place(self, indices: Sequence[int]) -> Iterator[nn.Module]:
        """The same within the block, out of a copy that all these networks share."""
        with put_back(self._shared):
            self._shape(self._shared, indices)
            yield self._shared

    @cached_property
    def _shared(self) -> nn.Module:
        return copied(self.model).eval()

    def _shape(self, network: nn.Module, indices: Sequence[int]) -> None:
        chosen = [c.candidates[i] for c, i in zip(self.choices, indices, strict=True)]
        remaining = narrow(network, [cut for candidate in chosen for cut in candidate.cuts])
        changes = [change for candidate in chosen for change in candidate.changes]
        # A smaller kernel before the two layers that stand for one.
        for change in sorted(changes, key=lambda change: isinstance(change, Factors)):
            change.apply(network, remaining)
        for choice, candidate in zip(self.choices, chosen, strict=True):
            if candidate.name == LEFT_OUT:
                network.set_submodule(choice.name, nn.Identity().eval())

    def chosen(self, indices: Sequence[int]) -> dict[str, str]:
        """Choice -> candidate."""
        rows = zip(self.names, self.candidates, indices, strict=True)
        return {name: candidates[index] for name, candidates, index in rows}

    def attributes(self, indices: Sequence[int]) -> dict[str, int]:
        """Of modules, by their paths, what a network has other numbers in than the model."""
        chosen = [c.candidates[i] for c, i in zip(self.choices, indices, strict=True)]
        cuts = [cut for candidate in chosen for cut in candidate.cuts]
        return {
            f"{size.module}.{size.attribute}".removeprefix("."): value
            for size, value in sizes_of(cuts).items()
        } | {
            name: value
            for candidate in chosen
            for change in candidate.changes
            for name, value in change.attributes(self.model).items()
        }

    def nearest(self, share: float) -> tuple[int, ...]:
        """The network of candidates that are as near as can be to one share of the channels."""
        return tuple(
            min(
                (j for j, c in enumerate(choice.candidates) if c.share and not c.changes),
                key=lambda j: abs(choice.candidates[j].share - share),
            )
            for choice in self.choices
        )

    @property
    def kinds(self) -> frozenset[str]:
        """Of the candidates that are offered besides the model's own layers."""
        offered = [self.choices[m].candidates[j].kind for m, j in self.mask.nonzero().tolist()]
        return frozenset(offered) - {OWN}

    def offering(self, kinds: Collection[str]) -> Space:
        """The same with candidates of these kinds alone, besides the model's own layers."""
        space = Space(self.model, self.choices)
        space.alpha = self.alpha
        for m, choice in enumerate(self.choices):
            for j, candidate in enumerate(choice.candidates):
                space.mask[m, j] = self.mask[m, j] and candidate.kind in {OWN, *kinds}
        return space

    def without(self, choice: int, candidate: int) -> Space:
        """The same without one candidate."""
        space = self.offering(self.kinds)
        space.mask[choice, candidate] = False
        return space

    @property
    def levels(self) -> tuple[str, ...]:
        """Of all changes of layers that candidates have."""
        every = [c.level for choice in self.choices for c in choice.candidates if c.changes]
        return tuple(dict.fromkeys(every))

    def changed(self, level: str) -> tuple[int, ...]:
        """The network of all changes of one level, all channels in it."""
        each = ([j for j, c in enumerate(x.candidates) if c.level == level] for x in self.choices)
        return tuple(max(indices, default=0) for indices in each)

    def modules_of(self, choice: int) -> set[str]:
        """Paths of the modules that differ between the candidates of a choice."""
        chosen = self.choices[choice]
        inside = chosen.layers | {size.module for pair in chosen.pairs for size in pair.sizes}
        return inside | {chosen.name} if chosen.can_leave_out else inside

    @cached_property
    def own(self) -> tuple[int, ...]:
        """The model itself."""
        return (0,) * len(self.choices)

    @property
    def smallest(self) -> tuple[int, ...]:
        """The network of the last candidates."""
        return tuple(int(row.nonzero()[-1]) for row in self.mask)

    def leave_out_slower(self, costs: Costs) -> list[tuple[str, str]]:
        """Let no change of layers be chosen that takes the time of the layers as they are.

        costs: their latency. Returns the choices and candidates that are left out.
        """
        ms = costs.per_candidate[0]
        slower = [
            (m, j)
            for m, choice in enumerate(self.choices)
            for j, candidate in enumerate(choice.candidates)
            if candidate.changes and ms[m, j] >= ms[m, 0]
        ]
        for at in slower:
            self.mask[at] = False
        return [(self.names[m], self.candidates[m][j]) for m, j in slower]
