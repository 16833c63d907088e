"""What networks are worth, or cost, predicted from others of the same space.

α is a sum over the choices, and so is every integer programme's objective here. What a network is
worth is more: a convolution is worth less beside others, and a branch nothing where nothing follows
it. Terms for all pairs of candidates are too many to be fitted one by one to the few hundred
networks that can be scored, so they share one prior (a Gaussian process), whose few numbers are
those under which the values that are known were the most probable.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Networks = NDArray[np.int64]  # [networks, choices], the candidate of every choice

DEGREES = (1, 2, 3)  # 1: a sum over the choices; 2: and over their pairs; 3: and triples
# How much of what candidates do depends on their name alone, wherever they stand.
BY_NAME = (0.0, 0.5, 0.9)
# Of the variance of the values: the part that no other network tells anything about.
OWN = (*np.geomspace(1e-6, 0.9, 16).tolist(), 1.0)


@dataclass(frozen=True, eq=False)
class Predictor:
    """Values of networks, with what is not known of them. Made by `fit`.

    names: [choices, candidates] int, equal where two candidates have one name.
    networks, values, prior: those that it was fitted to. degree, by_name, own: as chosen above.
    scale: the variance of the values beside the mean line. noise: the variance of a value that is
    chance, at most all of the share `own`. line: what the mean is, 1 and the prior times these.
    """

    names: Networks
    networks: Networks
    values: Array
    prior: Array
    degree: int
    by_name: float
    own: float
    scale: float
    noise: float
    line: Array

    @staticmethod
    def fit(
        names: Sequence[Sequence[str]],
        networks: Sequence[Sequence[int]],
        values: Sequence[float],
        *,
        prior: Sequence[float] | Array | None = None,
        noise: float = 0.0,
        degrees: Sequence[int] = DEGREES,
    ) -> Predictor:
        """The most probable predictor of these values.

        names: of the candidates of every choice. prior: what was believed of each network before,
        in any unit, such as Σ log p; it counts as far as the values rise with it. noise: the
        variance of a value that is chance.
        """
        numbers = {name: k for k, name in enumerate(dict.fromkeys(itertools.chain(*names)))}
        widest = max(map(len, names))
        table = np.array(
            [[numbers[n] for n in row] + [-1] * (widest - len(row)) for row in names], np.int64
        )
        known, y = np.array(networks, np.int64).reshape(len(values), -1), np.array(values, float)
        before = np.zeros(len(y)) if prior is None else np.array(prior, float)
        tried = [
            _tried(table, known, y, before, noise, degree, by_name)
            for degree, by_name in itertools.product(degrees, BY_NAME)
        ]
        _, own, scale, line, degree, by_name = max(tried, key=lambda row: row[0])
        return Predictor(
            *(table, known, y, before, degree, by_name, own, scale, min(noise, own * scale), line)
        )

    def __call__(
        self, networks: Sequence[Sequence[int]] | Networks, prior: Array | None = None
    ) -> tuple[Array, Array]:
        """(mean, standard deviation) of what each network is truly worth.

        The deviation is infinite with three values or fewer: from so few nobody knows it.
        """
        asked = np.asarray(networks, np.int64).reshape(-1, self.networks.shape[1])
        before = np.zeros(len(asked)) if prior is None else np.array(prior, float)
        weights, inverse = self._solved
        kernel = _kernel(self.names, asked, self.networks, self.degree, self.by_name)
        # Of a network that is known itself, its own part is known as well, but for the chance.
        true_own = self.own - self.noise / self.scale if self.scale else 0.0
        cross = (1 - self.own) * kernel + true_own * (_agreeing(asked, self.networks) == 1)
        mean = _basis(before) @ self.line + cross @ weights
        own = _own_kernel(self.names, asked, self.degree, self.by_name)
        rest = (1 - self.own) * own + true_own - (cross @ inverse * cross).sum(1)
        # The scale is known from as many values only: Student's t, of a degree less than there are.
        freedom = len(self.values) - 1
        if freedom <= 2:
            return mean, np.full(len(mean), np.inf)
        variance: Array = freedom / (freedom - 2) * self.scale * np.maximum(rest, 0.0)
        return mean, variance**0.5

    @cached_property
    def _solved(self) -> tuple[Array, Array]:
        """K⁻¹·(values − line) and K⁻¹, of the known networks."""
        kernel = _kernel(self.names, self.networks, self.networks, self.degree, self.by_name)
        whole = (1 - self.own) * kernel + self.own * np.eye(len(kernel))
        inverse = np.asarray(np.linalg.inv(whole), np.float64)
        rest = self.values - _basis(self.prior) @ self.line
        return np.asarray(inverse @ rest, np.float64), inverse


def _tried(
    names: Networks,
    networks: Networks,
    y: Array,
    prior: Array,
    noise: float,
    degree: int,
    by_name: float,
) -> tuple[float, float, float, Array, int, float]:
    """The greatest likelihood over `OWN`, and what goes with it; all of the noise is own."""
    values, vectors = np.linalg.eigh(_kernel(names, networks, networks, degree, by_name))
    target, basis = vectors.T @ y, vectors.T @ _basis(prior)
    best: tuple[float, float, float, Array, int, float] | None = None
    for own in OWN:
        variance = (1 - own) * np.maximum(values, 0.0) + own
        line = _line(basis, target, variance)
        rest = target - basis @ line
        squares = float(np.sum(rest**2 / variance))
        scale = squares / max(1, len(y) - 1)  # the mean is fitted too
        likelihood = -len(y) * math.log(max(squares, 1e-30)) - float(np.log(variance).sum())
        if own < OWN[-1] and own * scale < noise:
            continue
        if best is None or likelihood > best[0]:
            best = (likelihood, own, scale, line, degree, by_name)
    assert best is not None
    return best


def _basis(prior: Array) -> Array:
    """[networks, 2]: 1 and the prior; the latter 0 where all are alike."""
    return np.stack([np.ones(len(prior)), prior], 1)


def _line(basis: Array, target: Array, variance: Array) -> Array:
    """Weighted least squares. A falling line would hold the prior's order against it: flat then."""
    weighted = basis / variance[:, None]
    line = np.linalg.lstsq(weighted.T @ basis, weighted.T @ target, rcond=None)[0]
    if line[1] > 0:
        return np.array(line, float)
    ones = basis[:, 0]
    return np.array([(ones / variance) @ target / ((ones / variance) @ ones), 0.0])


