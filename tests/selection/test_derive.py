"""Decode, score, measure, correct: the choice of one network from α."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from toys import Scale, free, priced, supernet_with

from proxylessnas.config import DeriveSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.supernet import MixedOp, Supernet
from proxylessnas.errors import LimitError
from proxylessnas.selection import explore
from proxylessnas.selection.choose import (
    TOLERANCE,
    Indices,
    Proposal,
    beliefs,
    choose,
    keeps,
)
from proxylessnas.selection.propose import SPREAD, propose

Scored = tuple[float, tuple[float, ...]]
Measured = list[tuple[float, float]]
COSTS = [[1.0, 2.0, 4.0]] * 3
ALL = set(itertools.product(range(3), repeat=3))


def space(alpha: list[list[float]] | None = None) -> Supernet:
    """Three operations; by default the dearer a candidate, the more probable."""
    model = nn.Sequential(*[MixedOp([Scale(1.0)] * 3) for _ in range(3)])
    return supernet_with(model, alpha or [[0.0, 0.5, 1.0], [0.0, 0.6, 1.2], [0.0, 0.7, 1.4]])


def limited(supernet: Supernet, limit: float, fixed: float = 1.0) -> Costs:
    return priced(supernet, COSTS, fixed=fixed).limited({"latency": limit})


def settings(**changes: float) -> DeriveSettings:
    return DeriveSettings(**{"top_k": 5, "measure_best": 2, **changes})  # type: ignore[arg-type]


def cost(indices: Indices) -> float:
    return 1.0 + sum(COSTS[0][i] for i in indices)


def device(
    factor: float | Callable[[Indices], float], noise: float = 0.0
) -> Callable[[Sequence[Indices]], Measured]:
    """A device that is slower than predicted by a factor, of every network or of each."""
    of = factor if callable(factor) else lambda _: factor
    return lambda networks: [(of(n) * cost(n), noise) for n in networks]


def drifting(factors: Iterator[float]) -> Callable[[Sequence[Indices]], Measured]:
    """A device that is slower by the next factor whenever it measures."""
    return lambda networks: device(next(factors))(networks)


def preferring(*best: Indices) -> Callable[[Indices], float]:
    return lambda indices: 1.0 - best.index(indices) / 100 if indices in best else 0.0


# --- proposals ---


def test_without_a_limit_the_most_probable_network_comes_first() -> None:
    supernet = space()
    proposed = propose(supernet, free(supernet), settings(), learned=True, seed=0)
    assert proposed[0][0] == supernet.indices(supernet.most_probable()) == (2, 2, 2)
    assert [p for _, p in proposed] == sorted((p for _, p in proposed), reverse=True)
    log_p = supernet.log_probabilities()
    assert proposed[1][1] == pytest.approx(sum(float(log_p[m, j]) for m, j in enumerate((1, 2, 2))))


def test_proposals_keep_the_limit_and_use_it() -> None:
    """At most 9, and networks that take nearly all of it exist: none under 98 %."""
    supernet = space()
    proposed = propose(supernet, limited(supernet, 9.0), settings(), learned=True, seed=0)
    assert {cost(i) for i, _ in proposed} == {9.0}


def test_a_limit_that_no_network_uses_up_is_kept_with_room() -> None:
    supernet = space()
    proposed = propose(supernet, limited(supernet, 100.0), settings(), learned=True, seed=0)
    assert proposed[0][0] == (2, 2, 2)


def test_the_only_limit_of_another_cost_has_proposals_of_every_share_of_it() -> None:
    """Costs from 4 to 13 under 10, and an α that prefers the cheapest."""
    supernet = supernet_with(space().model, [[1.0, 0.6, 0.0], [1.13, 0.55, 0.0], [0.9, 0.71, 0.05]])
    costs = replace(limited(supernet, 10.0), names=("macs",))
    every = propose(supernet, costs, settings(min_limit_share=0.0, top_k=40), learned=True, seed=0)
    spread = propose(supernet, costs, settings(), learned=True, seed=0)
    bests = [next((i, p) for i, p in every if cost(i) >= 10 * share) for share in SPREAD]
    assert spread[0] == every[0] and set(bests) <= set(spread) and len(spread) == 5
    assert any(cost(i) >= 9.375 for i, _ in spread)
    more = propose(supernet, costs, settings(top_k=40), learned=True, seed=0)
    assert more == every  # each once


def test_a_limit_that_excludes_nothing_leaves_the_choice_to_alpha() -> None:
    """The largest network costs 13."""
    supernet = supernet_with(space().model, [[3.0, 0.0, 0.0]] * 3)
    for limit in (13.0, 14.0, 100.0):
        costs = replace(limited(supernet, limit), names=("macs",))
        proposed = propose(supernet, costs, settings(), learned=True, seed=0)
        assert proposed[0][0] == (0, 0, 0)


def test_of_several_other_limits_none_has_to_be_used() -> None:
    """What one of them leaves over, another may forbid to take."""
    supernet = space()
    macs = replace(limited(supernet, 10.0), names=("macs",))
    two = Costs.join(macs, replace(limited(supernet, 10.1), names=("parameters",)))
    proposed = propose(supernet, two, settings(top_k=40), learned=True, seed=0)
    assert min(cost(i) for i, _ in proposed) < 9.0


def test_a_limit_out_of_reach_names_the_range() -> None:
    supernet = space()
    with pytest.raises(LimitError, match="reachable range is 4 ms to 13 ms"):
        propose(supernet, limited(supernet, 3.0), settings(), learned=True, seed=0)


def test_limits_that_exclude_each_other_are_named_together() -> None:
    supernet = Supernet(MixedOp([Scale(1.0)] * 2))
    both = Costs.join(
        Costs.one("macs", torch.tensor([[1.0, 2.0]]), limit=1.5),
        Costs.one("parameters", torch.tensor([[2.0, 1.0]]), limit=1.5),
    )
    with pytest.raises(LimitError, match=r"at once: macs 1\.5, parameters 1\.5"):
        propose(supernet, both, settings(), learned=True, seed=0)


def test_what_did_not_learn_proposes_distinct_random_networks_within_the_limit() -> None:
    supernet = space()
    costs, how = limited(supernet, 9.0), settings(min_limit_share=0.0)
    found = [
        [i for i, _ in propose(supernet, costs, how, learned=False, seed=s)] for s in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) == 5 and all(cost(i) <= 9.0 for i in found[0])


def test_random_proposals_end_when_the_space_is_small() -> None:
    supernet = space()
    proposed = propose(supernet, free(supernet), settings(top_k=40), learned=False, seed=0)
    assert {i for i, _ in proposed} == ALL and len(proposed) == 27


# --- the choice ---


def test_without_a_latency_limit_the_best_score_wins_and_nothing_is_measured() -> None:
    supernet, scored = space(), []

    def score(indices: Indices) -> Scored:
        scored.append(indices)
        return preferring((1, 2, 2))(indices), ()

    def measure(_: Sequence[Indices]) -> Measured:
        raise AssertionError("not asked for")

    choice = choose(supernet, free(supernet), settings(), score=score, measure=measure)
    assert choice.chosen.indices == (1, 2, 2) and choice.rounds == 1
    assert choice.chosen.measured_ms is None
    assert len(scored) == len(set(scored)) == len(choice.proposals) == 5


def test_among_equal_scores_the_most_probable_wins() -> None:
    supernet = space()
    choice = choose(supernet, free(supernet), settings(), score=lambda _: (0.5, ()))
    assert choice.chosen.indices == (2, 2, 2)


def test_a_true_cost_model_needs_one_round() -> None:
    supernet, measured = space(), []

    def measure(networks: Sequence[Indices]) -> Measured:
        measured.extend(networks)
        return device(0.99)(networks)

    choice = choose(
        supernet, limited(supernet, 9.0), settings(), score=lambda _: (0.0, ()), measure=measure
    )
    assert choice.rounds == 1 and len(measured) == 2
    assert choice.chosen.measured_ms == pytest.approx(0.99 * cost(choice.chosen.indices))


def test_one_percent_over_the_limit_is_over_where_measurements_are_certain() -> None:
    supernet = space()
    choice = choose(
        supernet,
        limited(supernet, 9.0),
        settings(),
        score=lambda _: (0.0, ()),
        measure=device(1.01),
    )
    assert choice.rounds == 2 and choice.chosen.measured_ms is not None
    assert choice.chosen.measured_ms <= 9.0


@pytest.mark.parametrize("factor", [0.6, 1.3, 1.8])
def test_a_wrong_cost_model_is_corrected_until_the_measurement_keeps_the_limit(
    factor: float,
) -> None:
    """The largest network that the device runs within 10 ms, whatever the table said."""
    supernet = space()
    choice = choose(
        supernet,
        limited(supernet, 10.0),
        settings(),
        score=lambda i: (cost(i), ()),
        measure=device(factor),
    )
    assert choice.rounds == 2
    largest = max(c for c in map(cost, ALL) if factor * c <= 10.0)
    assert cost(choice.chosen.indices) == largest
    assert choice.costs.of(choice.chosen.indices) == pytest.approx([factor * largest])
    assert choice.correction == pytest.approx(factor)


def test_three_rounds_at_most_and_then_the_fastest_that_was_measured() -> None:
    """A device that gets slower all the time, so that nothing ever keeps the limit."""
    supernet = space()
    factors = iter([1.1, 1.2, 1.35])
    choice = choose(
        supernet,
        limited(supernet, 9.0),
        settings(),
        score=lambda _: (0.0, ()),
        measure=drifting(factors),
    )
    assert choice.rounds == 3 and next(factors, None) is None
    known = [p.measured_ms for p in choice.proposals if p.measured_ms is not None]
    assert min(known) > 9.0 * (1 + TOLERANCE)
    assert choice.chosen.measured_ms == min(known)


def test_an_earlier_round_that_kept_the_limit_is_not_forgotten() -> None:
    """First far under the limit, then twice over it: the first network keeps it."""
    supernet = space()
    choice = choose(
        supernet,
        limited(supernet, 9.0),
        settings(),
        score=lambda _: (0.0, ()),
        measure=drifting(iter([0.8, 1.3, 1.3])),
    )
    assert choice.rounds == 3
    assert choice.chosen.measured_ms is not None
    assert choice.chosen.measured_ms <= 9.0


def test_a_correction_that_leaves_nothing_takes_the_fastest_that_was_measured() -> None:
    """A device three times slower than the table said, found out after the whole search."""
    supernet = space()
    choice = choose(
        supernet,
        limited(supernet, 9.0),
        settings(),
        score=lambda _: (0.0, ()),
        measure=device(3.0),
    )
    known = [p.measured_ms for p in choice.proposals if p.measured_ms is not None]
    assert choice.chosen.measured_ms == min(known) > 9.0


def test_a_limit_out_of_reach_is_refused_before_anything_is_scored() -> None:
    def score(_: Indices) -> Scored:
        raise AssertionError

    with pytest.raises(LimitError):
        choose(space(), limited(space(), 3.0), settings(), score=score, measure=device(1.0))


def test_a_correction_within_the_noise_is_not_believed() -> None:
    """1.5 % over, give or take 5 %: the cost model stays, and the limit counts as kept."""
    supernet = space()
    costs = limited(supernet, 9.0)
    noisy = device(1.015, noise=0.05)
    choice = choose(supernet, costs, settings(), score=lambda _: (0.0, ()), measure=noisy)
    assert choice.rounds == 1 and choice.costs == costs
    assert choice.chosen.measured_ms == pytest.approx(1.015 * cost(choice.chosen.indices))


def test_a_noisy_measurement_near_the_limit_is_taken_twice_and_pooled() -> None:
    """6 % over and 2 % under, each give or take 5 % and 2.5 %: together 0.4 % under, ± 2.24 %."""
    calls: list[list[Indices]] = []

    def noisy(networks: Sequence[Indices]) -> Measured:
        calls.append(list(networks))
        of, noise = [(1.06, 0.05), (0.98, 0.025)][len(calls) - 1]
        return [(of * 9.0, noise) for _ in networks]

    supernet = space()
    choice = choose(
        *(supernet, limited(supernet, 9.0), settings(measure_best=1, rounds=1)),
        score=lambda _: (0.0, ()),
        measure=noisy,
    )
    assert [len(call) for call in calls] == [1, 1] and calls[0] == calls[1]
    assert choice.chosen.measured_ms == pytest.approx(9.0 * (0.98 + 0.08 / 5))
    assert choice.chosen.noise == pytest.approx(0.05 / 5**0.5)


@pytest.mark.parametrize(("over", "kept"), [(1.01, True), (1.019, True), (1.03, False)])
def test_noise_excuses_two_percent_of_a_limit_at_most(over: float, kept: bool) -> None:
    assert keeps(Proposal((0,), 0.0, (9.0,), 0.0, measured_ms=9.0 * over, noise=0.1), 9.0) is kept
    assert not keeps(Proposal((0,), 0.0, (9.0,), 0.0, measured_ms=9.0 * over, noise=0.005), 9.0)


@pytest.mark.parametrize(
    ("noise", "believed"), [(0.0, 1.3), (0.1, 1 + 0.3 * (1 - 1 / 9)), (0.5, 1)]
)
def test_a_correction_is_believed_as_far_as_it_goes_beyond_its_noise(
    noise: float, believed: float
) -> None:
    supernet = space()
    choice = choose(
        supernet,
        limited(supernet, 10.0),
        settings(rounds=2),
        score=lambda i: (cost(i), ()),
        measure=device(1.3, noise),
    )
    after = choice.costs.of((0, 1, 2))[0] / cost((0, 1, 2))
    assert after == pytest.approx(believed)


def test_the_choice_is_deterministic() -> None:
    supernet = space([[0.1, 0.1, 0.1]] * 3)

    def score(indices: Indices) -> Scored:
        return math.sin(sum(indices)), ()

    def once() -> tuple[Indices, ...]:
        choice = choose(
            supernet, limited(supernet, 9.0), settings(), score=score, measure=device(1.1)
        )
        return (choice.chosen.indices, *(p.indices for p in choice.proposals))

    assert once() == once()


def test_a_score_that_is_no_number_is_the_worst_and_spoils_no_other() -> None:
    supernet = space()

    def score(indices: Indices) -> Scored:
        return (math.nan if indices == (2, 2, 2) else sum(indices) / 10, ())

    choice = choose(supernet, free(supernet), settings(), score=score)
    assert sum(choice.chosen.indices) == 5
    nothing = choose(supernet, free(supernet), settings(), score=lambda _: (math.nan, ()))
    assert nothing.chosen.score == -math.inf


def test_known_networks_tell_where_to_look_and_are_no_proposals_themselves() -> None:
    """α is wrong, and two scores are too few to see that the cheapest candidates are the best."""
    supernet = space()

    def score(indices: Indices) -> Scored:
        value = -float(sum(indices)) + (indices == (0, 0, 0))
        return value, (value, value)

    asked = list[Indices]()

    def counted(indices: Indices) -> Scored:
        asked.append(indices)
        return score(indices)

    known = [(0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1), (1, 1, 1), (0, 1, 1), (1, 0, 1), (2, 2, 2)]
    without, informed = (
        choose(supernet, free(supernet), settings(top_k=2), score=counted, known=networks)
        for networks in ([], known)
    )
    assert informed.chosen.indices == (0, 0, 0) != without.chosen.indices
    proposed = [p.indices for p in informed.proposals]
    assert len(proposed) == 2
    assert proposed[0] == (2, 2, 2)  # the most probable, known or not
    assert len(asked) == len(set(asked)) + 1  # once in a choice: (2, 2, 2) is in both


@pytest.mark.parametrize("enumerated", [True, False])
def test_known_networks_that_are_better_and_too_dear_are_neither_chosen_nor_shown(
    enumerated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are those decoded that lie around them."""
    decoded_around = list[Indices]()

    def decoded(*args: object) -> np.ndarray:
        decoded_around.append(args[3])  # type: ignore[arg-type]
        return real(*args)  # type: ignore[arg-type]

    real = explore._decoded
    monkeypatch.setattr(explore, "_decoded", decoded)
    if not enumerated:
        monkeypatch.setattr(explore, "ENUMERATED", 0)
    supernet = space()
    choice = choose(
        supernet,
        limited(supernet, 8.0),
        settings(top_k=5),
        score=lambda n: (float(sum(n)), (float(sum(n)),) * 2),
        known=[(2, 2, 2), (2, 2, 1), (0, 0, 0), (1, 0, 1), (0, 2, 0)],
        measure=device(1.0),
    )
    assert all(cost(p.indices) <= 8.0 for p in choice.proposals)
    assert choice.chosen.indices in {(1, 1, 1), *itertools.permutations((0, 1, 2))}
    assert bool(decoded_around) != enumerated and all(cost(n) <= 8.0 for n in decoded_around)


