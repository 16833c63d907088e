"""Values of networks from those of others: what is exact, what is believed, what is not known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from proxylessnas.selection.predictor import Array, Networks, Predictor

ROWS = [[f"{m}{j}" for j in range(3)] for m in range(5)]  # every name of one choice alone
ALL: Networks = np.array(list(itertools.product(range(3), repeat=5)), np.int64)


def drawn(seed: int, count: int) -> tuple[Networks, Networks, np.random.Generator]:
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(ALL))
    return ALL[order[:count]], ALL[order[count:]], generator


def additive(generator: np.random.Generator) -> Array:
    worth = generator.normal(size=(5, 3))
    return np.asarray(worth[np.arange(5), ALL].sum(1), float)


def paired(generator: np.random.Generator) -> Array:
    """A sum over the choices and over their pairs."""
    pairs = generator.normal(size=(5, 5, 3, 3))
    each = [pairs[a, b, ALL[:, a], ALL[:, b]] for a, b in itertools.combinations(range(5), 2)]
    return additive(generator) + np.sum(each, 0)


def of(values: Array, networks: Networks) -> Array:
    return values[(networks * 3 ** np.arange(4, -1, -1)).sum(1)]


@pytest.mark.parametrize("degree", [1, 2])
def test_the_mean_is_that_of_a_regression_on_candidates_and_on_pairs(degree: int) -> None:
    """Ridge regression on explicit features, of all candidates and of all products of two."""
    known, rest, generator = drawn(0, 60)
    values = of(paired(generator), known)
    fitted = Predictor.fit(ROWS, known, values, degrees=[degree])

    def features(networks: Networks) -> Array:
        one = np.eye(3)[networks].reshape(len(networks), -1) / np.sqrt(5)
        return one if degree == 1 else np.einsum("ni,nj->nij", one, one).reshape(len(one), -1)

    x = features(known)
    own = fitted.own / (1 - fitted.own)
    weights = np.linalg.solve(x.T @ x + own * np.eye(x.shape[1]), x.T @ (values - fitted.line[0]))
    expected = fitted.line[0] + features(rest) @ weights
    np.testing.assert_allclose(fitted(rest)[0], expected, atol=1e-6)


def test_pairs_are_taken_where_they_are_needed_and_only_there() -> None:
    for seed in range(3):
        known, rest, generator = drawn(seed, 120)
        for make, pairs in ((additive, False), (paired, True)):
            values = make(generator)
            fitted = Predictor.fit(ROWS, known, of(values, known))
            errors = [
                float(np.std(p(rest)[0] - of(values, rest)))
                for p in (fitted, Predictor.fit(ROWS, known, of(values, known), degrees=[1]))
            ]
            assert (fitted.degree > 1) == pairs
            assert errors[0] < (0.7 * errors[1] if pairs else 1e-3)


def test_two_deviations_hold_the_truth_as_often_as_they_say() -> None:
    """Values of pairs, and of each network alone what none of the others tells."""
    held = []
    for seed in range(10):
        known, rest, generator = drawn(seed, 60)
        values = paired(generator) + generator.normal(size=len(ALL))
        mean, deviation = Predictor.fit(ROWS, known, of(values, known))(rest)
        held.append(np.abs(mean - of(values, rest)) <= 2 * deviation)
    assert 0.9 < np.mean(held) < 0.99


def test_candidates_of_one_name_are_known_elsewhere_too() -> None:
    """Milliseconds by the operation alone: ten networks tell as much as a hundred."""
    names = [["none", "conv", "pool"]] * 5
    known, rest, _ = drawn(0, 10)
    ms = np.array([0.0, 3.0, 1.0])
    errors = [
        np.abs(Predictor.fit(rows, known, ms[known].sum(1))(rest)[0] - ms[rest].sum(1)).mean()
        for rows in (names, ROWS)
    ]
    assert errors[0] < 0.3 * errors[1]


def test_a_value_without_noise_stays_and_a_noisy_one_is_drawn_to_its_likes() -> None:
    known, _, generator = drawn(1, 80)
    truth = of(additive(generator), known)
    values = truth + 0.5 * generator.normal(size=len(truth))
    exact, deviation = Predictor.fit(ROWS, known, values)(known)
    np.testing.assert_allclose(exact, values, atol=1e-6)
    assert deviation.max() < 1e-3
    believed, deviation = Predictor.fit(ROWS, known, values, noise=0.25)(known)
    assert np.std(believed - truth) < 0.7 * np.std(values - truth)
    assert deviation.min() > 0.05


def test_a_prior_counts_as_far_as_the_values_rise_with_it() -> None:
    known, rest, generator = drawn(2, 40)
    prior = dict(zip(map(tuple, ALL.tolist()), generator.normal(size=len(ALL)), strict=True))

    def of_prior(networks: Networks) -> Array:
        return np.array([prior[tuple(n)] for n in networks.tolist()])

    for slope, line in ((2.0, 2.0), (-2.0, 0.0)):
        values = 1 + slope * of_prior(known)
        fitted = Predictor.fit(ROWS, known, values, prior=of_prior(known))
        assert fitted.line[1] == pytest.approx(line, abs=1e-6)
        if line:
            np.testing.assert_allclose(fitted(rest, of_prior(rest))[0], 1 + 2 * of_prior(rest))


def test_choices_of_different_sizes_and_a_single_network() -> None:
    rows = [["a", "b"], ["a", "b", "c", "d"], ["z"]]
    mean, deviation = Predictor.fit(rows, [[0, 3, 0]], [5.0])([[1, 2, 0], [0, 3, 0]])
    assert mean.tolist() == [5.0, 5.0] and np.isinf(deviation[0])
