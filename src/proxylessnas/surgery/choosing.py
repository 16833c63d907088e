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
from functools import cache
from typing import Any

from proxylessnas.config import DeriveSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Indices
from proxylessnas.core.supernet import softmax
from proxylessnas.errors import LimitError
from proxylessnas.hardware.whole_networks import Canary, measure_networks
from proxylessnas.pretrained.scores import Scores, tempered
from proxylessnas.pretrained.space import prior, rescored
from proxylessnas.seeds import derive_seed
from proxylessnas.selection.choose import (
    TOLERANCE,
    Choice,
    MeasureFunction,
    Proposal,
    ScoreFunction,
    choose,
    keeps,
)
from proxylessnas.surgery.around import Around
from proxylessnas.surgery.latency import patient
from proxylessnas.surgery.saved import choice_of, plain_choice
from proxylessnas.surgery.scores import distance_for, distances, replacement_scores
from proxylessnas.training.callbacks import mean_entropy
from proxylessnas.training.freezing import evaluating
from proxylessnas.training.task import call

SCORES_WITHIN, CHOICE = "scores_within.json", "choice.json"
ROUNDS = 6  # of choosing, measuring and correcting
CLOSE = 0.005  # corrections that differ by so little choose the same
RESCORED = 2  # times that candidates are scored again around the network that is chosen
DERIVE = DeriveSettings(top_k=10, measure_best=3, rounds=1, recalibrate_images=0)

Keep = Callable[[Choice], dict[str, Any]]  # leaves what a choice leads to; facts with its files


def recorded_choice(space: Around, limit: float, keep: Keep) -> Choice:
    """The stages `search`, which scores within the limit, and `derive`.

    Raises:
        LimitError: no network of the space keeps the limit, as measured.
    """
    brought, costs = space.brought, _limited(space, limit)
    store = brought.records.store
    if not brought.records.done("search"):
        with brought.stage("search", f"scores around networks within {limit:.4g} ms") as facts:
            scores = _scores_within(space, costs)
            store.write_json(SCORES_WITHIN, scores)
            alpha = prior(space.space, tempered(scores))
            entropy = mean_entropy(softmax(alpha, space.space.mask), space.space.mask)
            facts |= {"entropy": entropy, "straightness": None, "architecture_steps": 0}
            facts["files"] = [SCORES_WITHIN]
    if not brought.records.done("derive"):
        with brought.stage("derive", f"the best network within {limit:.4g} ms") as facts:
            choice = _choice(space, costs, store.read_json(SCORES_WITHIN))
            store.write_json(CHOICE, plain_choice(choice))
            facts |= {**facts_of(choice), **(kept := keep(choice))}
            facts["files"] = [CHOICE, *kept["files"]]
    return choice_of(store.read_json(CHOICE), costs)


def unrecorded_choice(space: Around, limit: float) -> Choice:
    """The same at once, of which nothing is left.

    Raises:
        LimitError: no network of the space keeps the limit, as measured.
    """
    costs = _limited(space, limit)
    return _choice(space, costs, _scores_within(space, costs))


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


def _limited(space: Around, limit: float) -> Costs:
    """The costs under a limit; all of them less where their sum denies what was measured.

    The sum of small layers may be far off, and the smallest network is known to keep the limit.
    """
    costs = space.costs.limited({"latency": limit})
    least = costs.range(space.space.mask)[0][0]
    reached = 0.99 * min(limit, space.latencies.least_ms)
    return costs if least <= limit else costs.scaled("latency", reached / least)


def _scores_within(space: Around, costs: Costs) -> Scores:
    """Scores corrected around the networks that they choose under the limit."""
    distance = distance_for(space.brought.task.loss)
    with space.brought.reporter.bar("scoring within the limit") as update:
        return rescored(
            space.space,
            lambda names: replacement_scores(
                space.space, space.batches, distance, around=names, progress=update
            ),
            space.scores,
            costs,
            rounds=RESCORED,
        )


