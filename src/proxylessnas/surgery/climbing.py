"""From a network within the limit to better ones nearby, by what their outputs are.

What candidates are worth adds up over choices only nearly, the less the more is taken away: then
the most probable networks are not the best around. So a few choices at a time are moved to the next
larger or smaller candidate, as evolution does, and what is better is gone on from.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from proxylessnas.core.decode import Indices
from proxylessnas.selection.choose import ScoreFunction
from proxylessnas.surgery.space import Space
from proxylessnas.surgery.starting import Prices

COMPARED, IN_VAIN = 120, 40  # networks at most, and without one that is better
DRAWN = 4000  # also of those that do not keep the limit
MOVED = (1, 2, 2, 3)  # choices at a time


def climbed(
    begin: Indices,
    prices: Prices,
    space: Space,
    score: ScoreFunction,
    *,
    seed: int,
    progress: Callable[[int, int], None],
) -> list[Indices]:
    """Networks that all keep the limit by the prices, each better than the one before."""
    rng, levels = random.Random(seed), _levels(begin, prices, space)
    path, seen = [begin], {begin}
    best, in_vain = score(begin)[0], 0
    for _ in range(DRAWN):
        network = _moved(path[-1], levels, rng)
        if network in seen or not prices.keep(network):
            continue
        if len(seen) > COMPARED or in_vain == IN_VAIN:
            break
        seen.add(network)
        progress(len(seen) - 1, COMPARED)
        in_vain += 1
        if (value := score(network)[0]) > best:
            path.append(network)
            best, in_vain = value, 0
    return path[1:]


def _levels(near: Indices, prices: Prices, space: Space) -> list[list[int]]:
    """The candidates of every choice, from fast to slow."""
    costs = prices.around(near).per_candidate[0]
    rows = [row.nonzero()[:, 0].tolist() for row in space.mask]
    return [sorted(row, key=lambda j: float(costs[m, j])) for m, row in enumerate(rows)]


def _moved(network: Indices, levels: list[list[int]], rng: random.Random) -> Indices:
    moved = list(network)
    for m in rng.sample(range(len(moved)), min(rng.choice(MOVED), len(moved))):
        at = levels[m].index(moved[m]) + rng.choice((-1, 1))
        moved[m] = levels[m][min(max(at, 0), len(levels[m]) - 1)]
    return tuple(moved)
