"""What networks around a model take, by what was measured of its layers and of whole networks.

Latency is a sum of terms: every layer alone, what it reads, that it is called, and what it holds.
A layer between two pairs is narrowed by both: its latency is about the product of these shares,
which no sum over choices is. So each end carries the root of what narrowing both saves, and each
change of the layer its own factor. Of two thin layers in place of one, each is narrowed at one end.
What a layer reads stands for all that is not in layers and has as many numbers: activations, norms,
sums, copies. What it holds comes from memory, where a layer that runs alone has it in a cache.
Whole networks tell how much each kind of term weighs, and by how much layers are off. Decoding
wants a sum over choices: that is the first order around a network at hand, exact for every network
that differs from it in one choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls

from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Indices
from proxylessnas.surgery.candidates import LOW_RANK, Candidate, Choice
from proxylessnas.surgery.corrections import LEAST, Corrections
from proxylessnas.surgery.latency import Latencies
from proxylessnas.surgery.lowrank import Factors
from proxylessnas.surgery.pairs import Pair
from proxylessnas.surgery.space import Space

Array = NDArray[np.float64]

LEAST_FIXED = 1e-3  # of what the fastest network takes

# The terms of a layer by which of the weights they have: alone, or two thin layers in its place;
# what it reads; that it is called; the numbers that it holds, or those that two thin layers do.
WEIGHTS = (0, 0, 0, 1, 2, 3, 3, 3)


@dataclass(frozen=True, eq=False)
class Terms:
    """What the latency of a network is summed of.

    own: [terms], of the model. factors: [choices, candidates, terms], by what a candidate
    multiplies them. carried: [choices, terms], the share that is told as a choice's. layer, weight:
    [terms], whose they are.
    """

    own: Array
    factors: Array
    carried: Array
    layer: NDArray[np.int64]
    weight: NDArray[np.int64]

    def each(self, indices: Indices) -> Array:
        """By what each of a network's candidates multiplies them, [choices, terms]."""
        return np.asarray(self.factors[np.arange(len(indices)), indices])

    def of(self, indices: Indices) -> Array:
        """Of a network, [terms]."""
        return np.asarray(self.own * self.each(indices).prod(axis=0))


def terms_of(space: Space, latencies: Latencies) -> Terms:
    """The terms of every layer that choices narrow or change."""
    layers = _Layers(space, latencies)
    once = 1.0 * (layers.alone > 0)
    split = np.stack([np.ones(len(layers.ends)), layers.first, 1 - layers.first])
    alone, held = layers.alone * split, layers.weights * split
    own = np.concatenate([alone, [layers.reads * once, once], held * once])
    shape = (*space.mask.shape, *own.shape)
    factors, carried = np.ones(shape), np.zeros((shape[0], *own.shape))
    for m, choice in enumerate(space.choices):
        carried[m] = layers.inside(choice)
        for j, candidate in enumerate(choice.candidates):
            factors[m, j] = layers.factors(m, candidate)
    paths = np.tile(np.arange(own.shape[1]), len(own))
    weights = np.repeat(WEIGHTS, own.shape[1])
    return Terms(
        own=own.ravel(),
        factors=factors.reshape(*shape[:2], -1),
        carried=carried.reshape(shape[0], -1),
        layer=paths,
        weight=weights,
    )


