"""From α to one network: decode under the limits, score the best, measure the best of those.

The paper keeps the most probable candidate of each mixed operation (section 3.2.1). Three
steps take its place here: the K most probable networks within the limits (`decode`), their
scores with the supernet's weights, and the latency of the best of these on the device. A
measurement that misses its prediction corrects the cost model, and the steps are repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from proxylessnas.config import DeriveSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Choices, Indices, propose
from proxylessnas.errors import LimitError

TOLERANCE = 0.02  # share of a latency limit that counts as measuring's inaccuracy

# A network's score (higher is better), and the scores of its single batches.
Score = tuple[float, tuple[float, ...]]
ScoreFunction = Callable[[Indices], Score]
# For some networks: (ms on the device, standard error as a share of it).
MeasureFunction = Callable[[Sequence[Indices]], list[tuple[float, float]]]


@dataclass(frozen=True)
class Proposal:
    """One network within the limits, with its score.

    indices: one candidate for every choice. log_p: Σ log p of these candidates.
    costs: predicted, in the order of `Costs.names`.
    score: accuracy on the validation part in [0, 1] (or the negative loss), with inherited
        weights. batch_scores: the same of each batch.
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
    measure: MeasureFunction | None = None,
    learned: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Choice:
    """Decode, score, measure, correct; at most `settings.rounds` times.

    score: of a network with inherited weights; all networks see the same batches.
    measure: the latency of some networks; None where nothing can be measured. Without a limit of
        the latency nothing is measured.
    learned: False (the estimator `random`) proposes uniform networks instead of probable ones.
    progress: called with (scored proposals, all proposals of the round).

    Raises:
        LimitError: no network of the space keeps the limits.
    """
    proposals: dict[Indices, Proposal] = {}
    measured: dict[Indices, Proposal] = {}
    limit, correction = costs.limit("latency"), 1.0
    for round_ in range(1, settings.rounds + 1):
        try:
            proposed = propose(space, costs, settings, learned=learned, seed=seed)
        except LimitError:
            if not measured:
                raise
            break  # no network keeps the limit by the corrected costs: choose among the measured
        proposals |= _scored(proposed, costs, proposals, score, progress)
        # Scores are noisy, and α is evidence too (`beliefs`), unless α never learned: then log p
        # is the noise of its initialisation.
        worth = beliefs(proposals.values()) if learned else _scores(proposals.values())
        ranked = sorted((proposals[i] for i, _ in proposed), key=lambda p: -worth[p.indices])
        if measure is None or not math.isfinite(limit):
            return Choice(ranked[0], tuple(proposals.values()), costs, round_)
        # The prediction is a sum of blocks; the device measures the network as a whole.
        latest = _measured(ranked[: settings.measure_best], measure)
        measured |= {p.indices: p for p in latest}
        ratio = _measured_over_predicted(latest, costs.index("latency"))
        # With a true cost model, further rounds would propose the same networks.
        close = abs(ratio - 1) <= TOLERANCE and any(_keeps(p, limit) for p in latest)
        if round_ == settings.rounds or close:
            break
        costs, correction = costs.scaled("latency", ratio), correction * ratio
    chosen = _best_measured(measured.values(), worth, limit)
    return Choice(chosen, tuple((proposals | measured).values()), costs, round_, correction)


def _scored(
    proposed: Sequence[tuple[Indices, float]],
    costs: Costs,
    known: Mapping[Indices, Proposal],
    score: ScoreFunction,
    progress: Callable[[int, int], None],
) -> dict[Indices, Proposal]:
    """Proposals of networks and their log p; the score of a known one is not computed again."""
    scored = {}
    for done, (indices, log_p) in enumerate(proposed, start=1):
        if indices in known:
            value, batches = known[indices].score, known[indices].batch_scores
        else:
            value, batches = score(indices)
        if not math.isfinite(value):  # such a network comes last, and says nothing about others
            value, batches = -math.inf, ()
        scored[indices] = Proposal(indices, log_p, tuple(costs.of(indices)), value, batches)
        progress(done, len(proposed))
    return scored


def _scores(proposals: Iterable[Proposal]) -> dict[Indices, float]:
    return {p.indices: p.score for p in proposals}


def _measured(best: Sequence[Proposal], measure: MeasureFunction) -> list[Proposal]:
    values = measure([p.indices for p in best])
    return [
        replace(p, measured_ms=ms, noise=noise) for p, (ms, noise) in zip(best, values, strict=True)
    ]


def _best_measured(
    measured: Iterable[Proposal], worth: Mapping[Indices, float], limit: float
) -> Proposal:
    """Of the measured networks of all rounds: the best within the limit, or else the fastest."""
    measured = list(measured)
    keeping = [p for p in measured if _keeps(p, limit)]
    if keeping:
        return max(keeping, key=lambda p: worth[p.indices])
    return min(measured, key=lambda p: p.measured_ms or 0.0)


# --- how far scores and measurements are believed ---


def beliefs(proposals: Iterable[Proposal]) -> dict[Indices, float]:
    """The expected score of each network without its noise, given its score and its log p.

    The scores of the most probable networks differ by less than their noise, while α has learned
    from thousands of batches. So (empirical Bayes) a line in log p is the prior, and a score's
    deviation from the line counts as far as such deviations exceed the noise. Where log p does
    not predict the scores, or the noise is small, the order is that of the scores.
    """
    every = list(proposals)
    proposals = [p for p in every if math.isfinite(p.score)]
    if not proposals:
        return _scores(every)
    score, log_p = np.array([(p.score, p.log_p) for p in proposals]).T
    prior = np.full(len(proposals), score.mean())
    centred = log_p - log_p.mean()
    # Least squares; a falling line would hold α's order against it, and is taken as flat.
    if len(proposals) > 2 and np.ptp(log_p) > 1e-9:
        prior += max(0.0, float(centred @ score / (centred @ centred))) * centred
    rest = score - prior
    spread = float(rest @ rest) / max(1, len(proposals) - 2)
    believed = prior + _trust(_noise([p.batch_scores for p in proposals]), spread) * rest
    expected = zip([p.indices for p in proposals], believed.tolist(), strict=True)
    return _scores(every) | dict(expected)


def _noise(batch_scores: Sequence[Sequence[float]]) -> float:
    """The variance of a score, of [networks, batches]; 0 with fewer than two batches."""
    # All networks see the same images, so by chance alone their scores differ by less. But with
    # inherited weights they also differ from what training would make of them, by about as much
    # again: on NAS-Bench-Macro choices by the smaller, paired variance were worse (docs/log.md).
    scores = np.array(batch_scores, dtype=np.float64)
    if scores.ndim < 2 or scores.shape[1] < 2:
        return 0.0
    return float(scores.var(1, ddof=1).mean() / scores.shape[1])


def _keeps(proposal: Proposal, limit: float) -> bool:
    """Whether the measured latency keeps the limit, as far as measuring can tell."""
    assert proposal.measured_ms is not None
    return proposal.measured_ms <= limit * (1 + max(TOLERANCE, proposal.noise))


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
