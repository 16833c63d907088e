"""The best network around a model within a limit: scored, decoded, measured, corrected.

The path of the trained family (`pretrained/`): scores of single replacements are a prior, the most
probable networks within the limit are decoded exactly, compared by their outputs, measured, and the
cost model corrected. Gates are not trained: α is the prior. A gate lets one candidate of a mixed
operation run, and here is none: pairs overlap in their layers, so that a candidate of one is a
tensor whose shape depends on what the other has chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from typing import Any

from proxylessnas.core.decode import Indices
from proxylessnas.core.supernet import softmax
from proxylessnas.errors import LimitError
from proxylessnas.pretrained.scores import Scores, tempered
from proxylessnas.pretrained.space import prior, rescored
from proxylessnas.selection.choose import (
    Choice,
    Proposal,
    ScoreFunction,
    keeps,
)
from proxylessnas.surgery.around import Around
from proxylessnas.surgery.candidates import LOW_RANK
from proxylessnas.surgery.rounds import Rounds
from proxylessnas.surgery.saved import choice_of, plain_choice
from proxylessnas.surgery.scores import distance_for, distances, replacement_scores
from proxylessnas.surgery.starting import Prices, first_correction, start
from proxylessnas.training.callbacks import mean_entropy
from proxylessnas.training.freezing import evaluating
from proxylessnas.training.task import call

SCORES_WITHIN, CHOICE = "scores_within.json", "choice.json"
RESCORED = 2  # times that candidates are scored again around the network that is chosen

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
            choice = Rounds(some, limit, score, known, update).converged()
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
