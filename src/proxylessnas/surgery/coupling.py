"""Which channels of a model go together: all that is cut of any tensor when one of them goes.

Every index along every axis of every tensor of the graph is an *element*. An operation binds
elements of what it reads to elements of what it returns (`relations.py`); elements that are bound
to each other, directly or through others, are one *class*, and are kept or cut together. What may
not be cut is fixed with a reason, and with it its class.

A reshape that makes one axis of several, or several of one, leaves a choice: of channels seen as
(heads, numbers of a head), whole heads can go, or the same numbers of every head. Such a *fold* is
decided once it is known which of these axes are fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch.fx import Node

from proxylessnas.surgery.graph import Graph, shape

Elements = NDArray[np.int64]

APART = "a reshape takes its channels apart"


@dataclass(frozen=True, eq=False)
class Fold:
    """One axis as several. whole: its elements. parts: those of each axis that it is made of.

    node: the reshape.
    """

    whole: Elements
    parts: tuple[Elements, ...]
    node: Node

    def of_part(self, index: int) -> Elements:
        """For every element of the whole that of one part."""
        sizes = [len(part) for part in self.parts]
        coordinates = np.unravel_index(np.arange(len(self.whole)), sizes)
        return self.parts[index][coordinates[index]]


class Coupling:
    """Elements of a graph, and what binds and fixes them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._begins: dict[Node, list[int]] = {}
        self._count = 0
        for node in graph.nodes:
            self._begins[node] = [self.fresh(size)[0] if size else 0 for size in shape(node)]
        self._bound: list[tuple[Elements, Elements]] = []
        self._fixed: list[tuple[Elements, str, Node]] = []
        self.folds: list[Fold] = []
        self.norms: list[tuple[Node, int, Elements]] = []  # see `normalise`

    def fresh(self, size: int) -> Elements:
        """New elements, of an axis that no node has."""
        self._count += size
        return np.arange(self._count - size, self._count)

    def axis(self, node: Node, axis: int) -> Elements:
        """The elements along an axis of a node's tensor."""
        begin = self._begins[node][axis]
        return np.arange(begin, begin + shape(node)[axis])

    def bind(self, a: Elements, b: Elements) -> None:
        """Every element of a goes with the one of b at the same place."""
        assert len(a) == len(b), "only as many elements can be bound"
        self._bound.append((a, b))

    def fix(self, elements: Elements, reason: str, node: Node) -> None:
        """These stay, because of a node."""
        self._fixed.append((elements, reason, node))

    def normalise(self, x: Node, axis: int, node: Node) -> None:
        """What a node computes over all channels along an axis of x is then over those that remain.

        As statistics of a normalisation. What reads the channels is fitted to that.
        """
        self.norms.append((node, axis - len(shape(x)), self.axis(x, axis)))

    # --- folds ---

    def decide_folds(self, weights: Elements) -> None:
        """Bind every fold by one of its parts, and fix the others.

        weights: elements of the model's weights. Where more than one part could be cut, it is one
        that weights are bound to already, as queries' heads are when values are looked at; then
        the part with most numbers.
        """
        waiting = list(self.folds)
        while waiting:
            classes, alive = self._classes()
            decided = [fold for fold in waiting if self._decide(fold, alive(fold.whole), alive)]
            if not decided:
                held = np.zeros(self._count, bool)
                held[np.isin(classes, np.unique(classes[weights]))] = True
                fold = waiting[0]
                parts = [k for k, part in enumerate(fold.parts) if alive(part)]
                best = max(parts, key=lambda k: (held[fold.parts[k]].any(), len(fold.parts[k])))
                self._bind_fold(fold, best)
                decided = [fold]
            waiting = [fold for fold in waiting if fold not in decided]

    def _decide(self, fold: Fold, whole: bool, alive: Any) -> bool:
        """Bind a fold whose parts leave no choice; whether that is so."""
        parts = [k for k, part in enumerate(fold.parts) if whole and alive(part)]
        if len(parts) > 1:
            return False
        self._bind_fold(fold, parts[0] if parts else None)
        return True

    def _bind_fold(self, fold: Fold, chosen: int | None) -> None:
        sizes = [len(part) for part in fold.parts]
        # Where all parts are fixed, so is the whole, for the reasons of the largest.
        kept = sizes.index(max(sizes)) if chosen is None else chosen
        self.bind(fold.whole, fold.of_part(kept))
        for k, part in enumerate(fold.parts):
            if k != chosen:
                self.fix(part, APART, fold.node)

    def _classes(self) -> tuple[NDArray[np.int32], Any]:
        classes = self._components()
        fixed = np.zeros(classes.max(initial=0) + 1, bool)
        for elements, _, _ in self._fixed:
            fixed[classes[elements]] = True
        return classes, lambda elements: not fixed[classes[elements]].all()

    def _components(self) -> NDArray[np.int32]:
        a = np.concatenate([x for x, _ in self._bound] or [np.arange(0)])
        b = np.concatenate([x for _, x in self._bound] or [np.arange(0)])
        links = coo_matrix((np.ones(len(a), bool), (a, b)), shape=(self._count, self._count))
        classes: NDArray[np.int32] = connected_components(links, directed=False)[1]
        return classes

    # --- what came of it, once everything is bound ---

    @cached_property
    def classes(self) -> NDArray[np.int32]:
        """The class of every element."""
        return self._components()

    @cached_property
    def reasons(self) -> dict[int, list[tuple[Node, str]]]:
        """Why classes are fixed, by class; those that are not are not in it."""
        reasons: dict[int, list[tuple[Node, str]]] = {}
        for elements, reason, node in self._fixed:
            for number in np.unique(self.classes[elements]).tolist():
                reasons.setdefault(number, []).append((node, reason))
        return reasons

    def of(self, node: Node, axis: int) -> NDArray[np.int32]:
        """The class of every index along an axis."""
        return self.classes[self.axis(node, axis)]


def atoms_of(before: Sequence[int], after: Sequence[int]) -> list[int] | None:
    """The sizes of the axes that both shapes are made of; None where there are none.

    >>> atoms_of((2, 12), (2, 3, 4)), atoms_of((5, 2, 12), (5, 6, 4)), atoms_of((4, 6), (6, 4))
    ([2, 3, 4], [5, 2, 3, 4], None)
    """
    ends = sorted({*np.cumprod(before).tolist(), *np.cumprod(after).tolist()})
    steps = list(zip([1, *ends], ends, strict=False))
    if any(end % begin for begin, end in steps):
        return None
    return [end // begin for begin, end in steps if end > begin]
