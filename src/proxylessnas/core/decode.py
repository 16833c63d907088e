"""The most probable networks within the limits, by integer programming.

The paper keeps the most probable candidate of each mixed operation. That network is rarely
within a limit, so the limit enters the choice: maximise Σ log p subject to Σ cost ≤ limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import scipy.optimize
import scipy.sparse
from torch import Tensor

from proxylessnas.core.costs import Costs
from proxylessnas.io.native import native_away

Indices = tuple[int, ...]  # of one candidate for every choice


class Choices(Protocol):
    """What is decoded: a `Supernet`, or a space whose networks are made another way.

    candidates: names, of every choice. mask: [choices, candidates], True where there is one.
    """

    @property
    def candidates(self) -> tuple[tuple[str, ...], ...]: ...

    @property
    def mask(self) -> Tensor: ...

    def log_probabilities(self) -> Tensor:
        """log p of every candidate, shaped as the mask; -inf at pads."""
        ...

    def as_it_runs(self, indices: Sequence[int]) -> Indices:
        """The network of the same function of which every candidate matters."""
        ...


def decode(log_p: Tensor, mask: Tensor, costs: Costs) -> Iterator[Indices]:
    """The networks within the limits, the most probable first.

    Each maximises Σ log p exactly among the networks that were not yielded before. Among equals
    the earlier candidates come first.

    log_p: [choices, candidates], finite where `mask` is True. A network is the index of one
    candidate for every choice.

    >>> import torch
    >>> p = torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    >>> macs = Costs.one("macs", torch.tensor([[5.0, 1.0], [4.0, 2.0]]), limit=7.0)
    >>> list(decode(p.log(), p > 0, macs))
    [(0, 1), (1, 0), (1, 1)]
    """
    # A multiple-choice knapsack with one 0/1 variable for every candidate that may be chosen.
    where = mask.nonzero().tolist()
    # The share of ties: far under any difference in log p that a search can mean, and
    # scaled with it over the solver's absolute gap, 1e-6, which scipy does not let us set.
    order = np.array([j for _, j in where]) * 1e-9
    score = 1e4 * (np.array([float(log_p[m, j]) for m, j in where]) - order)
    constraints, limits = _constraints(where, costs), costs.limits.tolist()
    cuts: list[np.ndarray] = []
    while True:
        chosen = _solve(score, constraints, cuts, len(mask))
        if chosen is None:
            return
        # A no-good cut: of this network's candidates not all may be chosen again.
        cuts.append(chosen)
        indices = tuple(where[i][1] for i in np.flatnonzero(chosen))
        # The solver keeps a limit to its tolerance only; the sum of the costs decides.
        if all(cost <= limit for cost, limit in zip(costs.of(indices), limits, strict=True)):
            yield indices


def _constraints(
    where: Sequence[tuple[int, int]], costs: Costs
) -> list[scipy.optimize.LinearConstraint]:
    """One candidate a choice, and every limit at once. where: (choice, candidate) a variable."""
    choices, size = [m for m, _ in where], len(where)
    # Σ over the candidates of a choice = 1: each choice takes one candidate.
    one_each = scipy.sparse.csr_array((np.ones(size), (choices, np.arange(size))))
    constraints = [scipy.optimize.LinearConstraint(one_each, 1, 1)]
    for k, limit in enumerate(costs.limits.tolist()):
        if math.isfinite(limit):
            # In shares of the limit: the solver's tolerances are absolute, and MACs are millions.
            scale = abs(limit) or 1.0
            row = np.array([float(costs.per_candidate[k, m, j]) for m, j in where]) / scale
            room = (limit - float(costs.fixed[k])) / scale
            constraints.append(scipy.optimize.LinearConstraint(row[None], -np.inf, room))
    return constraints


def _solve(
    score: np.ndarray,
    constraints: list[scipy.optimize.LinearConstraint],
    cuts: list[np.ndarray],
    count: int,
) -> np.ndarray | None:
    """The best 0/1 vector, or None where no other exists."""
    cut = [scipy.optimize.LinearConstraint(np.array(cuts), -np.inf, count - 1)] if cuts else []
    with native_away(1):  # HiGHS leaves a line of its debugging there, now and then
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
