"""The space around a trained model, stage by stage: found, measured, fitted, scored.

What a stage made is left in a store, and read back from there: a call that was killed goes on from
the stages that it finished, with the same bits. Latency comes first, because it does not depend on
weights: a limit that cannot be kept is refused before anything is fitted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from proxylessnas.core.costs import Costs
from proxylessnas.errors import LimitError, SupernetError
from proxylessnas.limits import parse_latency
from proxylessnas.pretrained.scores import Scores
from proxylessnas.surgery.blocks import table_of_layers, too_narrow, wanted_by
from proxylessnas.surgery.brought import Trained, inputs_of
from proxylessnas.surgery.finding import find_pairs, path_of
from proxylessnas.surgery.fits import WITHIN, narrow_fits
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.kernels import Crop, blanks, cropped
from proxylessnas.surgery.latency import Latencies, latency_costs, patient
from proxylessnas.surgery.narrow import Narrowed, narrowed, proven
from proxylessnas.surgery.pairs import Pair, Refused
from proxylessnas.surgery.saved import crops_of, fits_of, tensors_of_fits
from proxylessnas.surgery.scores import distance_for, replacement_scores
from proxylessnas.surgery.space import Choice, Space, choices_of, widths_of, with_candidates
from proxylessnas.training.task import batch_size

LATENCIES, FITS, SCORES = "latencies.json", "fits.safetensors", "scores.json"
MARGIN = 0.98  # a limit above this share of the smallest network's latency may still be kept
SCORE_BATCHES = 8  # of the validation part, at most

Fits = Mapping[Pair, Mapping[int, Narrowed]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What can be narrowed in a model, whatever its weights are.

    choices: without candidates. refused: the layers that stay. crops: of the layers whose kernel
    can be smaller.
    """

    brought: Trained
    choices: tuple[Choice, ...]
    refused: tuple[Refused, ...]
    crops: Mapping[str, Crop]

    @cached_property
    def widths(self) -> dict[Pair, list[int]]:
        return widths_of(self.choices)

    def space(self, fits: Fits, crops: Mapping[str, Crop], brought: Trained | None = None) -> Space:
        """The space of these fits. brought: with a model of other weights."""
        every = [with_candidates(choice, fits, crops) for choice in self.choices]
        model = (brought or self.brought).model
        return Space(model, [choice for choice in every if len(choice.candidates) > 1])

    @cached_property
    def blank(self) -> Space:
        """The space of networks that are as large as the fitted ones, and know nothing."""
        return self.space(blank_fits(self.widths), self.crops)

    def table(self, shares: Mapping[str, float]) -> str:
        """Every layer, with its share of the latency, its candidates or why it stays."""
        rows = [
            (pair, self.widths[pair], self._others(choice))
            for choice in self.choices
            for pair in choice.pairs
            if self.widths[pair]
        ]
        narrow = [too_narrow(pair) for pair, every in self.widths.items() if not every]
        return table_of_layers(rows, [*self.refused, *narrow], shares)

    def _others(self, choice: Choice) -> list[str]:
        """Candidates besides widths, in words."""
        crops = [f"{path} with a smaller kernel" for path in choice.makers if path in self.crops]
        return crops + [f"{choice.name} left out"] * choice.can_leave_out


@dataclass(frozen=True, kw_only=True, eq=False)
class Around:
    """The space around a model, measured and scored.

    table: of the layers, for people. batches: inputs that networks are compared on, and scores: of
    single replacements there.
    """

    brought: Trained
    space: Space
    table: str
    latencies: Latencies
    batches: tuple[Any, ...]
    scores: Scores

    @property
    def costs(self) -> Costs:
        """Latency, without a limit."""
        return self.latencies.costs

    @property
    def model_ms(self) -> float:
        """The model's own latency."""
        return self.latencies.model_ms

    def limit_of(self, latency: str) -> float:
        """A limit in milliseconds.

        Raises:
            ConfigError: it is not understood. LimitError: no network keeps it.
        """
        return limit_of(latency, self.latencies, self.brought)


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
        counts = Counter(path for choice in choices for path in choice.makers)
        layers = Counter(path_of(graph, layer) for layer in graph.layers)
        crops = blanks(model, [p for p in counts if counts[p] == layers[p] == 1], inputs)
    found = Found(
        brought=brought, choices=tuple(choices), refused=(*refused, *unproven), crops=crops
    )
    if not any(found.widths.values()):
        stays = [*found.refused, *map(too_narrow, found.widths)][:5]
        reasons = "; ".join(dict.fromkeys(f"{layer.name}: {layer.reason}" for layer in stays))
        raise SupernetError(
            f"there is nothing to narrow in {type(model).__name__}: {reasons or 'it has no layer'}"
        )
    return found