def test_networks_of_an_alpha_that_never_learned_are_chosen_by_score_alone() -> None:
    supernet = space([[0.0, 1e-3, 2e-3]] * 3)
    for seed in range(5):
        generator = np.random.default_rng(seed)
        scores = dict(zip(sorted(ALL), generator.normal(0.9, 0.01, len(ALL)), strict=True))
        choice = choose(
            supernet,
            free(supernet),
            settings(top_k=10),
            score=lambda i: (scores[i], ()),  # noqa: B023
            learned=False,
            seed=seed,
        )
        assert choice.chosen.score == max(p.score for p in choice.proposals)


# --- what is believed of a score ---


def scored(log_p: Sequence[float], scores: Sequence[float], error: float) -> list[float]:
    """What is believed of scores that are means of 16 batches and have this standard error."""
    chance = np.random.default_rng(1).normal(size=(len(scores), 16))
    chance -= chance.mean(1, keepdims=True)
    parts = np.array(scores)[:, None] + 4 * error * chance
    rows = enumerate(zip(log_p, scores, parts.tolist(), strict=True))
    proposals = [Proposal((i,), p, (), s, tuple(b)) for i, (p, s, b) in rows]
    networks = supernet_with(MixedOp([Scale(1.0)] * len(scores)), [[0.0] * len(scores)])
    return list(beliefs(networks, proposals, learned=True).values())


