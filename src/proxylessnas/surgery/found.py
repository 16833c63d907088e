"""What can be narrowed in a model, whatever its weights are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from proxylessnas.errors import SupernetError
from proxylessnas.surgery.blocks import table_of_layers, too_narrow, wanted_by
from proxylessnas.surgery.brought import Trained
from proxylessnas.surgery.candidates import (
    SMALLER,
    Changes,
    Choice,
    changes_of,
    choices_of,
    widths_of,
    with_candidates,
    with_wide,
)
from proxylessnas.surgery.finding import find_pairs, path_of
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.kernels import Crop, blanks
from proxylessnas.surgery.lowrank import Factors, blank_factors, wide_layers
from proxylessnas.surgery.narrow import Narrowed, applicable, proven
from proxylessnas.surgery.pairs import Pair, Refused
from proxylessnas.surgery.space import Space

Fits = Mapping[Pair, Mapping[int, Narrowed]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What can be narrowed in a model, whatever its weights are.

    choices: without candidates. refused: the layers that stay. smaller: kernels, and ranks of wide
    layers by their level, by the layer's path; not fitted.
    """

    brought: Trained
    choices: tuple[Choice, ...]
    refused: tuple[Refused, ...]
    smaller: Mapping[str, Crop]
    ranks: Mapping[str, Mapping[str, Factors]]

    @cached_property
    def changes(self) -> Changes:
        return {SMALLER: self.smaller, **self.ranks}

    @cached_property
    def widths(self) -> dict[Pair, list[int]]:
        return widths_of(self.choices)

    def space(self, fits: Fits, changes: Changes, brought: Trained | None = None) -> Space:
        """The space of these fits. brought: with a model of other weights."""
        every = [with_candidates(choice, fits, changes) for choice in self.choices]
        model = (brought or self.brought).model
        return Space(model, [choice for choice in every if len(choice.candidates) > 1])

    @cached_property
    def blank(self) -> Space:
        """The space of networks that are as large as the fitted ones, and know nothing."""
        return self.space(blank_fits(self.widths), self.changes)

    def table(self, shares: Mapping[str, float]) -> str:
        """Every layer, with its share of the latency, its candidates or why it stays."""
        rows = [
            (pair, self.widths[pair], self._others(choice, pair))
            for choice in self.choices
            for pair in choice.pairs
            if self.widths[pair]
        ]
        narrow = [too_narrow(pair) for pair, every in self.widths.items() if not every]
        alone = {c.name: self._ranks(c.name) for c in self.choices if not c.pairs}
        return table_of_layers(rows, [*self.refused, *narrow], shares, alone)

    def _others(self, choice: Choice, pair: Pair) -> list[str]:
        """Candidates besides widths, in words; low ranks of the pair's own layers."""
        crops = changes_of(choice, SMALLER, self.smaller)
        ranks = (f"{path} {self._ranks(path)}" for path in choice.wide if path in pair.layers)
        return [*map(str, crops), *ranks, *[f"{choice.name} left out"] * choice.can_leave_out]

    def _ranks(self, path: str) -> str:
        every = [level[path].rank for level in self.ranks.values() if path in level]
        return f"of rank {', '.join(map(str, dict.fromkeys(every)))}"


def find(brought: Trained, blocks: Any = "auto") -> Found:
    """What can be narrowed.

    Raises:
        SupernetError: the model cannot be exported, or there is nothing to narrow.
        ConfigError: `blocks` names nothing.
    """
    model, inputs = brought.model, brought.inputs
    wanted = wanted_by(model, blocks)
    brought.reporter.say("find: layers that can be narrowed")
    with brought.reporter.warnings_as_lines(), brought.reporter.bar("finding") as update:
        graph = Graph(model, inputs)
        update(1, 4, "channels that go together")
        pairs, refused = find_pairs(model, graph, wanted)
        update(2, 4, "trying that nothing else changes")
        pairs, unproven = proven(model, pairs, inputs)
        update(3, 4, "blocks")
        choices = choices_of(model, pairs, graph, inputs, wanted)
        choices = with_wide(choices, wide_layers(model, graph, inputs, wanted))
        wide = [path for choice in choices for path in choice.wide]
        found = Found(
            brought=brought,
            choices=tuple(choices),
            refused=(*refused, *unproven),
            smaller=_smaller(model, graph, choices, inputs),
            ranks=blank_factors(model, wide),
        )
    if not any(found.widths.values()) and not wide:
        stays = [*found.refused, *map(too_narrow, found.widths)][:5]
        reasons = "; ".join(dict.fromkeys(f"{layer.name}: {layer.reason}" for layer in stays))
        raise SupernetError(
            f"there is nothing to narrow in {type(model).__name__}: {reasons or 'it has no layer'}"
        )
    return found


def _smaller(
    model: nn.Module, graph: Graph, choices: Sequence[Choice], inputs: tuple[Any, ...]
) -> dict[str, Crop]:
    """Smaller kernels of the layers that one choice makes, in one call, and that are not wide."""
    counts = Counter(path for choice in choices for path in choice.makers)
    wide = {path for choice in choices for path in choice.wide}
    layers = Counter(path_of(graph, layer) for layer in graph.layers)
    crops = blanks(model, [p for p in counts if counts[p] == layers[p] == 1 and p not in wide])
    run = applicable(model, crops, inputs)
    return {path: crop for path, crop in crops.items() if path in run}


def blank_fits(widths: Mapping[Pair, Sequence[int]]) -> Fits:
    """The first channels of every pair and the weights as they are, for what depends on sizes."""
    return {
        pair: {width: Narrowed(torch.arange(width), {}) for width in several}
        for pair, several in widths.items()
    }
