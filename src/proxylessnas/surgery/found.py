"""What can be narrowed in a model, whatever its weights are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from proxylessnas.errors import SupernetError
from proxylessnas.pretrained.candidates import SHARES
from proxylessnas.surgery.blocks import table_of_layers, too_narrow, wanted_by
from proxylessnas.surgery.brought import Trained
from proxylessnas.surgery.candidates import (
    KINDS,
    LEFT_OUT,
    LOW_RANK,
    NARROWER,
    SMALLER,
    Changes,
    Choice,
    changes_of,
    choices_of,
    kinds_of,
    widths_of,
    with_candidates,
    with_wide,
)
from proxylessnas.surgery.finding import find_pairs, path_of
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.kernels import Crop, blanks
from proxylessnas.surgery.lowrank import Factors, blank_factors, too_large, wide_layers
from proxylessnas.surgery.narrow import Narrowed
from proxylessnas.surgery.pairs import Pair, Refused
from proxylessnas.surgery.proof import applicable, proven
from proxylessnas.surgery.space import Space

Fits = Mapping[Pair, Mapping[int, Narrowed]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What can be narrowed in a model, whatever its weights are.

    choices: without candidates. refused: the layers that stay. smaller: kernels, and ranks of wide
    layers by their level, by the layer's path; not fitted. kinds: of the candidates.
    """

    brought: Trained
    choices: tuple[Choice, ...]
    refused: tuple[Refused, ...]
    smaller: Mapping[str, Crop]
    ranks: Mapping[str, Mapping[str, Factors]]
    kinds: tuple[str, ...] = KINDS

    @cached_property
    def changes(self) -> Changes:
        return {SMALLER: self.smaller, **self.ranks}

    @cached_property
    def widths(self) -> dict[Pair, list[int]]:
        return widths_of(self.choices, SHARES if NARROWER in self.kinds else ())

    def space(self, fits: Fits, changes: Changes, brought: Trained | None = None) -> Space:
        """The space of these fits. brought: with a model of other weights."""
        return Space((brought or self.brought).model, self.with_candidates(fits, changes))

    def with_candidates(self, fits: Fits, changes: Changes) -> list[Choice]:
        """The choices that have candidates besides the model's own layers."""
        every = [with_candidates(choice, fits, changes) for choice in self.choices]
        return [choice for choice in every if len(choice.candidates) > 1]

    @cached_property
    def blank(self) -> Space:
        """The space of networks that are as large as the fitted ones, and know nothing."""
        return self.space(blank_fits(self.widths), self.changes)

    def table(self, shares: Mapping[str, float]) -> str:
        """Every layer, with its share of the latency, its candidates or why it stays."""
        every = [
            (pair, self.widths[pair], self._others(choice, pair))
            for choice in self.choices
            for pair in choice.pairs
        ]
        rows = [row for row in every if row[1] or row[2]]
        stay = [self.stays(pair) for pair, *candidates in every if not any(candidates)]
        alone = {c.name: self._ranks(c.name) for c in self.choices if not c.pairs}
        return table_of_layers(rows, [*self.refused, *stay], shares, alone)

    def stays(self, pair: Pair) -> Refused:
        """A pair without candidates, and why."""
        if NARROWER in self.kinds:
            return too_narrow(pair)
        reason = f"{NARROWER!r} is not among candidates="
        return Refused(name=pair.name, kind=pair.kind, shape=pair.shape, reason=reason)

    def _others(self, choice: Choice, pair: Pair) -> list[str]:
        """Candidates besides widths, in words; low ranks of the pair's own layers."""
        crops = changes_of(choice, SMALLER, self.smaller)
        ranks = [f"{path} {self._ranks(path)}" for path in choice.wide if path in pair.layers]
        if LOW_RANK in self.kinds:
            layers = {path: self.brought.model.get_submodule(path) for path in pair.producers}
            large = {path: too_large(layer) for path, layer in layers.items()}
            ranks += [f"{path} of no low rank ({size})" for path, size in large.items() if size]
        return [*map(str, crops), *ranks, *[f"{choice.name} left out"] * choice.can_leave_out]

    def _ranks(self, path: str) -> str:
        every = [level[path].rank for level in self.ranks.values() if path in level]
        return f"of rank {', '.join(map(str, dict.fromkeys(every)))}"


def find(brought: Trained, blocks: Any = "auto", candidates: Any = KINDS) -> Found:
    """What can be narrowed. candidates: the kinds that are offered.

    Raises:
        SupernetError: the model cannot be exported, or there is nothing to narrow.
        ConfigError: `blocks` or `candidates` names nothing.
    """
    model, inputs = brought.model, brought.inputs
    wanted, kinds = wanted_by(model, blocks), kinds_of(candidates)
    brought.reporter.say("find: layers that can be narrowed")
    with brought.reporter.warnings_as_lines(), brought.reporter.bar("finding") as update:
        graph = Graph(model, inputs)
        update(1, 4, "channels that go together")
        pairs, refused = find_pairs(model, graph, wanted)
        update(2, 4, "trying that nothing else changes")
        pairs, unproven = proven(model, pairs, inputs)
        update(3, 4, "blocks")
        choices = choices_of(model, pairs, graph, inputs, wanted)
        wide = wide_layers(model, graph, inputs, wanted) if LOW_RANK in kinds else []
        choices = with_wide(choices, wide)
        if LEFT_OUT not in kinds:
            choices = [replace(choice, can_leave_out=False) for choice in choices]
        smaller = _smaller(model, graph, choices, inputs) if SMALLER in kinds else {}
        found = Found(
            brought=brought,
            choices=tuple(choices),
            refused=(*refused, *unproven),
            smaller=smaller,
            ranks=blank_factors(model, wide),
            kinds=kinds,
        )
    if not found.with_candidates(blank_fits(found.widths), found.changes):
        stays = [*found.refused, *map(found.stays, found.widths)][:5]
        reasons = "; ".join(dict.fromkeys(f"{layer.name}: {layer.reason}" for layer in stays))
        none = "it has no layer" if blocks == "auto" else "`blocks` names none of its layers"
        raise SupernetError(
            f"there is nothing to narrow in {type(model).__name__}: {reasons or none}"
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