def _choice(space: Around, costs: Costs, scores: Scores) -> Choice:
    """Decode, compare by the outputs, measure, correct."""
    brought, limit = space.brought, costs.limit("latency")
    # Without the costs: nothing is learned from here, and decoding keeps the limit exactly.
    space.space.alpha = prior(space.space, tempered(scores))
    with brought.reporter.bar("choosing") as update:
        choice = _Choosing(space, costs, update).converged()
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
    """Choices under one limit, corrected until what is measured keeps the limit and uses it.

    again: networks that were measured once more. The best of several measured ones is, by chance,
    one that was measured too fast; so the first figure chooses it, and the second is believed.
    loose, tight: corrections of the costs under which the limit was missed, and under which it was
    not used up. One factor makes the sums of layers right for one network; between these two is
    the best that it can do for all.
    """

    def __init__(self, space: Around, costs: Costs, update: Callable[[int, int, str], None]):
        self.space, self.costs, self.limit = space, costs, costs.limit("latency")
        self.measure = _measure_of(space, lambda done, total: update(done, total, "measuring"))
        self.score, self.update = cache(_score_of(space)), update
        self.again: dict[Indices, Proposal] = {}
        self.loose, self.tight = 0.0, math.inf

    def converged(self) -> Choice:
        """The best of all that keep the limit; the smallest network where none does.

        Raises:
            LimitError: no network keeps the limit by the costs.
        """
        correction, round_ = 1.0, 0
        while round_ < ROUNDS and self.loose * (1 + CLOSE) < self.tight:
            round_ += 1
            ratio = self._ratio(self.costs.scaled("latency", correction))
            if ratio is None:
                break
            if ratio > 1:
                self.loose = correction
            else:
                self.tight = correction
            correction *= ratio
            if not self.loose < correction < self.tight:
                correction = math.sqrt(self.loose * self.tight)
        if not self._kept(self.again.values()):
            smallest, costs = self.space.space.smallest, self.costs.scaled("latency", correction)
            costs_of = tuple(costs.of(smallest))
            self._once_more([Proposal(smallest, 0.0, costs_of, *self.score(smallest))])
        every = tuple(self.again.values())
        chosen = max(self._kept(every) or every[-1:], key=lambda p: p.score)
        correction = chosen.costs[0] / self.costs.of(chosen.indices)[0]
        costs = self.costs.scaled("latency", correction)
        return Choice(chosen, every, costs, round_, correction)

    def _ratio(self, costs: Costs) -> float | None:
        """Choose by these costs; by how much they want to be corrected further.

        None where the limit is kept, and used up but for what predictions may miss.
        """
        try:
            choice = choose(
                self.space.space,
                costs,
                DERIVE,
                score=self.score,
                measure=self._measured,
                seed=derive_seed(self.space.brought.seed, "proposals"),
                progress=lambda done, total: self.update(done, total, "comparing outputs"),
            )
        except LimitError:
            if not self.again:
                raise
            return 0.0  # corrected too far
        (best,) = self._once_more([choice.chosen])
        kept = self._kept([best])
        if not kept:
            others = [p for p in choice.proposals if p.measured_ms and p.indices != best.indices]
            kept = self._kept(self._once_more(others))
        unbound = costs.range(self.space.space.mask)[0][1] <= self.limit
        if kept and (unbound or max(map(_ms, kept)) >= (1 - TOLERANCE) * self.limit):
            return None
        missed, used = _ms(best) / best.costs[0], _ms(best) / self.limit
        return min(missed, used) if keeps(best, self.limit) else max(missed, 1 + CLOSE)

    def _kept(self, several: Iterable[Proposal]) -> list[Proposal]:
        return [p for p in several if keeps(p, self.limit)]

    def _measured(self, networks: Sequence[Indices]) -> list[tuple[float, float]]:
        """What is known of networks by two measurements is not measured a third time."""
        unknown = [n for n in networks if n not in self.again]
        new = iter(self.measure(unknown) if unknown else ())
        known = (self.again.get(n) for n in networks)
        return [(_ms(p), p.noise) if p else next(new) for p in known]

    def _once_more(self, several: Sequence[Proposal]) -> list[Proposal]:
        both = zip(several, self._measured([p.indices for p in several]), strict=True)
        fresh = [replace(p, measured_ms=ms, noise=noise) for p, (ms, noise) in both]
        self.again |= {p.indices: p for p in fresh}
        return fresh


def _ms(proposal: Proposal) -> float:
    assert proposal.measured_ms is not None
    return proposal.measured_ms


def _score_of(space: Around) -> ScoreFunction:
    """How far a network's outputs are from the model's, negative, also of every batch."""
    distance = distance_for(space.brought.task.loss)
    with evaluating(space.brought.model):
        wanted = [call(space.brought.model, batch) for batch in space.batches]

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
