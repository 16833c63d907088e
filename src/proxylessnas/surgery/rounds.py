"""Rounds of choosing networks, measuring them and believing what was measured, under one limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from proxylessnas.config import DeriveSettings
from proxylessnas.core.decode import Indices
from proxylessnas.errors import LimitError
from proxylessnas.hardware.whole_networks import Canary, measure_networks
from proxylessnas.seeds import derive_seed
from proxylessnas.selection.choose import (
    Choice,
    MeasureFunction,
    Proposal,
    ScoreFunction,
    choose,
    keeps,
)
from proxylessnas.surgery.around import Around
from proxylessnas.surgery.climbing import climbed
from proxylessnas.surgery.latency import patient
from proxylessnas.surgery.starting import Prices, first_correction, start

ROUNDS = 6  # of choosing and measuring
AROUND = 8  # networks that others are proposed around, at most
HOPE = 0.03  # of a network's latency, that beliefs are off by
MEASURED = 3  # of the networks that keep the limit by their prediction, the best
DERIVE = DeriveSettings(top_k=16, rounds=1, recalibrate_images=0, min_limit_share=0.0)


class Rounds:
    """Choices under one limit, with a cost model that what is measured corrects.

    again: networks that were measured twice, by earlier choices as well. The best of several
    measured ones is, by chance, one that was measured too fast; so the first figure chooses it, and
    the second is believed. once: the first figures.
    """

    def __init__(
        self,
        space: Around,
        limit: float,
        score: ScoreFunction,
        again: dict[Indices, Proposal],
        update: Callable[[int, int, str], None],
    ) -> None:
        self.space, self.limit = space, limit
        self.measure = _measure_of(space, lambda done, total: update(done, total, "measuring"))
        self.score, self.again, self.update = score, again, update
        self.once: dict[Indices, Proposal] = {}

    def converged(self) -> Choice:
        """The best of all that keep the limit; the smallest network where none does.

        Until no network is believed to keep it and to be better, but for those that were measured;
        then those are tried once that miss it by no more than beliefs are off.
        """
        rounds, hopes = 0, [1.0, 1.0 + HOPE]
        while rounds < ROUNDS and hopes:
            if not (better := self._better(hopes[0])):
                hopes.pop(0)
                continue
            if hopes[0] > 1:
                hopes = [1.0]
            rounds += 1
            best = self._measure(better)
            word = "keeps" if self._kept([best]) else "misses"
            self.space.brought.reporter.say(
                f"  round {rounds}: of {len(better)} the best was believed to take "
                f"{best.costs[0]:.4g} ms, measured {_ms(best):.4g}: it {word} the limit"
            )
        kept = self._kept(self.again.values())
        if not kept:
            smallest = self.space.space.smallest
            predicted = self._prices().of(smallest)
            kept = [self._once_more(Proposal(smallest, 0.0, (predicted,), *self.score(smallest)))]
        chosen = max(kept, key=lambda p: p.score)
        correction = chosen.costs[0] / self.space.cost_model.of(chosen.indices)
        prices = Prices(self.space.cost_model, self.limit, correction)
        every = tuple(self.again.values())
        return Choice(chosen, every, prices.around(chosen.indices), rounds, correction)

    def _prices(self) -> Prices:
        """By all that is believed: second figures, and the first of networks that missed."""
        known = {n: _ms(p) for n, p in (self._missed() | self.again).items()}
        if not known:
            correction = first_correction(self.space, self.limit)
            return Prices(self.space.cost_model, self.limit, correction)
        return Prices(self.space.cost_model.corrected(known), self.limit, 1.0)

    def _missed(self) -> dict[Indices, Proposal]:
        return {n: p for n, p in self.once.items() if not keeps(p, self.limit)}

    def _better(self, hope: float) -> list[Proposal]:
        """The best networks that are believed to keep the limit, and of which less is known.

        hope: by which the limit is multiplied.
        """
        kept = self._kept(self.again.values())
        least = max((p.score for p in kept), default=-math.inf)
        known = self._missed() | self.again
        prices = self._prices()
        every = self._proposals(replace(prices, limit=hope * prices.limit))
        return [p for p in every if p.score > least and p.indices not in known][:MEASURED]

    def _measure(self, proposals: Sequence[Proposal]) -> Proposal:
        """All once, and the best that keeps the limit then, or else the fastest, once more."""
        new = self._measured([p for p in proposals if p.indices not in self.once])
        self.once |= {p.indices: p for p in new}
        first = [self.once[p.indices] for p in proposals]
        best = next(iter(self._kept(first)), min(first, key=_ms))
        return self._once_more(best)

    def _proposals(self, prices: Prices) -> list[Proposal]:
        """Networks that keep the limit by these prices, compared by their outputs.

        The best first. Candidates are proposed around the best so far until none is better.
        """
        space = self.space.space
        # From the best so far as well: what is known of it may leave it more of the limit.
        known = [p.indices for p in self._kept(self.again.values())]
        begin = [n for n in known if n in space and prices.keep(n)]
        begin.append(start(prices, space, self.score))
        near = max(begin, key=lambda n: self.score(n)[0])
        found: dict[Indices, Proposal] = {}

        def progress(done: int, total: int) -> None:
            self.update(done, total, "comparing outputs")

        def take(proposal: Proposal) -> None:
            if prices.keep(proposal.indices):
                ms = prices.of(proposal.indices)
                found[proposal.indices] = replace(proposal, costs=(ms,))

        take(Proposal(near, 0.0, (0.0,), *self.score(near)))
        for _ in range(AROUND):
            try:
                choice = choose(
                    space,
                    prices.around(near),
                    DERIVE,
                    score=self.score,
                    seed=derive_seed(self.space.brought.seed, "proposals"),
                    progress=progress,
                )
            except LimitError:
                break
            for proposal in choice.proposals:
                take(proposal)
            best = max(found.values(), key=lambda p: p.score, default=None)
            if best is None or best.indices == near:
                break
            near = best.indices
        if near in found:
            better = climbed(
                near,
                prices,
                space,
                self.score,
                seed=derive_seed(self.space.brought.seed, "climbing"),
                progress=progress,
            )
            for network in better:
                take(Proposal(network, 0.0, (0.0,), *self.score(network)))
        return sorted(found.values(), key=lambda p: -p.score)

    def _kept(self, several: Iterable[Proposal]) -> list[Proposal]:
        return [p for p in several if keeps(p, self.limit)]

    def _measured(self, several: Sequence[Proposal]) -> list[Proposal]:
        values = self.measure([p.indices for p in several]) if several else []
        both = zip(several, values, strict=True)
        return [replace(p, measured_ms=ms, noise=noise) for p, (ms, noise) in both]

    def _once_more(self, proposal: Proposal) -> Proposal:
        (again,) = self._measured([proposal])
        self.again[again.indices] = again
        return again


def _ms(proposal: Proposal) -> float:
    assert proposal.measured_ms is not None
    return proposal.measured_ms


def _measure_of(space: Around, progress: Callable[[int, int], None]) -> MeasureFunction:
    """The latency of networks, corrected by how much slower the model is now."""
    brought = space.brought
    settings = patient(brought.model, brought.inputs, brought.runtime, brought.measure)

    def measure(networks: Sequence[Indices]) -> list[tuple[float, float]]:
        report = measure_networks(
            {str(i): space.space.network(indices) for i, indices in enumerate(networks)},
            brought.runtime,
            brought.inputs,
            settings,
            # The device may be slower or faster now than when the candidates were measured.
            canary=Canary(network=brought.model, then_ms=space.model_ms),
            progress=progress,
            seed=brought.seed,
        )
        return [report[str(i)].value for i in range(len(networks))]

    return measure
