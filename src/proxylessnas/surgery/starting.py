"""Where the choice under a limit begins: networks that keep it by the cost model.

Decoding needs costs that add up over the choices, and those of a trained model's space do not: a
layer is narrowed at both of its ends, and may be of low rank besides. They add up around a network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Indices, decode
from proxylessnas.pretrained.candidates import SHARES
from proxylessnas.selection.choose import ScoreFunction
from proxylessnas.surgery.around import Around
from proxylessnas.surgery.candidates import LEFT_OUT
from proxylessnas.surgery.cost_model import CostModel
from proxylessnas.surgery.space import Space

SETTLING = 12  # networks that costs are taken around, at most


@dataclass(frozen=True, eq=False)
class Prices:
    """The cost model under a limit, corrected."""

    model: CostModel
    limit: float
    correction: float

    def of(self, indices: Indices) -> float:
        """ms of a network."""
        return self.correction * self.model.of(indices)

    def keep(self, indices: Indices) -> bool:
        """Whether a network keeps the limit by them."""
        return self.of(indices) <= self.limit

    def around(self, indices: Indices) -> Costs:
        """What candidates cost around a network, under the limit."""
        costs = self.model.around(indices).scaled("latency", self.correction)
        return costs.limited({"latency": self.limit})


def first_correction(space: Around, limit: float) -> float:
    """1, or less where the cost model denies what was measured.

    The sum of small layers may be far off, and the smallest network is known to keep the limit.
    """
    least = space.cost_model.of(space.space.smallest)
    return 1.0 if least <= limit else 0.99 * min(limit, space.latencies.least_ms) / least


def settled(prices: Prices, space: Space) -> Indices:
    """The most probable network that keeps the limit by these prices, or near it.

    Costs that add up hold around one network. So they are taken around the one that the last ones
    chose, half and half with these, until a network is chosen again.
    """
    log_p = space.log_probabilities()

    def probability(indices: Indices) -> float:
        return sum(float(log_p[m, j]) for m, j in enumerate(indices))

    alike = map(space.nearest, (1.0, *SHARES))
    best = next((n for n in alike if prices.keep(n) and n in space), space.smallest)
    costs, seen = prices.around(best), {best}
    for _ in range(SETTLING):
        chosen = next(decode(log_p, space.mask, costs), None)
        if chosen is None:
            break
        if prices.keep(chosen) and probability(chosen) > probability(best):
            best = chosen
        if chosen in seen:
            break
        seen.add(chosen)
        here = prices.around(chosen)
        costs = replace(costs, per_candidate=(costs.per_candidate + here.per_candidate) / 2)
    return best


def start(prices: Prices, whole: Space, score: ScoreFunction) -> Indices:
    """The best by its outputs of the most probable networks with and without some candidates.

    What blocks are worth depends on what the others have become, so that a sum over them may miss
    the better half of the space: each kind of candidates is once not offered, and then each block
    once not left out.
    """

    def value(indices: Indices) -> float:
        return score(indices)[0]

    def best(offered: Iterable[Space]) -> Indices:
        networks = sorted({settled(prices, some) for some in offered})
        return max(filter(prices.keep, networks), key=value, default=whole.smallest)

    first = best([whole, *(whole.offering(whole.kinds - {kind}) for kind in whole.kinds)])
    left_out = [m for m, name in enumerate(whole.chosen(first).values()) if name == LEFT_OUT]
    second = best([whole.without(m, first[m]) for m in left_out])
    return max((first, second), key=value)