def _kernel(names: Networks, a: Networks, b: Networks, degree: int, by_name: float) -> Array:
    """[networks, networks], about 1 of a network with itself.

    The share of choices in which two networks agree, to a power: that is a prior on one weight
    for each candidate, and for each pair (triple) of candidates of different choices. Beside it
    the same of the numbers of candidates of each name, which is a prior on one weight a name.
    """
    agree = _agreeing(a, b) ** degree
    if not by_name:
        return agree
    counts = [_counts(names, networks) for networks in (a, b)]
    return (1 - by_name) * agree + by_name * (counts[0] @ counts[1].T) ** degree


def _own_kernel(names: Networks, a: Networks, degree: int, by_name: float) -> Array:
    """The kernel of each network with itself."""
    squares = (_counts(names, a) ** 2).sum(1)
    return np.asarray((1 - by_name) + by_name * squares**degree, float)


def _agreeing(a: Networks, b: Networks) -> Array:
    """The share of the choices in which two networks agree, of each pair of them."""
    # One choice after another: all at once would be choices times the memory.
    same = np.zeros((len(a), len(b)))
    for ours, theirs in zip(a.T, b.T, strict=True):
        same += ours[:, None] == theirs[None]
    shares: Array = same / a.shape[1]
    return shares


def _counts(names: Networks, networks: Networks) -> Array:
    """[networks, names]: how often each name is chosen; of length 1 in the mean over all."""
    each = names[:, :, None] == np.arange(names.max() + 1)  # [choices, candidates, names]
    shares = each.sum(1) / (names >= 0).sum(1, keepdims=True)
    # E|Σ_m one-hot|² = Σ_m 1 + Σ over pairs of choices of the share in which they agree.
    mean = len(names) + float((shares.sum(0) ** 2).sum() - (shares**2).sum())
    chosen = each[np.arange(len(names))[None], networks].sum(1)
    return np.asarray(chosen / math.sqrt(mean), float)