def test_scores_without_noise_are_believed() -> None:
    scores = [0.1, 0.7, 0.3, 0.5]
    assert scored([-4, -3, -2, -1], scores, 0.0) == pytest.approx(scores)


def test_differences_within_the_noise_leave_it_to_the_probability() -> None:
    believed = scored([-1, -2, -3, -4], [0.61, 0.62, 0.60, 0.59], 0.02)
    assert sorted(believed, reverse=True) == believed


def test_probabilities_that_contradict_the_scores_are_not_believed() -> None:
    believed = scored([-1, -2, -3, -4], [0.3, 0.5, 0.7, 0.9], 0.01)
    assert sorted(believed) == believed


def test_equal_probabilities_leave_it_to_the_scores() -> None:
    believed = scored([-2.0] * 4, [0.3, 0.9, 0.7, 0.5], 0.02)
    assert np.argsort(believed).tolist() == [0, 3, 2, 1]


def test_noisy_scores_and_a_prior_choose_better_than_either() -> None:
    """Networks whose quality is half in log p, half not; 2,000 images of noise."""
    generator, regret = np.random.default_rng(0), dict.fromkeys(("score", "log_p", "belief"), 0.0)
    for _ in range(200):
        log_p, other = generator.normal(size=(2, 20))
        truth = 0.6 + 0.01 * (log_p + other)
        scores = truth + 0.011 * generator.normal(size=20)
        for name, by in (
            ("score", scores),
            ("log_p", log_p),
            ("belief", scored(log_p.tolist(), scores.tolist(), 0.011)),
        ):
            regret[name] += truth.max() - truth[int(np.argmax(by))]
    assert regret["belief"] < regret["score"] and regret["belief"] < regret["log_p"]