class _Layers:
    """The layers that choices narrow or change, and what was measured of them, [layers].

    alone: ms. reads, weights: numbers. first: of two thin layers in its place the share of the
    first.
    """

    def __init__(self, space: Space, latencies: Latencies) -> None:
        self.space, self.latencies = space, latencies
        pairs = [pair for choice in space.choices for pair in choice.pairs]
        # How often each is narrowed; once, where it is only changed.
        self.ends = {path: 1 for choice in space.choices for path in choice.wide}
        self.ends |= Counter(path for pair in pairs for path in pair.layers)
        self.readers = Counter(path for pair in pairs for path in _readers(pair))
        self.alone = np.array([latencies.layers.get(path, 0.0) for path in self.ends])
        self.reads = np.array([latencies.reads[1.0].get(path, 0.0) for path in self.ends])
        self.weights = np.array([latencies.weights[1.0].get(path, 0.0) for path in self.ends])
        changes = [c for x in space.choices for own in x.candidates for c in own.changes]
        taps = {c.layer: c.taps for c in changes if isinstance(c, Factors)}
        self.first = np.array([self._share_of_first(path, taps.get(path)) for path in self.ends])

    def _share_of_first(self, path: str, taps: int | None) -> float:
        """By the multiplications."""
        if taps is None:
            return 0.0
        weight = self.space.model.get_submodule(path).get_parameter("weight")
        first, second = weight[0].numel() / taps, len(weight) * taps
        return first / (first + second)

    def inside(self, choice: Choice) -> Array:
        """Which share of the narrowing of every layer is this choice's."""
        paths = Counter(path for pair in choice.pairs for path in pair.layers)
        paths |= Counter(set(choice.wide))
        return np.array([paths[path] / n for path, n in self.ends.items()])

    def factors(self, m: int, candidate: Candidate) -> Array:
        """By what a candidate of a choice multiplies the terms, [terms, layers]."""
        choice, one = self.space.choices[m], np.ones(len(self.ends))
        if candidate.changes:
            paths = [change.layer for change in candidate.changes]
            here = np.array([path in paths for path in self.ends])
            changed = self._ratios(self.alone, self.latencies.changed[candidate.level])
            if candidate.kind == LOW_RANK:
                thin = np.where(here, changed, self._is_not_of(choice))
                three = [np.where(here, 0.0, 1.0), thin, thin]
            else:
                other = self._is_not_of(choice)
                three = [np.where(here, changed, 1.0), other, other]
            return np.stack([*three, one, one, *three])
        if not candidate.share:
            prefix = f"{choice.name}."
            within = [path.startswith(prefix) for path in self.ends]
            return np.tile(
                np.where((self.inside(choice) > 0) | within, 0.0, 1.0), (len(WEIGHTS), 1)
            )
        inside = self.inside(choice)
        alone = self._ratios(self.alone, self.latencies.uniform[candidate.share]) ** inside
        reads = self._ratios(self.reads, self.latencies.reads[candidate.share])
        reads **= self._reading(choice, inside)
        makes = np.array([candidate.share if path in choice.makers else 1.0 for path in self.ends])
        other = self._is_not_of(choice)
        held = self._ratios(self.weights, self.latencies.weights[candidate.share]) ** inside
        both = [reads * other, makes * other]
        return np.stack([alone, *both, reads, one, held, *both])

    def _is_not_of(self, choice: Choice) -> Array:
        """0 where two thin layers are only where a candidate of this choice says so."""
        return np.array([0.0 if path in choice.wide else 1.0 for path in self.ends])

    def _reading(self, choice: Choice, inside: Array) -> Array:
        """Which share of the narrowing of what every layer reads is this choice's."""
        own = Counter(path for pair in choice.pairs for path in _readers(pair))
        both = zip(self.ends, inside, strict=True)
        # What reads no channels of a pair is narrowed through and through, or not where it reads.
        return np.array([own[p] / self.readers[p] if self.readers[p] else x for p, x in both])

    def _ratios(self, own: Array, row: Mapping[str, float]) -> Array:
        positive = np.where(own > 0, own, 1.0)
        at = np.array([row.get(path, x) for path, x in zip(self.ends, positive, strict=True)])
        return np.asarray(np.maximum(at, 0.0) / positive)


def _readers(pair: Pair) -> set[str]:
    return {cut.module for cut in pair.consumers}


