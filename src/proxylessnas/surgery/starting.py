"""Where the choice under a limit begins: networks that keep it by the cost model.

Decoding needs costs that add up over the choices, and those of a trained model's space do not: a
layer is narrowed at both of its ends, and may be of low rank besides. They add up around a network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Indices, decode
from proxylessnas.pretrained.candidates import SHARES
from proxylessnas.selection.choose import ScoreFunction
from proxylessnas.surgery.around import Around
from proxylessnas.surgery.candidates import KINDS, LEFT_OUT
from proxylessnas.surgery.latency import CostModel
from proxylessnas.surgery.space import Space

SETTLING = 12  # networks that costs are taken around, at most


def costs_around(model: CostModel, limit: float, correction: float, indices: Indices) -> Costs:
    """What candidates cost around a network, corrected, under the limit."""
    return model.around(indices).scaled("latency", correction).limited({"latency": limit})


def first_correction(space: Around, limit: float) -> float:
    """1, or less where the cost model denies what was measured.

    The sum of small layers may be far off, and the smallest network is known to keep the limit.
    """
    least = space.cost_model.of(space.space.smallest)
    return 1.0 if least <= limit else 0.99 * min(limit, space.latencies.least_ms) / least


def settled(model: CostModel, space: Space, limit: float, correction: float) -> Indices:
    """The most probable network that keeps the limit by the corrected cost model, or near it.

    Costs that add up hold around one network. So they are taken around the one that the last ones
    chose, half and half with these, until a network is chosen again.
    """
    log_p = space.log_probabilities()

    def keeps_limit(indices: Indices) -> bool:
        return correction * model.of(indices) <= limit

    def probability(indices: Indices) -> float:
        return sum(float(log_p[m, j]) for m, j in enumerate(indices))

    alike = map(space.nearest, (1.0, *SHARES))
    best = next((n for n in alike if keeps_limit(n) and n in space), space.smallest)
    costs, seen = costs_around(model, limit, correction, best), {best}
    for _ in range(SETTLING):
        chosen = next(decode(log_p, space.mask, costs), None)
        if chosen is None:
            break
        if keeps_limit(chosen) and probability(chosen) > probability(best):
            best = chosen
        if chosen in seen:
            break
        seen.add(chosen)
        here = costs_around(model, limit, correction, chosen)
        costs = replace(costs, per_candidate=(costs.per_candidate + here.per_candidate) / 2)
    return best


def start(space: Around, limit: float, correction: float, score: ScoreFunction) -> Indices:
    """The best by its outputs of the most probable networks with and without some candidates.

    What blocks are worth depends on what the others have become, so that a sum over them may miss
    the better half of the space: each kind of candidates is once not offered, and then each block
    once not left out.
    """
    whole, model = space.space, space.cost_model

    def best(offered: Iterable[Space]) -> Indices:
        networks = {settled(model, some, limit, correction) for some in offered}
        fits = [n for n in networks if correction * model.of(n) <= limit]
        return max(sorted(fits) or [whole.smallest], key=lambda n: score(n)[0])

    first = best([whole, *(whole.offering({*KINDS} - {kind}) for kind in KINDS)])
    left_out = [m for m, name in enumerate(whole.chosen(first).values()) if name == LEFT_OUT]
    second = best([whole.without(m, first[m]) for m in left_out])
    return max((first, second), key=lambda n: score(n)[0])
