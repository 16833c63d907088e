"""From α to one network: decode under the limits, score the best, measure the best of those.

The paper keeps the most probable candidate of each mixed operation (section 3.2.1). Three
steps take its place here: the K most probable networks within the limits (`decode`), their
scores with the supernet's weights, and the latency of the best of these on the device. A
measurement that misses its prediction corrects the cost model, and the steps are repeated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from proxylessnas.config import DeriveSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import decode, sample_within
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import LimitError

Indices = tuple[int, ...]
TOLERANCE = 0.02  # share of a latency limit that counts as measuring's inaccuracy
USE_COUNT = 0.9  # the share of a limit of MACs or parameters that a network uses, at most
ATTEMPTS = 100  # random decodes, some of them repeats, where uniform draws do not suffice


@dataclass(frozen=True)
class Proposal:
    """One network within the limits, with its score.

    indices: one candidate for every choice. log_p: Σ log p of these candidates.
    costs: predicted, in the order of `Costs.names`.
    score: accuracy on the validation part in [0, 1] (or the negative loss), with inherited
        weights. parts: the same of each batch.
    measured_ms: on the device, for the few that are measured. noise: the standard error of
        `measured_ms`, as a share of it.
    """

    indices: Indices
    log_p: float
    costs: tuple[float, ...]
    score: float
    parts: tuple[float, ...] = ()
    measured_ms: float | None = None
    noise: float = 0.0


@dataclass(frozen=True)
class Choice:
    """The chosen network, all proposals, and the costs as measurements corrected them.

    rounds: how many rounds of decoding and measuring it took.
    """

    chosen: Proposal
    proposals: tuple[Proposal, ...]
    costs: Costs
    rounds: int


def choose(
    supernet: Supernet,
    costs: Costs,
    settings: DeriveSettings,
    *,
    score: Callable[[Indices], tuple[float, tuple[float, ...]]],
    measure: Callable[[Sequence[Indices]], list[tuple[float, float]]] | None = None,
    learned: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Choice:
    """Decode, score, measure, correct; at most `settings.rounds` times.

    score: the score of a network with inherited weights (higher is better), and the scores of
        its single batches; all networks see the same batches.
    measure: for some networks (ms on the device, standard error as a share of it); None where
        nothing can be measured.
    learned: False (the estimator `random`) proposes uniform networks instead of probable ones.
    progress: called with (scored proposals, all proposals of the round).

    Raises:
        LimitError: no network of the space keeps the limits.
    """
    scores: dict[Indices, tuple[float, tuple[float, ...]]] = {}
    proposals: dict[Indices, Proposal] = {}
    measured: dict[Indices, Proposal] = {}
    limit = costs.limit("latency")
    measure = measure if math.isfinite(limit) else None
    for round_ in range(1, settings.rounds + 1):
        try:
            proposed = propose(supernet, costs, settings, learned=learned, seed=seed)
        except LimitError:
            if not measured:
                raise
            break  # no network keeps the limit by the corrected costs: choose among the measured
        for done, (indices, log_p) in enumerate(proposed):
            if indices not in scores:
                value, parts = score(indices)
                # A network whose loss is not finite comes last, and says nothing about others.
                scores[indices] = (value, parts) if math.isfinite(value) else (-math.inf, ())
            progress(done + 1, len(proposed))
            proposals[indices] = Proposal(
                indices, log_p, tuple(costs.of(indices)), *scores[indices]
            )
        # Scores are noisy, and α is evidence too (`beliefs`), unless α never learned: then log p
        # is the noise of its initialisation.
        believed = (
            beliefs(list(proposals.values()))
            if learned
            else {i: p.score for i, p in proposals.items()}
        )
        ranked = sorted((proposals[i] for i, _ in proposed), key=lambda p: -believed[p.indices])
        if measure is None:
            return Choice(ranked[0], tuple(proposals.values()), costs, round_)
        # The prediction is a sum of blocks; the device measures the network as a whole.
        best = ranked[: settings.measure_best]
        now = [
            replace(p, measured_ms=ms, noise=noise)
            for p, (ms, noise) in zip(best, measure([p.indices for p in best]), strict=True)
        ]
        measured |= {p.indices: p for p in now}
        ratio = _ratio(now, costs.index("latency"))
        close = abs(ratio - 1) <= TOLERANCE
        # With a true cost model, further rounds would propose the same networks.
        if round_ == settings.rounds or (close and any(_kept(p, limit) for p in now)):
            break
        costs = costs.scaled("latency", ratio)
    # Of the measured networks of all rounds: the best within the limit, or else the fastest.
    keeping = [p for p in measured.values() if _kept(p, limit)]
    if keeping:
        chosen = max(keeping, key=lambda p: believed[p.indices])
    else:
        chosen = min(measured.values(), key=lambda p: p.measured_ms or 0.0)
    return Choice(chosen, tuple((proposals | measured).values()), costs, round_)


def beliefs(proposals: Sequence[Proposal]) -> dict[Indices, float]:
    """The expected score of each network without its noise, given its score and its log p.

    The scores of the most probable networks differ by less than their noise, while α has learned
    from thousands of batches. So (empirical Bayes) a line in log p is the prior, and a score's
    deviation from the line counts as far as such deviations exceed the noise. Where log p does
    not predict the scores, or the noise is small, the order is that of the scores.
    """
    failed = {p.indices: p.score for p in proposals if not math.isfinite(p.score)}
    proposals = [p for p in proposals if p.indices not in failed]
    if not proposals:
        return failed
    score, log_p = np.array([(p.score, p.log_p) for p in proposals]).T
    prior = np.full(len(proposals), score.mean())
    centred = log_p - log_p.mean()
    # Least squares; a falling line would hold α's order against it, and is taken as flat.
    if len(proposals) > 2 and np.ptp(log_p) > 1e-9:
        prior += max(0.0, float(centred @ score / (centred @ centred))) * centred
    rest = score - prior
    spread = float(rest @ rest) / max(1, len(proposals) - 2)
    believed = prior + _trust(_noise([p.parts for p in proposals]), spread) * rest
    return failed | dict(zip([p.indices for p in proposals], believed.tolist(), strict=True))


def _noise(parts: Sequence[Sequence[float]]) -> float:
    """The variance of a score. parts: [networks, batches]; 0 with fewer than two batches."""
    # All networks see the same images, so by chance alone their scores differ by less. But with
    # inherited weights they also differ from what training would make of them, by about as much
    # again: on NAS-Bench-Macro choices by the smaller, paired variance were worse (docs/log.md).
    scores = np.array(parts, dtype=np.float64)
    if scores.ndim < 2 or scores.shape[1] < 2:
        return 0.0
    return float(scores.var(1, ddof=1).mean() / scores.shape[1])


def _kept(proposal: Proposal, limit: float) -> bool:
    """Whether the measured latency keeps the limit, as far as measuring can tell."""
    assert proposal.measured_ms is not None
    return proposal.measured_ms <= limit * (1 + max(TOLERANCE, proposal.noise))


def _ratio(measured: Sequence[Proposal], latency: int) -> float:
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


def propose(
    supernet: Supernet, costs: Costs, settings: DeriveSettings, *, learned: bool, seed: int
) -> list[tuple[Indices, float]]:
    """Up to `top_k` networks within the limits, with their Σ log p, the most probable first.

    They use at least the share `settings.min_limit_share` of a latency limit where such networks
    exist, and up to 0.9 of the limit of another cost that is the only one.

    Raises:
        LimitError: no network keeps the limits.
    """
    # Whoever allows 12 ms is served best by a network that takes them. A count is no deadline to
    # come close to, but worth using too: on NAS-Bench-Macro the most probable networks far under
    # a limit of MACs are truly worse than those near it (docs/log.md).
    log_p = supernet.log_probabilities()
    found: list[Indices] = []
    used, share = to_be_used(supernet, costs), settings.min_limit_share
    # A single network near a latency limit is worth more than ten that leave a tenth of it.
    enough = 1 if used == "latency" else settings.top_k
    shares = (share, 0.9 * share, 0.0) if used == "latency" else (min(share, USE_COUNT), 0.0)
    for share in shares if used else (0.0,):
        bounded = _at_least(costs, used, share)
        stream = (
            decode(log_p, supernet.mask, bounded) if learned else _uniform(supernet, bounded, seed)
        )
        found = list(itertools.islice(stream, settings.top_k))
        if len(found) >= enough:
            break
    if not found:
        costs.check_reachable(supernet.mask)
        raise LimitError(
            "no network of this space keeps all limits at once: "
            + ", ".join(f"{n} {v:g}" for n, v in zip(costs.names, costs.limits, strict=True))
        )
    return [(i, math.fsum(float(log_p[m, j]) for m, j in enumerate(i))) for i in found]


def to_be_used(supernet: Supernet, costs: Costs) -> str:
    """The name of the cost whose limit a network should come near: latency, or the only one.

    Empty where no cost has a limit, several do, or the limit excludes no network.
    """
    limited = [n for n, v in zip(costs.names, costs.limits.tolist(), strict=True) if v < math.inf]
    if "latency" in limited:
        return "latency"
    if len(limited) != 1:
        return ""
    k = costs.index(limited[0])
    return limited[0] if float(costs.limits[k]) < costs.range(supernet.mask)[k][1] else ""


def _at_least(costs: Costs, name: str, share: float) -> Costs:
    """The costs under one limit more: at least `share` of the limit of a cost is used."""
    # cost ≥ share·limit is −cost ≤ −share·limit, so the decode needs upper limits alone.
    if not share:
        return costs
    k = costs.index(name)
    left = Costs.one(
        f"{name} left",
        -costs.per_candidate[k],
        fixed=-float(costs.fixed[k]),
        limit=-share * float(costs.limits[k]),
        unit=costs.units[k],
    )
    return Costs.join(costs, left)


def _uniform(supernet: Supernet, costs: Costs, seed: int) -> Iterator[Indices]:
    """Distinct random networks within the limits, uniform ones as long as draws find them."""
    # Under a tight limit rejection finds too few; decoding random probabilities then finds
    # networks that are no longer uniform, but within the limits.
    generator = torch.Generator().manual_seed(seed)
    yielded: set[Indices] = set()
    decoded = (
        next(decode(torch.randn(supernet.mask.shape, generator=generator).double(), *rest), None)
        for rest in itertools.repeat((supernet.mask, costs), ATTEMPTS)
    )
    drawn = sample_within(supernet.mask, costs, generator)
    for indices in itertools.chain(drawn, itertools.takewhile(bool, decoded)):
        if indices is not None and indices not in yielded:
            yielded.add(indices)
            yield indices