class CostModel:
    """The latency of every network of a space, and what candidates cost around one of them.

    weights: [terms], ms of each. fixed: ms of what all networks have. corrections: of both, and
    of networks that are alike those that were measured.
    """

    def __init__(self, space: Space, latencies: Latencies) -> None:
        self.terms = terms_of(space, latencies)
        lengths = [len(candidates) for candidates in space.candidates]
        self.pads = np.array([[j >= n for j in range(max(lengths))] for n in lengths])
        # Of the fastest hardly a layer is left: it tells the range, and nothing of the layers.
        # Changes of layers that take longer than these are not to be chosen, nor to be fitted to.
        told = {n: ms for n, ms in latencies.whole if latencies.least_ms < ms <= latencies.model_ms}
        self.whole = told or dict(latencies.whole)
        kinds = np.stack([self._by_weight(n) for n in self.whole])
        ms = np.array(list(self.whole.values()))
        most = np.maximum(kinds.max(axis=0), 1e-30)
        found, _ = nnls(kinds / most / ms[:, None], np.ones(len(ms)))
        *weights, fixed = found / most
        # No network takes nothing, also one of which no layer is left.
        self.fixed = max(float(fixed), LEAST_FIXED * latencies.least_ms)
        self.weights = np.array(weights)[self.terms.weight]
        self.corrections = self._corrections({})

    def _by_weight(self, indices: Indices) -> Array:
        """The terms of a network that have one weight, and a 1."""
        sums = np.bincount(self.terms.weight, self.terms.of(indices), minlength=4)
        return np.array([*sums, 1.0])

    def corrected(self, measured: Mapping[Indices, float]) -> CostModel:
        """The same by what these networks take now, in ms, besides those that it was fitted to."""
        other = copy(self)
        other.corrections = self._corrections(measured)
        return other

    def _corrections(self, measured: Mapping[Indices, float]) -> Corrections:
        every = {**self.whole, **measured}
        layers = np.stack([self._by_layer(n) for n in every])
        believed = layers.sum(axis=1) + self.fixed
        return Corrections.told(
            parts=layers / believed[:, None],
            off=np.array(list(every.values())) / believed - 1,
            now=np.array([float(n in measured) for n in every]),
        )

    def _by_layer(self, indices: Indices) -> Array:
        """ms of a network's layers, uncorrected."""
        ms = self.weights * self.terms.of(indices)
        return np.asarray(np.bincount(self.terms.layer, ms))

    def _line(self) -> tuple[Array, float]:
        """ms of the terms and of the fixed part, with the corrections of layers."""
        layers = self.corrections.layers[self.terms.layer]
        return self.weights * layers, self.fixed * self.corrections.fixed

    def of(self, indices: Indices) -> float:
        """ms of a network."""
        layers = self._by_layer(indices)
        believed = float(layers.sum()) + self.fixed
        line = float(layers @ self.corrections.layers) + self.fixed * self.corrections.fixed
        alike = self.corrections.alike(layers / believed) * believed
        return max(line + alike, LEAST * line)

    def around(self, indices: Indices) -> Costs:
        """What every candidate costs beside the others of this network, without a limit.

        The network's own candidates carry their layers' parts of it.
        """
        weights, fixed = self._line()
        ms, here = weights * self.terms.own, weights * self.terms.of(indices)
        costs = np.zeros(self.pads.shape)
        for m, others in enumerate(_products_of_others(self.terms.each(indices))):
            swapped = self.terms.factors[m] @ (ms * others)
            costs[m] = swapped - swapped[indices[m]] + self.terms.carried[m] @ here
        costs[self.pads] = 0.0
        line = Costs.one("latency", torch.from_numpy(costs), fixed=fixed, unit="ms")
        return line.scaled("latency", self.of(indices) / float(here.sum() + fixed))


def _products_of_others(rows: Array) -> Array:
    """Of every row the product of all the other rows."""
    one = np.ones((1, rows.shape[1]))
    before = np.cumprod(np.concatenate([one, rows[:-1]]), axis=0)
    after = np.cumprod(np.concatenate([one, rows[:0:-1]]), axis=0)[::-1]
    return np.asarray(before * after)
