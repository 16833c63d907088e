"""The space around a trained model, stage by stage: found, measured, fitted, scored.

What a stage made is left in a store, and read back from there: a call that was killed goes on from
the stages that it finished, with the same bits. Latency comes first, because it does not depend on
weights: a limit that cannot be kept is refused before anything is fitted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from proxylessnas.errors import LimitError, RunError
from proxylessnas.limits import parse_latency
from proxylessnas.pretrained.scores import Scores
from proxylessnas.surgery.brought import Trained, inputs_of
from proxylessnas.surgery.candidates import SMALLER, widths_of
from proxylessnas.surgery.cost_model import CostModel
from proxylessnas.surgery.fits import BATCHES, WITHIN, narrow_fits
from proxylessnas.surgery.found import Found, blank_fits
from proxylessnas.surgery.kernels import cropped
from proxylessnas.surgery.latency import Latencies, latencies_of, patient
from proxylessnas.surgery.lowrank import fitted_factors
from proxylessnas.surgery.narrow import narrowed
from proxylessnas.surgery.saved import fits_of, fitted_changes, tensors_of_fits
from proxylessnas.surgery.scores import distance_for, replacement_scores
from proxylessnas.surgery.space import Space
from proxylessnas.training.task import batch_size

LATENCIES, FITS, SCORES = "latencies.json", "fits.safetensors", "scores.json"
SCORE_BATCHES = 8  # of the validation part, at most


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

    @cached_property
    def cost_model(self) -> CostModel:
        """The latency of every network."""
        return CostModel(self.space, self.latencies)

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


def measured(found: Found) -> Latencies:
    """The stage `measure`.

    Raises:
        MeasurementError: the runtime cannot run the model, or one of its layers.
        RunError: what was measured before is of other candidates.
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
                latencies = latencies_of(
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
    facts = brought.records.store.read_json(LATENCIES)
    if set(facts.get("changed", {})) != set(space.levels) or "whole" not in facts:
        raise RunError(
            f"{brought.records.store.file(LATENCIES)} is of other candidates, by another version "
            "of proxylessnas; choose another `out`"
        )
    return Latencies.from_json(facts)


def limit_of(latency: str, latencies: Latencies, brought: Trained) -> float:
    """A limit in milliseconds.

    Raises:
        ConfigError: it is not understood. LimitError: no network keeps it.
    """
    value, relative = parse_latency(latency)
    limit = value * latencies.model_ms if relative else value
    low, own = latencies.least_ms, latencies.model_ms
    if limit < low:
        raise LimitError(
            f"no network around the model keeps {limit:.4g} ms: the reachable range is {low:.4g} "
            f"to {own:.4g} ms ({low / own:.2f}x to 1x); {brought.wider}"
        )
    if limit >= own:
        brought.reporter.say(f"  the model itself keeps {limit:.4g} ms: nothing has to be narrowed")
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
            few = list(inputs_of(brought.train, WITHIN))
            with reporter.bar("fitting layers") as update:
                update(0, 2, "smaller kernels")
                smaller = cropped(brought.model, found.smaller.values(), few)
                update(1, 2, "low ranks")
                enough = inputs_of(brought.train, BATCHES)
                ranks = fitted_factors(brought.model, found.ranks, enough)
            store.save_tensors(FITS, tensors_of_fits(fits, {SMALLER: smaller, **ranks}))
            facts["files"] = [FITS]
    tensors = store.load_tensors(FITS)[0]
    space = found.space(fits_of(widths, tensors), fitted_changes(found.changes, tensors), brought)
    slower = space.leave_out_slower(CostModel(space, latencies).around(space.own))
    if slower:
        words = ", ".join(f"{name} {candidate}" for name, candidate in slower[:4])
        more = f" and {len(slower) - 4} more" if len(slower) > 4 else ""
        reporter.say(f"  left out, because they take no less time: {words}{more}")
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
