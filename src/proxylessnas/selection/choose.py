"""From α to one network: decode under the limits, score the best, measure the best of those.

The paper keeps the most probable candidate of each mixed operation (section 3.2.1). Four
steps take its place here: the most probable networks within the limits (`decode`), their
scores with the supernet's weights, the networks that these scores predict to be better
(`explore`), and the latency of the best of all on the device. A measurement that misses its
prediction corrects the cost model, and the steps are repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from proxylessnas.config import DeriveSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Choices, Indices
from proxylessnas.errors import LimitError
from proxylessnas.selection.explore import Score, batch_of, explore, pool_of, predictor_of, sum_of
from proxylessnas.selection.predictor import Array, Networks
from proxylessnas.selection.propose import propose, used_costs

# By which predictions may miss measurements before they are corrected, and what noise may excuse of
# a limit that is missed.
TOLERANCE = 0.02

# A network's score (higher is better), and the scores of its single batches.
ScoreFunction = Callable[[Indices], Score]
# For some networks: (ms on the device, standard error as a share of it).
MeasureFunction = Callable[[Sequence[Indices]], list[tuple[float, float]]]


@dataclass(frozen=True)
class Proposal:
    """One network within the limits, with its score.

    indices: one candidate for every choice. log_p: Σ log p of these candidates.
    costs: predicted, in the order of `Costs.names`.
    score: the negative calibrated loss on the validation part, with inherited weights; beside
        figures of untrained networks where these count (`zero_cost.Beside`).
        batch_scores: the same of each batch.
    measured_ms: on the device, for the few that are measured. noise: the standard error of
        `measured_ms`, as a share of it.
    """

    indices: Indices
    log_p: float
    costs: tuple[float, ...]
    score: float
    batch_scores: tuple[float, ...] = ()
    measured_ms: float | None = None
    noise: float = 0.0


@dataclass(frozen=True)
class Choice:
    """The chosen network, all proposals, and the costs as measurements corrected them.

    rounds: how many rounds of decoding and measuring it took. correction: of the latency, by
        all of them.
    """

    chosen: Proposal
    proposals: tuple[Proposal, ...]
    costs: Costs
    rounds: int
    correction: float = 1.0


def choose(
    space: Choices,
    costs: Costs,
    settings: DeriveSettings,
    *,
    score: ScoreFunction,
    known: Collection[Indices] = (),
    measure: MeasureFunction | None = None,
    learned: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Choice:
    """Decode, score, measure, correct; at most `settings.rounds` times.

    score: of a network with inherited weights; all networks see the same batches.
    known: networks whose scores are remembered by `score`, anywhere in the space: the predictor
        learns from them.
    measure: the latency of some networks; None where nothing can be measured. Without a limit of
        the latency nothing is measured.
    learned: False (the estimator `random`) proposes uniform networks instead of probable ones.
    progress: called with (scored proposals, all proposals of the round).

    Raises:
        LimitError: no network of the space keeps the limits.
    """
    scores = {network: _finite(score(network)) for network in known}
    explored: dict[Indices, None] = {}
    measured: dict[Indices, Proposal] = {}
    limit, correction = costs.limit("latency"), 1.0
    for round_ in range(1, settings.rounds + 1):
        try:
            new = _explored(space, costs, settings, score, scores, learned, seed, progress)
        except LimitError:
            if not measured:
                raise
            break  # no network keeps the limit by the corrected costs: choose among the measured
        explored |= dict.fromkeys(new)
        every = _proposals(space, costs, scores)
        worth = beliefs(space, every.values(), learned=learned)
        proposals = {i: every[i] for i in explored}
        ranked = sorted((proposals[i] for i in new), key=lambda p: -worth[p.indices])
        if measure is None or not math.isfinite(limit):
            return Choice(ranked[0], tuple(proposals.values()), costs, round_)
        # The prediction is a sum of blocks; the device measures the network as a whole.
        latest = _measured(ranked[: settings.measure_best], measure, limit, measured)
        measured |= {p.indices: p for p in latest}
        ratio = _measured_over_predicted(latest, costs.index("latency"))
        # With a true cost model, further rounds would propose the same networks.
        close = abs(ratio - 1) <= TOLERANCE and any(keeps(p, limit) for p in latest)
        if round_ == settings.rounds or close:
            break
        costs, correction = costs.scaled("latency", ratio), correction * ratio
    chosen = _best_measured(measured.values(), worth, limit)
    return Choice(chosen, tuple((proposals | measured).values()), costs, round_, correction)


def _explored(
    space: Choices,
    costs: Costs,
    settings: DeriveSettings,
    score: ScoreFunction,
    scores: dict[Indices, Score],
    learned: bool,
    seed: int,
    progress: Callable[[int, int], None],
) -> list[Indices]:
    """Score up to `top_k` networks within the limits; half by what is known before any score.

    Those that are known already are not scored again. Returns them, known ones included.
    """
    total = settings.top_k
    start = propose(space, costs, settings, learned=learned, seed=seed, count=-(-total // 2))
    bounded = used_costs(space, costs, settings)[0]
    prior = sum_of(space.log_probabilities()) if learned else None
    pool = pool_of(space, bounded, 2 * batch_of(total), prior)

    return explore(
        space.candidates,
        [indices for indices, _ in start],
        pool,
        score=lambda network: _finite(score(network)),
        scores=scores,
        count=total,
        prior=prior,
        progress=progress,
    )


def _finite(score: Score) -> Score:
    """A network whose score is not finite comes last, and says nothing about others."""
    return score if math.isfinite(score[0]) else (-math.inf, ())


def _proposals(
    space: Choices, costs: Costs, scores: Mapping[Indices, Score]
) -> dict[Indices, Proposal]:
    log_p = space.log_probabilities()
    return {
        i: Proposal(
            i,
            math.fsum(float(log_p[m, j]) for m, j in enumerate(i)),
            tuple(costs.of(i)),
            *scores[i],
        )
        for i in scores
    }


def _measured(
    best: Sequence[Proposal],
    measure: MeasureFunction,
    limit: float,
    earlier: Mapping[Indices, Proposal],
) -> list[Proposal]:
    """Measured proposals; once more those of which one noisy figure does not tell what they keep.

    earlier: proposals as they were measured in the rounds before, which counts as well.
    """
    values = {i: (p.measured_ms or 0.0, p.noise) for i, p in earlier.items()}

    def visit(networks: list[Indices]) -> None:
        for indices, value in zip(networks, measure(networks) if networks else [], strict=True):
            values[indices] = _pooled(values[indices], value) if indices in values else value

    networks = [p.indices for p in best]
    visit(networks)
    visit([i for i in networks if _is_unsure(*values[i], limit)])
    return [
        replace(p, measured_ms=values[i][0], noise=values[i][1])
        for i, p in zip(networks, best, strict=True)
    ]


def _is_unsure(ms: float, noise: float, limit: float) -> bool:
    return noise > TOLERANCE / 2 and abs(ms / limit - 1) < 2 * noise


def _pooled(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Two measurements as one, each weighted by its inverse variance."""
    (ms, noise), (more_ms, more_noise) = first, second
    both = math.hypot(noise, more_noise)
    if not both:
        return second  # certain, both of them: the device is another one now
    return ms + (noise / both) ** 2 * (more_ms - ms), noise * more_noise / both


