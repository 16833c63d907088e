"""The most probable networks within the limits, by integer programming.

The paper keeps the most probable candidate of each mixed operation. That network is rarely
within a limit, so the limit enters the choice: maximise Σ log p subject to Σ cost ≤ limit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import scipy.optimize
import scipy.sparse
import torch
from torch import Tensor

from proxylessnas.config import DeriveSettings
from proxylessnas.core.costs import Costs
from proxylessnas.errors import LimitError

Indices = tuple[int, ...]  # of one candidate for every choice
# Shares of a limit of MACs or parameters that networks use at least, from any to nearly all of it:
# how much is best used the scores say, so each share has its proposals.
SPREAD = (0.0, 1 / 2, 3 / 4, 7 / 8, 15 / 16)
ATTEMPTS = 100  # random decodes, some of them repeats, where uniform draws do not suffice


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


# --- proposals ---


def propose(
    space: Choices,
    costs: Costs,
    settings: DeriveSettings,
    *,
    learned: bool,
    seed: int,
    count: int | None = None,
) -> list[tuple[Indices, float]]:
    """Networks within the limits, with their Σ log p, the most probable first.

    They use at least the share `settings.min_limit_share` of a latency limit where such networks
    exist; of the limit of another cost that is the only one, shares that are spread.

    count: how many there are at most; default: `settings.top_k`.

    Raises:
        LimitError: no network keeps the limits.
    """
    log_p = space.log_probabilities()
    streams = [
        decode(log_p, space.mask, costs) if learned else _uniform(space, costs, seed)
        for costs in used_costs(space, costs, settings)
    ]
    networks = list(itertools.islice(_in_turn(space, streams), count or settings.top_k))
    if not networks:
        costs.check_reachable(space.mask)
        units = dict(zip(costs.names, costs.units, strict=True))
        named = [f"{name} {v:g} {units[name]}".strip() for name, v in costs.finite_limits.items()]
        raise LimitError(f"no network of this space keeps all limits at once: {', '.join(named)}")
    rows = [(i, math.fsum(float(log_p[m, j]) for m, j in enumerate(i))) for i in networks]
    return sorted(rows, key=lambda row: -row[1]) if learned else rows


def _in_turn(space: Choices, streams: Sequence[Iterator[Indices]]) -> Iterator[Indices]:
    """One new network of each stream after the other, until all have ended.

    As it runs: without what has no effect a network is the same, and costs no more.
    """
    left, yielded = [map(space.as_it_runs, stream) for stream in streams], set[Indices]()
    while left:
        for stream in list(left):
            network = next((i for i in stream if i not in yielded), None)
            if network is None:
                left.remove(stream)
            else:
                yielded.add(network)
                yield network


def used_costs(space: Choices, costs: Costs, settings: DeriveSettings) -> list[Costs]:
    """The limits, and how much of them a network has to use; the loosest first.

    Whoever allows 12 ms is served best by a network that takes them: where there is one, it uses
    the share `settings.min_limit_share`. A count is no deadline to come close to.
    """
    used, share = binding_cost(space, costs), settings.min_limit_share
    if used != "latency":
        return [_at_least(costs, used, s) for s in (SPREAD if used and share else SPREAD[:1])]
    # A single network near a latency limit is worth more than ten that leave a tenth of it.
    flat = torch.zeros(space.mask.shape, dtype=torch.float64)
    for least in (share, 0.9 * share):
        bounded = _at_least(costs, used, least)
        if next(decode(flat, space.mask, bounded), None) is not None:
            return [bounded]
    return [costs]


def binding_cost(space: Choices, costs: Costs) -> str:
    """The name of the cost whose limit a network should come near: latency, or the only one.

    Empty where no cost has a limit, several do, or the limit excludes no network.
    """
    limits = costs.finite_limits
    if "latency" in limits:
        return "latency"
    if len(limits) != 1:
        return ""
    (name, limit) = next(iter(limits.items()))
    return name if limit < costs.range(space.mask)[costs.index(name)][1] else ""


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


def _uniform(space: Choices, costs: Costs, seed: int) -> Iterator[Indices]:
    """Distinct random networks within the limits, uniform ones as long as draws find them."""
    # Under a tight limit rejection finds too few; decoding random probabilities then finds
    # networks that are no longer uniform, but within the limits.
    generator = torch.Generator().manual_seed(seed)
    yielded: set[Indices] = set()
    decoded = (
        next(decode(torch.randn(space.mask.shape, generator=generator).double(), *rest), None)
        for rest in itertools.repeat((space.mask, costs), ATTEMPTS)
    )
    drawn = sample_within(space.mask, costs, generator)
    for indices in itertools.chain(drawn, itertools.takewhile(bool, decoded)):
        if indices is not None and indices not in yielded:
            yielded.add(indices)
            yield indices


def sample_within(
    mask: Tensor, costs: Costs, generator: torch.Generator, *, draws: int = 200_000
) -> Iterator[Indices]:
    """Uniform networks among those within the limits, by rejection; repeats are possible.

    mask: [choices, candidates], True where a candidate may be chosen. draws: the networks that
    are looked at; where few of the space keep the limits, few or none are yielded.
    """
    chunk = 5_000  # networks drawn at once: a matrix, not a loop
    for _ in range(draws // chunk):
        drawn = torch.multinomial(mask.double(), chunk, replacement=True, generator=generator)
        picked = drawn.expand(len(costs.names), *drawn.shape)
        sums = costs.per_candidate.gather(2, picked).sum(1) + costs.fixed[:, None]
        within = (sums <= costs.limits[:, None]).all(0).nonzero()[:, 0]
        for column in within.tolist():
            yield tuple(drawn[:, column].tolist())
