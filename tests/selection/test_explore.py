"""From a few scored networks to better ones: within the limits, each scored once."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from toys import Scale, free, priced, supernet_with

from proxylessnas.config import DeriveSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Indices, decode
from proxylessnas.core.supernet import MixedOp, Supernet
from proxylessnas.selection.choose import choose
from proxylessnas.selection.explore import Score, explore, pool_of


def space(choices: int, candidates: int) -> Supernet:
    """Nothing is more probable than anything else."""
    return supernet_with(
        nn.Sequential(*[MixedOp([Scale(1.0)] * candidates) for _ in range(choices)])
    )


def counted(supernet: Supernet, limit: float) -> Costs:
    """Candidate j costs j."""
    rows = [list(map(float, range(len(c)))) for c in supernet.candidates]
    return priced(supernet, rows).limited({"latency": limit})


def pairs_of(network: Indices) -> Score:
    """Neighbours that are equal are worth more than what is best of each alone."""
    alone = sum(network) / 100
    return alone + sum(a == b == 1 for a, b in itertools.pairwise(network)) / 10, ()


def test_an_optimum_of_pairs_is_found_where_alpha_knows_nothing() -> None:
    supernet = space(6, 3)
    costs = counted(supernet, 7.0)
    every = [n for n in itertools.product(range(3), repeat=6) if costs.of(n)[0] <= 7]
    best = max(every, key=pairs_of)
    settings = DeriveSettings(top_k=60, min_limit_share=0.0)
    choice = choose(supernet, costs, settings, score=pairs_of, learned=False, seed=1)
    assert choice.chosen.indices == best == (1,) * 6
    assert len(choice.proposals) == 60
    assert all(costs.of(p.indices)[0] <= 7 for p in choice.proposals)


def test_every_network_is_scored_once_and_known_ones_not_again() -> None:
    supernet, asked = space(4, 3), []

    def score(network: Indices) -> Score:
        asked.append(network)
        return pairs_of(network)

    scores: dict[Indices, Score] = {(0, 0, 0, 0): (0.5, ())}
    taken = explore(
        supernet.candidates,
        [(0, 0, 0, 0), (2, 1, 0, 1)],
        pool_of(supernet, free(supernet), 4),
        score=score,
        scores=scores,
        count=30,
    )
    assert len(taken) == len(set(taken)) == 30 and taken[:2] == [(0, 0, 0, 0), (2, 1, 0, 1)]
    assert len(asked) == len(set(asked)) == 29 and set(scores) == set(taken)
    assert (0, 0, 0, 0) not in asked


def test_a_small_space_ends_and_scores_that_are_no_numbers_end_nothing() -> None:
    supernet = space(2, 3)
    pool, scores = pool_of(supernet, free(supernet), 5), dict[Indices, Score]()
    score = lambda n: (-math.inf if n[0] == 1 else float(sum(n)), ())  # noqa: E731
    taken = explore(supernet.candidates, [(0, 0)], pool, score=score, scores=scores, count=99)
    assert set(taken) == set(itertools.product(range(3), repeat=2))
    nothing = dict[Indices, Score]()
    only = explore(
        *(supernet.candidates, [(0, 0)], pool),
        score=lambda _: (-math.inf, ()),
        scores=nothing,
        count=9,
    )
    assert only == [(0, 0)]


@pytest.mark.parametrize("learned", [True, False])
def test_in_a_space_too_large_to_list_the_optimum_of_a_sum_is_reached(learned: bool) -> None:
    """4^8 networks under a limit; scores are a sum, and what is found is its exact optimum."""
    supernet = space(8, 4)
    generator = np.random.default_rng(3)
    worth = generator.normal(size=(8, 4))
    costs = counted(supernet, 10.0)
    (best,) = itertools.islice(decode(torch.from_numpy(worth), supernet.mask, costs), 1)
    value = lambda n: float(worth[np.arange(8), list(n)].sum())  # noqa: E731
    settings = DeriveSettings(top_k=48, min_limit_share=0.0)
    choice = choose(
        *(supernet, costs, settings),
        score=lambda n: (value(n), ()),
        learned=learned,
    )
    assert costs.of(choice.chosen.indices)[0] <= 10
    assert value(choice.chosen.indices) == pytest.approx(value(best), rel=0.02)


def test_costs_of_many_networks_are_those_of_each() -> None:
    supernet = space(3, 3)
    costs = Costs.join(
        counted(supernet, 3.0),
        Costs.one("macs", torch.rand(3, 3, generator=torch.Generator().manual_seed(0)), limit=1.4),
    )
    every = list(itertools.product(range(3), repeat=3))
    kept = costs.within(np.array(every, np.int64))
    assert 0 < kept.sum() < 27
    assert kept.tolist() == [
        all(c <= limit for c, limit in zip(costs.of(n), costs.limits.tolist(), strict=True))
        for n in every
    ]