def measured(found: Found) -> Latencies:
    """The stage `measure`.

    Raises:
        MeasurementError: the runtime cannot run the model, or one of its layers.
    """
    brought, space = found.brought, found.blank
    if not brought.records.done("measure"):
        title = f"candidates of {len(space.names)} choices on {brought.runtime.name}"
        with brought.stage("measure", title) as facts:
            settings = patient(brought.model, brought.inputs, brought.runtime, brought.measure)
            if settings != brought.measure:
                brought.reporter.say(
                    f"  networks take long: {settings.network_rounds} visits to each, not "
                    f"{brought.measure.network_rounds}"
                )
            with brought.reporter.bar("measuring") as update:
                latencies = latency_costs(
                    space,
                    brought.inputs,
                    brought.runtime,
                    settings,
                    seed=brought.seed,
                    progress=update,
                )
            brought.records.store.write_json(LATENCIES, latencies.to_json())
            low, high = latencies.least_ms, latencies.model_ms
            brought.reporter.say(found.table(latencies.shares))
            brought.reporter.say(
                f"  the model takes {high:.4g} ms, the smallest network around it {low:.4g}"
            )
            facts |= {"files": [LATENCIES], "range_ms": [low, high]}
    return Latencies.from_json(brought.records.store.read_json(LATENCIES))


def limit_of(latency: str, latencies: Latencies, brought: Trained) -> float:
    """A limit in milliseconds.

    Raises:
        ConfigError: it is not understood. LimitError: no network keeps it.
    """
    value, relative = parse_latency(latency)
    limit = value * latencies.model_ms if relative else value
    low, own = latencies.least_ms, latencies.model_ms
    if limit < MARGIN * low:
        raise LimitError(
            f"no network around the model keeps {limit:.4g} ms: the reachable range is {low:.4g} "
            f"to {own:.4g} ms ({low / own:.2f}x to 1x); {brought.wider}"
        )
    return limit


def around(found: Found, latencies: Latencies, brought: Trained | None = None) -> Around:
    """The stages `candidates` and `scores`.

    brought: with the model whose weights are fitted, where that is another one than was measured.
    """
    brought = brought or found.brought
    store, reporter = brought.records.store, brought.reporter
    widths = found.widths
    if not brought.records.done("candidates"):
        with brought.stage("candidates", "narrowed by elimination and least squares") as facts:
            with reporter.bar("fitting") as update:
                fits = narrow_fits(brought.model, widths, inputs_of(brought.train), update)
            crops = cropped(brought.model, found.crops.values(), inputs_of(brought.train, WITHIN))
            store.save_tensors(FITS, tensors_of_fits(fits, crops))
            facts["files"] = [FITS]
    tensors = store.load_tensors(FITS)[0]
    space = found.space(fits_of(widths, tensors), crops_of(found.crops, tensors), brought)
    batches = _first(brought)
    if not brought.records.done("scores"):
        with brought.stage("scores", "what candidates change in the model's outputs") as facts:
            with reporter.bar("scoring") as update:
                distance = distance_for(brought.task.loss)
                scores = replacement_scores(space, batches, distance, progress=update)
            store.write_json(SCORES, scores)
            facts["files"] = [SCORES]
    return Around(
        brought=brought,
        space=space,
        table=found.table(latencies.shares),
        latencies=latencies,
        batches=batches,
        scores=store.read_json(SCORES),
    )


def _first(brought: Trained) -> tuple[Any, ...]:
    """Inputs of the validation part, as many as scores are taken on."""
    batches: list[Any] = []
    examples = 0
    for inputs in inputs_of(brought.valid, SCORE_BATCHES):
        batches.append(inputs)
        examples += batch_size(inputs)
        if examples >= brought.scored:
            break
    return tuple(batches)


def blank_fits(widths: Mapping[Pair, Sequence[int]]) -> Fits:
    """The first channels of every pair and the weights as they are, for what depends on sizes."""
    return {
        pair: {width: Narrowed(torch.arange(width), {}) for width in several}
        for pair, several in widths.items()
    }


# --- what the search is compared with ---


def uniform_network(
    found: Found, share: float, inputs: Iterable[Any] | None = None, brought: Trained | None = None
) -> nn.Module:
    """The model with all pairs narrowed alike to this share of their channels.

    inputs: of training batches, that it is fitted to; None: it only has the size. brought: as in
    `around`.
    """
    model = (brought or found.brought).model
    widths = widths_of(found.choices, (share,))
    fits = blank_fits(widths) if inputs is None else narrow_fits(model, widths, inputs)
    cuts = [(pair, kept) for pair, by_width in fits.items() for kept in by_width.values()]
    return narrowed(model, cuts).eval()
