"""Which networks are looked at first: the most probable within the limits, or uniform ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from proxylessnas.config import DeriveSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Choices, Indices, decode
from proxylessnas.errors import LimitError

# Shares of a limit of MACs or parameters that networks use at least, from any to nearly all of it:
# how much is best used the scores say, so each share has its proposals.
SPREAD = (0.0, 1 / 2, 3 / 4, 7 / 8, 15 / 16)
ATTEMPTS = 100  # random decodes, some of them repeats, where uniform draws do not suffice


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
        networks = drawn.T.numpy()
        yield from map(tuple, networks[costs.within(networks)].tolist())
