"""The best network around a model within a limit: scored, decoded, measured, corrected.

The path of the trained family (`pretrained/`): scores of single replacements are a prior, the most
probable networks within the limit are decoded exactly, compared by their outputs, measured, and the
cost model corrected. Gates are not trained: α is the prior. A gate lets one candidate of a mixed
operation run, and here is none: pairs overlap in their layers, so that a candidate of one is a
tensor whose shape depends on what the other has chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from typing import Any

from proxylessnas.config import DeriveSettings
from proxylessnas.core.decode import Indices
from proxylessnas.core.supernet import softmax
from proxylessnas.errors import LimitError
from proxylessnas.hardware.whole_networks import Canary, measure_networks
from proxylessnas.pretrained.scores import Scores, tempered
from proxylessnas.pretrained.space import prior, rescored
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
from proxylessnas.surgery.candidates import LOW_RANK
from proxylessnas.surgery.climbing import climbed
from proxylessnas.surgery.latency import patient
from proxylessnas.surgery.saved import choice_of, plain_choice
from proxylessnas.surgery.scores import distance_for, distances, replacement_scores
from proxylessnas.surgery.starting import Prices, first_correction, start
from proxylessnas.training.callbacks import mean_entropy
from proxylessnas.training.freezing import evaluating
from proxylessnas.training.task import call

SCORES_WITHIN, CHOICE = "scores_within.json", "choice.json"
ROUNDS = 6  # of choosing, measuring and correcting
RESCORED = 2  # times that candidates are scored again around the network that is chosen
AROUND = 8  # networks that others are proposed around, at most
MEASURED = 3  # of the networks that keep the limit by their prediction, the best
DERIVE = DeriveSettings(top_k=16, rounds=1, recalibrate_images=0, min_limit_share=0.0)

Keep = Callable[[Choice], dict[str, Any]]  # leaves what a choice leads to; facts with its files


def recorded_choice(space: Around, limit: float, keep: Keep) -> Choice:
    """The stages `search`, which scores within the limit, and `derive`.

    Raises:
        LimitError: no network of the space keeps the limit, as measured.
    """
    brought = space.brought
    store = brought.records.store
    if not brought.records.done("search"):
        with brought.stage("search", f"scores around networks within {limit:.4g} ms") as facts:
            scores = _every_score(space, limit)
            store.write_json(SCORES_WITHIN, scores)
            alpha = prior(space.space, tempered(scores[0]))
            entropy = mean_entropy(softmax(alpha, space.space.mask), space.space.mask)
            facts |= {"entropy": entropy, "straightness": None, "architecture_steps": 0}
            facts["files"] = [SCORES_WITHIN]
    if not brought.records.done("derive"):
        with brought.stage("derive", f"the best network within {limit:.4g} ms") as facts:
            choice = _choice(space, limit, store.read_json(SCORES_WITHIN))
            store.write_json(CHOICE, plain_choice(choice))
            facts |= {**facts_of(choice), **(kept := keep(choice))}
            facts["files"] = [CHOICE, *kept["files"]]
    prices = partial(Prices, space.cost_model, limit)
    return choice_of(store.read_json(CHOICE), lambda correction, n: prices(correction).around(n))


def unrecorded_choice(space: Around, limit: float) -> Choice:
    """The same at once, of which nothing is left.

    Raises:
        LimitError: no network of the space keeps the limit, as measured.
    """
    return _choice(space, limit, _every_score(space, limit))


def facts_of(choice: Choice) -> dict[str, Any]:
    chosen = choice.chosen
    return {
        "predicted": dict(zip(choice.costs.names, chosen.costs, strict=True)),
        "measured_ms": chosen.measured_ms,
        "noise_pct": 100 * chosen.noise,
        "score": chosen.score,
        "rounds": choice.rounds,
        "correction": choice.correction,
        "target_ms": choice.costs.limit("latency"),
    }


def _alike(space: Around) -> list[Around]:
    """The space, and where that is less, without low ranks.

    What a network without them is worth, and by how much its predicted latency is off, is not what
    networks with them are and have: two thin layers are unlike one wide layer.
    """
    kinds = space.space.kinds
    if LOW_RANK not in kinds:
        return [space]
    return [space, replace(space, space=space.space.offering(kinds - {LOW_RANK}))]


def _every_score(space: Around, limit: float) -> list[Scores]:
    """Of each space alike."""
    score = _score_of(space)
    return [_scores_within(some, limit, score) for some in _alike(space)]


def _scores_within(space: Around, limit: float, score: ScoreFunction) -> Scores:
    """Scores corrected around the networks that they choose under the limit."""
    distance = distance_for(space.brought.task.loss)
    prices = Prices(space.cost_model, limit, first_correction(space, limit))

    def chosen(scores: Scores) -> Indices:
        space.space.alpha = prior(space.space, scores)
        return start(prices, space.space, score)

    with space.brought.reporter.bar("scoring within the limit") as update:
        return rescored(
            space.space,
            lambda names: replacement_scores(
                space.space, space.batches, distance, around=names, progress=update
            ),
            space.scores,
            chosen,
            rounds=RESCORED,
        )


def _choice(space: Around, limit: float, several: Sequence[Scores]) -> Choice:
    """Decode, compare by the outputs, measure, correct. several: scores of each space alike."""
    brought = space.brought
    score, known = _score_of(space), dict[Indices, Proposal]()
    with brought.reporter.bar("choosing") as update:
        for some, scores in zip(_alike(space), several, strict=True):
            # Without the costs: nothing is learned from here, and decoding keeps the limit exactly.
            some.space.alpha = prior(some.space, tempered(scores))
            # Of all that were measured, of the spaces before as well.
            choice = _Choosing(some, limit, score, known, update).converged()
    chosen = choice.chosen
    brought.reporter.say(
        f"  predicted {chosen.costs[0]:.4g} ms, measured {chosen.measured_ms:.4g} ms "
        f"(± {100 * chosen.noise:.1f} %), limit {limit:.4g} ms"
    )
    if not keeps(chosen, limit):
        raise LimitError(
            f"no network keeps {limit:.4g} ms: the fastest takes {chosen.measured_ms:.4g} ms on "
            f"{brought.runtime.name}; {brought.wider}"
        )
    return choice


class _Choosing:
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

        Until no network is believed to keep it and to be better, but for those that were measured.
        """
        rounds = 0
        while rounds < ROUNDS and (better := self._better()):
            rounds += 1
            self._measure(better)
        if not self._kept(self.again.values()):
            smallest = self.space.space.smallest
            predicted = self._prices().of(smallest)
            self._once_more([Proposal(smallest, 0.0, (predicted,), *self.score(smallest))])
        every = tuple(self.again.values())
        chosen = max(self._kept(every) or every[-1:], key=lambda p: p.score)
        correction = chosen.costs[0] / self.space.cost_model.of(chosen.indices)
        prices = Prices(self.space.cost_model, self.limit, correction)
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

    def _better(self) -> list[Proposal]:
        """The best networks that are believed to keep the limit, and of which less is known."""
        kept = self._kept(self.again.values())
        least = max((p.score for p in kept), default=-math.inf)
        known = self._missed() | self.again
        every = self._proposals(self._prices())
        return [p for p in every if p.score > least and p.indices not in known][:MEASURED]

    def _measure(self, proposals: Sequence[Proposal]) -> None:
        """All once, and the best that keeps the limit then, or else the fastest, once more."""
        new = self._measured([p for p in proposals if p.indices not in self.once])
        self.once |= {p.indices: p for p in new}
        first = [self.once[p.indices] for p in proposals]
        best = next(iter(self._kept(first)), min(first, key=_ms))
        self._once_more([best])

    def _proposals(self, prices: Prices) -> list[Proposal]:
        """Networks that keep the limit by these prices, compared by their outputs.

        The best first. Candidates are proposed around the best so far until none is better.
        """
        space = self.space.space
        near = start(prices, space, self.score)
        found: dict[Indices, Proposal] = {}

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
                    progress=lambda done, total: self.update(done, total, "comparing outputs"),
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
                progress=lambda done, total: self.update(done, total, "comparing outputs"),
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

    def _once_more(self, several: Sequence[Proposal]) -> None:
        self.again |= {p.indices: p for p in self._measured(several)}


def _ms(proposal: Proposal) -> float:
    assert proposal.measured_ms is not None
    return proposal.measured_ms


def _score_of(space: Around) -> ScoreFunction:
    """How far a network's outputs are from the model's, negative, also of every batch."""
    distance = distance_for(space.brought.task.loss)
    with evaluating(space.brought.model):
        wanted = [call(space.brought.model, batch) for batch in space.batches]

    @cache
    def score(indices: Indices) -> tuple[float, tuple[float, ...]]:
        with ExitStack() as stack:
            network = stack.enter_context(space.space.in_place(indices))
            deployed = stack.enter_context(space.brought.deployed(network))
            moved = distances(deployed, space.batches, wanted, distance)
        return -sum(moved) / len(moved), tuple(-value for value in moved)

    return score


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