def _best_measured(
    measured: Iterable[Proposal], worth: Mapping[Indices, float], limit: float
) -> Proposal:
    """Of the measured networks of all rounds: the best within the limit, or else the fastest."""
    measured = list(measured)
    keeping = [p for p in measured if keeps(p, limit)]
    if keeping:
        return max(keeping, key=lambda p: worth[p.indices])
    return min(measured, key=lambda p: p.measured_ms or 0.0)


# --- how far scores and measurements are believed ---


def beliefs(
    space: Choices, proposals: Iterable[Proposal], *, learned: bool
) -> dict[Indices, float]:
    """The expected score of each network without its noise, given all scores and log p.

    The scores of good networks differ by less than their noise, while α has learned from
    thousands of batches, and each score says something about the networks like it. So (empirical
    Bayes) a line in log p and a prior on what candidates and their pairs are worth explain the
    scores, see `predictor`; what they do not explain of a score counts as far as it exceeds the
    noise. Where nothing explains the scores, or the noise is small, the order is theirs.
    """
    every = list(proposals)
    finite = [p for p in every if math.isfinite(p.score)]
    worth = {p.indices: p.score for p in every}
    if not finite:
        return worth
    # Of an α that never learned log p is the noise of its initialisation.
    log_p = {p.indices: p.log_p if learned else 0.0 for p in finite}

    def prior(networks: Networks) -> Array:
        return np.array([log_p[tuple(n)] for n in networks.tolist()])

    scores = {p.indices: (p.score, p.batch_scores) for p in finite}
    predictor = predictor_of(space.candidates, scores, prior)
    networks = np.array(list(log_p), np.int64)
    believed, _ = predictor(networks, prior(networks))
    return worth | dict(zip(log_p, believed.tolist(), strict=True))


def keeps(proposal: Proposal, limit: float) -> bool:
    """Whether the measured latency keeps the limit, as far as measuring can tell.

    Its noise excuses two percent at most: who asks for a limit gets no more on a noisy machine.
    """
    assert proposal.measured_ms is not None
    return proposal.measured_ms <= limit * (1 + min(proposal.noise, TOLERANCE))


def _measured_over_predicted(measured: Sequence[Proposal], latency: int) -> float:
    """The correction of the cost model: measured over predicted latency.

    latency: the position of the latency among the costs.
    """
    # The median network's ratio, shrunk to 1 by its noise: a deviation within the noise says
    # nothing, and a cost model corrected by it would be made worse (the positive-part James-Stein
    # estimate of one mean).
    ratios = sorted(((p.measured_ms or 0.0) / p.costs[latency], p.noise) for p in measured)
    ratio, noise = ratios[len(ratios) // 2]
    return 1 + _trust(noise**2, (ratio - 1) ** 2) * (ratio - 1)


def _trust(noise: float, total: float) -> float:
    """The share of the variance `total` that is not noise."""
    return 1 - noise / total if total > noise else 0.0
