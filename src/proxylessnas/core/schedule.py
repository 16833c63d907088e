"""When a search takes which of its two kinds of steps, and which gates stay uniform."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from proxylessnas.config import SearchSettings
from proxylessnas.core.supernet import Supernet
from proxylessnas.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What the steps of a search are, known before the first one.

    warmup: weight steps with uniform gates, before α learns. total: steps in all.
    arch_every: steps from one architecture step to the next. arch_from: the first step that an
    architecture step may follow. weights: whether there are weight steps at all; without them
    every step is an architecture step alone.
    """

    warmup: int
    total: int
    arch_every: int
    arch_from: int
    weights: bool = True

    @staticmethod
    def of(settings: SearchSettings, epoch_steps: int) -> Schedule:
        """The schedule of the settings. epoch_steps: training batches of an epoch."""
        warmup = round(settings.warmup_epochs * epoch_steps)
        return Schedule(
            warmup=warmup,
            total=warmup + max(1, round(settings.epochs * epoch_steps)),
            arch_every=settings.arch_every,
            arch_from=warmup + round(settings.arch_delay_epochs * epoch_steps),
        )

    @staticmethod
    def architecture_alone(steps: int, *, start: int = 0) -> Schedule:
        """So many architecture steps on weights that stay, after `start` earlier steps."""
        return Schedule(warmup=0, total=start + steps, arch_every=1, arch_from=start, weights=False)

    def weights_alone(self) -> Schedule:
        """The same weight steps, all of them with uniform gates, and no architecture step."""
        return replace(self, warmup=self.total, arch_from=self.total)

    @property
    def architecture_steps(self) -> int:
        return max(0, self.total - self.arch_from) // self.arch_every

    def architecture_due(self, step: int) -> bool:
        """Whether an architecture step follows weight step `step`."""
        # + 1: the first one comes after `arch_every` weight steps, not before them.
        return step >= self.arch_from and (step - self.arch_from + 1) % self.arch_every == 0


def fair_gates(supernet: Supernet, seed: int, step: int) -> list[int]:
    """Uniform gates, strictly fair: each candidate once in every shuffled round (FairNAS).

    Independent uniform draws would train some candidates far more often than others in a short
    warm-up, and α would then take the better trained candidate for the better one.
    """
    allowed = [[j for j, present in enumerate(row) if present] for row in supernet.mask.tolist()]
    choice = [0] * len(allowed)
    # A round has as many steps as a choice has candidates, so choices of each size have rounds
    # of their own. The order of a round derives from its number: any step can be repeated alone.
    for size in {len(candidates) for candidates in allowed}:
        rows = [m for m, candidates in enumerate(allowed) if len(candidates) == size]
        turn, position = divmod(step, size)
        generator = torch.Generator().manual_seed(derive_seed(seed, "fair", size, turn))
        # A permutation of the candidates for every choice, of which this step takes its place.
        order = torch.rand(len(rows), size, generator=generator).argsort(1)[:, position].tolist()
        for row, candidate in zip(rows, order, strict=True):
            choice[row] = allowed[row][candidate]
    return choice
