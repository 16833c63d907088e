"""From a few scored networks to better ones: predict, take the optimum, score it, repeat.

The most probable networks are the best by a sum over the choices, which is all that α can say. A
predictor fitted to scores knows pairs as well. Its optimum within the limits is scored next, and
where the predictor was wrong it learns: what remains to be found is what nothing known speaks for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Choices, Indices, decode
from proxylessnas.selection.predictor import Array, Networks, Predictor

ENUMERATED = 50_000  # networks of a space that are all looked at; of a larger one, those decoded
REFITS = 16  # how many times the predictor is fitted on the way, about

Score = tuple[float, tuple[float, ...]]  # of a network, and of its single batches
# What was believed of networks before any score, such as Σ log p.
Prior = Callable[[Networks], Array]
# The networks within the limits that might be scored next: given the predictor, the best of those
# that were taken, and all of these.
Pool = Callable[[Predictor, Indices, Collection[Indices]], Networks]


def explore(
    names: Sequence[Sequence[str]],
    start: Sequence[Indices],
    pool: Pool,
    *,
    score: Callable[[Indices], Score],
    scores: dict[Indices, Score],
    count: int,
    prior: Prior | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Indices]:
    """Score the networks of `start`, and then predicted ones, `count` networks in all.

    names: of the candidates of every choice. scores: what is known, also of networks elsewhere;
    every new one is added. prior: of networks, see `Predictor.fit`. progress: called with (networks
    done, `count`).

    Returns the networks of `start` and the predicted ones, known ones included.
    """
    taken: list[Indices] = []

    def take(network: Indices) -> None:
        if network not in scores:
            scores[network] = score(network)
        taken.append(network)
        progress(len(taken), count)

    for network in start[:count]:
        take(network)
    while len(taken) < count:
        finite = known(scores)
        if not finite:
            break
        predictor = predictor_of(names, scores, prior)
        already = set(taken)
        # Networks that are known besides may be outside of the limits.
        around = [network for network in finite if network in already] or finite
        best = around[int(np.argmax(predictor(around, _prior(prior, around))[0]))]
        left = sorted(set(map(tuple, pool(predictor, best, already).tolist())) - already)
        if not left:
            break
        mean, deviation = predictor(left, _prior(prior, left))
        # What is promising, or not known: one deviation above what is expected.
        order = np.argsort(-hopes(mean, deviation), kind="stable")
        for i in order[: min(batch_of(count), count - len(taken))].tolist():
            take(left[i])
    return taken


def hopes(mean: Array, deviation: Array) -> Array:
    """What networks may well be worth; the mean alone where nothing is known of the deviation."""
    return mean + np.where(np.isfinite(deviation), deviation, 0.0)


def known(scores: dict[Indices, Score]) -> list[Indices]:
    """The networks whose score is a number."""
    return [network for network, (value, _) in scores.items() if math.isfinite(value)]


def predictor_of(
    names: Sequence[Sequence[str]],
    scores: dict[Indices, Score],
    prior: Prior | None = None,
) -> Predictor:
    """The predictor of these scores, some of which are numbers."""
    networks = known(scores)
    return Predictor.fit(
        names,
        networks,
        [scores[n][0] for n in networks],
        prior=_prior(prior, networks),
        noise=sampling_noise([scores[n][1] for n in networks]),
    )


def sampling_noise(batch_scores: Sequence[Sequence[float]]) -> float:
    """The variance of a score, of [networks, batches]; 0 with fewer than two batches."""
    # All networks see the same images, so by chance alone their scores differ by less. But with
    # inherited weights they also differ from what training would make of them, by about as much
    # again: by the smaller, paired variance choices were worse on NAS-Bench-201, and on
    # NAS-Bench-Macro worse by accuracies and no different by losses (docs/log.md).
    if len({len(batches) for batches in batch_scores}) != 1 or len(batch_scores[0]) < 2:
        return 0.0
    scores = np.array(batch_scores, dtype=np.float64)
    return float(scores.var(1, ddof=1).mean() / scores.shape[1])


def _prior(prior: Prior | None, networks: Sequence[Indices] | Networks) -> Array | None:
    return None if prior is None else prior(np.asarray(networks, np.int64))


# --- which networks there are ---


def sum_of(table: Tensor) -> Prior:
    """Of networks the sum of their candidates' entries. table: [choices, candidates]."""
    rows = table.double().numpy()
    return lambda networks: np.asarray(rows[np.arange(len(rows))[None], networks].sum(1), float)


def batch_of(count: int) -> int:
    """How many networks are scored between two fits, of `count` in all."""
    return max(1, count // REFITS)


def pool_of(space: Choices, costs: Costs, count: int, prior: Prior | None = None) -> Pool:
    """The networks within the limits: all of them, or those decoded from the best so far.

    count: of new networks that are decoded.
    """
    mask = space.mask
    if math.prod(mask.sum(1).tolist()) <= ENUMERATED:
        rows = [np.flatnonzero(row).tolist() for row in mask.numpy()]
        every = np.array(list(itertools.product(*rows)), np.int64)
        every = every[costs.within(every)]
        # The others are the same as these, and cost no less.
        every = every[[space.as_it_runs(n) == n for n in map(tuple, every.tolist())]]
        return lambda *_: every
    return lambda predictor, best, taken: _decoded(
        *(space, costs, predictor, best, taken, count, prior)
    )


def _decoded(
    space: Choices,
    costs: Costs,
    predictor: Predictor,
    best: Indices,
    taken: Collection[Indices],
    count: int,
    prior: Prior | None,
) -> Networks:
    """The optima of an integer programme: what each candidate alone would change in the best."""
    # Exact where the predictor is a sum; where it is not, the next one begins at a better network.
    mask = space.mask
    choices, candidates = mask.nonzero().T.numpy()
    changed = np.repeat(np.array([best], np.int64), len(choices), 0)
    changed[np.arange(len(choices)), choices] = candidates
    gain = torch.zeros(mask.shape, dtype=torch.float64)
    gain[mask] = torch.from_numpy(predictor(changed, _prior(prior, changed))[0])
    # `decode` tells differences of 1e-6 apart, and scores differ in the third digit.
    gain = (gain - gain[mask].mean()) / max(float(gain[mask].std()), 1e-12)
    stream = (n for n in map(space.as_it_runs, decode(gain, mask, costs)) if n not in taken)
    decoded = list(itertools.islice(stream, count))
    return np.array(decoded, np.int64).reshape(-1, len(mask))
