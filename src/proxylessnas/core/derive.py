"""From α to one network: decode under the limits, score the best, measure the best of those.

The most probable network is rarely within a limit, so the limit enters the decode. The
supernet then says which of the K most probable networks is best, the device says whether
the cost model told the truth, and a measurement that misses corrects the model.
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
TOLERANCE = 0.02
USE_COUNT = 0.9  # of a limit of MACs or parameters, at most
ATTEMPTS = 100  # random decodes, some of them repeats, where uniform draws do not suffice


@dataclass(frozen=True)
class Proposal:
    """One network that was looked at.

    costs: predicted, in the order of the costs. score: accuracy on the validation part in
    [0, 1] (or the negative loss). parts: the same of each batch. measured_ms: on the device,
    where it came to that; noise: standard error of it, as a share of it.
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
    """The network that was chosen, all that were looked at, and the corrected costs."""

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

    score: of a network with inherited weights, higher is better; and the same of each batch, the
    same batches for all networks. What is believed of a network is what `beliefs` makes of all
    scores, if α learned.
    measure: milliseconds of some networks on the device, and the standard error as a share of
    them; None where latency has no limit.
    learned: False (the random estimator) proposes uniform networks instead of probable ones.

    Raises:
        LimitError: no network of the space keeps the limits.
    """
    scores: dict[Indices, tuple[float, tuple[float, ...]]] = {}
    seen: dict[Indices, Proposal] = {}
    measured: dict[Indices, Proposal] = {}
    limit = costs.limit("latency")
    measure = measure if math.isfinite(limit) else None
    for round_ in range(1, settings.rounds + 1):
        try:
            proposed = propose(supernet, costs, settings, learned=learned, seed=seed)
        except LimitError:
            if not measured:
                raise
            break  # the corrected costs leave nothing within the limit: take what was measured
        for done, (indices, log_p) in enumerate(proposed):
            if indices not in scores:
                value, parts = score(indices)
                # A network whose loss is no number is worth nothing, and says nothing of others.
                scores[indices] = (value, parts) if math.isfinite(value) else (-math.inf, ())
            progress(done + 1, len(proposed))
            seen[indices] = Proposal(indices, log_p, tuple(costs.of(indices)), *scores[indices])
        # Where α never learned, log p is the noise it began with.
        believed = (
            beliefs(list(seen.values())) if learned else {i: p.score for i, p in seen.items()}
        )
        ranked = sorted((seen[i] for i, _ in proposed), key=lambda p: -believed[p.indices])
        if measure is None:
            return Choice(ranked[0], tuple(seen.values()), costs, round_)
        best = ranked[: settings.measure_best]
        now = [
            replace(p, measured_ms=ms, noise=noise)
            for p, (ms, noise) in zip(best, measure([p.indices for p in best]), strict=True)
        ]
        measured |= {p.indices: p for p in now}
        ratio = _ratio(now, costs.index("latency"))
        close = abs(ratio - 1) <= TOLERANCE
        if round_ == settings.rounds or (close and any(_kept(p, limit) for p in now)):
            break
        costs = costs.scaled("latency", ratio)
    # Whatever round measured it: the best that keeps the limit, or else the fastest.
    keeping = [p for p in measured.values() if _kept(p, limit)]
    if keeping:
        chosen = max(keeping, key=lambda p: believed[p.indices])
    else:
        chosen = min(measured.values(), key=lambda p: p.measured_ms or 0.0)
    return Choice(chosen, tuple((seen | measured).values()), costs, round_)


def beliefs(proposals: Sequence[Proposal]) -> dict[Indices, float]:
    """What a network's score is expected to be without its noise, given its log p as well.

    The scores of the most probable networks differ by less than their own noise, while α has
    seen thousands of batches. So (empirical Bayes) a line in log p is the prior; what scores
    deviate from it beyond their noise is believed, the rest is not. Where log p says nothing
    of the scores, or the noise is small, the order is that of the scores.
    """
    failed = {p.indices: p.score for p in proposals if not math.isfinite(p.score)}
    proposals = [p for p in proposals if p.indices not in failed]
    if not proposals:
        return failed
    score, log_p = np.array([(p.score, p.log_p) for p in proposals]).T
    prior = np.full(len(proposals), score.mean())
    centred = log_p - log_p.mean()
    if len(proposals) > 2 and np.ptp(log_p) > 1e-9:
        prior += max(0.0, float(centred @ score / (centred @ centred))) * centred
    rest = score - prior
    spread = float(rest @ rest) / max(1, len(proposals) - 2)
    believed = prior + _trust(_noise([p.parts for p in proposals]), spread) * rest
    return failed | dict(zip([p.indices for p in proposals], believed.tolist(), strict=True))


def _noise(parts: Sequence[Sequence[float]]) -> float:
    """The variance of a score, of [networks, batches]; 0 where that cannot be told.

    All networks see the same images, so by chance alone their scores differ by less. But with
    inherited weights they also differ from what training would make of them, by about as much
    again: on NAS-Bench-Macro choices by the smaller, paired variance were worse (`docs/log.md`).
    """
    seen = np.array(parts, dtype=np.float64)
    if seen.ndim < 2 or seen.shape[1] < 2:
        return 0.0
    return float(seen.var(1, ddof=1).mean() / seen.shape[1])


def _kept(proposal: Proposal, limit: float) -> bool:
    assert proposal.measured_ms is not None
    return proposal.measured_ms <= limit * (1 + max(TOLERANCE, proposal.noise))


def _ratio(measured: Sequence[Proposal], latency: int) -> float:
    """Measured over predicted, the median over the networks measured, as far as it is believed.

    As with scores: what a ratio deviates from 1 within its noise says nothing, and a cost model
    corrected by it would be made worse (the positive-part James-Stein estimate of one mean).
    """
    ratios = sorted(((p.measured_ms or 0.0) / p.costs[latency], p.noise) for p in measured)
    ratio, noise = ratios[len(ratios) // 2]
    return 1 + _trust(noise**2, (ratio - 1) ** 2) * (ratio - 1)


def _trust(noise: float, seen: float) -> float:
    """The share of what was seen that is no noise; both are variances."""
    return 1 - noise / seen if seen > noise else 0.0


def propose(
    supernet: Supernet, costs: Costs, settings: DeriveSettings, *, learned: bool, seed: int
) -> list[tuple[Indices, float]]:
    """Up to `top_k` networks within the limits, with their Σ log p.

    They use at least the share `settings.min_limit_share` of a latency limit where such networks
    exist: who grants 12 ms is served best by a network that takes them. The only limit of another
    cost is no deadline to come close to, but what it allows is worth having too: 0.9 of it
    (the most probable networks far under it are worse on NAS-Bench-Macro, see `docs/log.md`).

    Raises:
        LimitError: there is none.
    """
    log_p = supernet.log_probabilities()
    found: list[Indices] = []
    used, share = to_be_used(supernet, costs), settings.min_limit_share
    # Of a latency even one network that takes it is worth more than ten that leave a tenth.
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
    """The cost that a network should come near the limit of: latency, or else the only one.

    "" where there is none, several compete, or the limit excludes nothing.
    """
    limited = [n for n, v in zip(costs.names, costs.limits.tolist(), strict=True) if v < math.inf]
    if "latency" in limited:
        return "latency"
    if len(limited) != 1:
        return ""
    k = costs.index(limited[0])
    return limited[0] if float(costs.limits[k]) < costs.range(supernet.mask)[k][1] else ""


def _at_least(costs: Costs, name: str, share: float) -> Costs:
    """Costs with one more cost: minus the named one, limited to minus a share of its limit."""
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
    """Distinct uniform networks within the limits.

    Where uniform draws do not find enough of them, decoding random probabilities does: no
    longer uniform, but within the limits.
    """
    generator = torch.Generator().manual_seed(seed)
    seen: set[Indices] = set()
    decoded = (
        next(decode(torch.randn(supernet.mask.shape, generator=generator).double(), *rest), None)
        for rest in itertools.repeat((supernet.mask, costs), ATTEMPTS)
    )
    drawn = sample_within(supernet.mask, costs, generator)
    for indices in itertools.chain(drawn, itertools.takewhile(bool, decoded)):
        if indices is not None and indices not in seen:
            seen.add(indices)
            yield indices
