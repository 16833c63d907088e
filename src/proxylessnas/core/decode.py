"""The most probable networks within the limits, by integer programming.

The paper keeps the most probable candidate of each mixed operation. That network is rarely
within a limit, so the limit enters the choice: maximise Σ log p subject to Σ cost ≤ limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import scipy.optimize
import scipy.sparse
import torch
from torch import Tensor

from proxylessnas.core.costs import Costs


def sample_within(
    mask: Tensor, costs: Costs, generator: torch.Generator, *, draws: int = 200_000
) -> Iterator[tuple[int, ...]]:
    """Uniform networks among those within the limits, by rejection; repeats are possible.

    mask: [choices, candidates], True where a candidate may be chosen. draws: the networks that
    are looked at; where few of the space keep the limits, few or none are yielded.
    """
    chunk = 5_000  # networks drawn at once: a matrix, not a loop
    for _ in range(draws // chunk):
        drawn = torch.multinomial(mask.double(), chunk, replacement=True, generator=generator)
        picked = drawn.expand(len(costs.names), *drawn.shape)
        sums = costs.per_candidate.gather(2, picked).sum(1) + costs.fixed[:, None]
        kept = (sums <= costs.limits[:, None]).all(0).nonzero()[:, 0]
        for column in kept.tolist():
            yield tuple(drawn[:, column].tolist())


def decode(log_p: Tensor, mask: Tensor, costs: Costs) -> Iterator[tuple[int, ...]]:
    """The networks within the limits, the most probable first.

    Each maximises Σ log p exactly among the networks that were not yielded before. Among equals
    the earlier candidates come first.

    log_p: [choices, candidates], finite where `mask` is True. A network is the index of one
    candidate for every choice.

    >>> p = torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    >>> macs = Costs.one("macs", torch.tensor([[5.0, 1.0], [4.0, 2.0]]), limit=7.0)
    >>> list(decode(p.log(), p > 0, macs))
    [(0, 1), (1, 0), (1, 1)]
    """
    # A multiple-choice knapsack with one 0/1 variable for every candidate that may be chosen.
    bounded = [k for k, limit in enumerate(costs.limits.tolist()) if math.isfinite(limit)]
    limits = [float(costs.limits[k]) for k in bounded]
    where = mask.nonzero().tolist()
    rows = np.array([m for m, _ in where])
    count, size = mask.shape[0], len(where)
    # The share of ties: far under any difference in log p that a search can mean, and
    # scaled with it over the solver's absolute gap, 1e-6, which scipy does not let us set.
    order = np.array([j for _, j in where]) * 1e-9
    score = 1e4 * (np.array([float(log_p[m, j]) for m, j in where]) - order)
    # Σ over the candidates of a choice = 1: each choice takes one candidate.
    one_each = scipy.sparse.csr_array((np.ones(size), (rows, np.arange(size))))
    constraints = [scipy.optimize.LinearConstraint(one_each, 1, 1)]
    for k, limit in zip(bounded, limits, strict=True):
        # In shares of the limit: the solver's tolerances are absolute, and MACs are millions.
        scale = abs(limit) or 1.0
        scaled = np.array([float(costs.per_candidate[k, m, j]) for m, j in where]) / scale
        room = (limit - float(costs.fixed[k])) / scale
        constraints.append(scipy.optimize.LinearConstraint(scaled[None], -np.inf, room))
    cuts: list[np.ndarray] = []
    while True:
        chosen = _solve(score, constraints, cuts, count)
        if chosen is None:
            return
        # A no-good cut: of this network's candidates not all may be chosen again.
        cuts.append(chosen)
        indices = tuple(where[i][1] for i in np.flatnonzero(chosen))
        # The solver keeps a limit to its tolerance only; the sum of the costs decides.
        values = costs.of(indices)
        if all(values[k] <= limit for k, limit in zip(bounded, limits, strict=True)):
            yield indices


def _solve(
    score: np.ndarray,
    constraints: list[scipy.optimize.LinearConstraint],
    cuts: list[np.ndarray],
    count: int,
) -> np.ndarray | None:
    """The best 0/1 vector, or None where no other exists."""
    cut = [scipy.optimize.LinearConstraint(np.array(cuts), -np.inf, count - 1)] if cuts else []
    result = scipy.optimize.milp(
        -score,
        integrality=np.ones(len(score), dtype=np.int64),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=[*constraints, *cut],
        options={"mip_rel_gap": 0.0},  # proven optimal, not nearly
    )
    if result.x is None:
        return None  # infeasible: every network within the limits has been cut off
    return np.round(result.x)
