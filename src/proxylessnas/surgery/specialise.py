"""From a trained model and a latency limit to a network: found, fitted, measured, chosen.

The model stays as it is: all that is made of it are copies. Choosing is the path of the trained
family (`pretrained/`): scores of single replacements are a prior, the most probable networks within
the limit are decoded exactly, compared by their outputs, measured, and the cost model corrected.
Gates are not trained here: α is the prior.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from proxylessnas.config import DeriveSettings, TrainSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Indices
from proxylessnas.core.derive import TOLERANCE, Choice, Proposal, choose
from proxylessnas.errors import LimitError, SupernetError
from proxylessnas.hardware.measure import Canary, measure_networks
from proxylessnas.io.console import Reporter
from proxylessnas.limits import parse_latency
from proxylessnas.pretrained.distil import TEMPERATURE, distilled
from proxylessnas.pretrained.scores import Scores, tempered
from proxylessnas.pretrained.space import prior, rescored
from proxylessnas.seeds import derive_seed
from proxylessnas.surgery.blocks import table_of_layers, too_narrow, wanted_by
from proxylessnas.surgery.brought import Trained, inputs_of, try_batches, unwrapped
from proxylessnas.surgery.fits import narrow_fits
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.latency import latency_costs
from proxylessnas.surgery.narrow import proven
from proxylessnas.surgery.pairs import find_pairs
from proxylessnas.surgery.saved import save_network
from proxylessnas.surgery.scores import distance_for, distances, replacement_scores
from proxylessnas.surgery.space import Space, choices_of, widths_of, with_candidates
from proxylessnas.training.callbacks import ProgressBar
from proxylessnas.training.copying import copied
from proxylessnas.training.device import Machine
from proxylessnas.training.evaluate import Score, evaluate
from proxylessnas.training.freezing import evaluating
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import call
from proxylessnas.training.train import Training

SCORE_BATCHES = 8  # of the validation part, whose inputs candidates are scored on
RESCORED = 2  # times that they are scored again around the network that is chosen
DERIVE = DeriveSettings(top_k=10, measure_best=3, rounds=6, recalibrate_images=0)
# AdamW's rate depends little on what the model is.
FINETUNE = TrainSettings(
    epochs=3,
    optimizer="adamw",
    learning_rate=3e-4,
    warmup_epochs=0.1,
    frozen_statistics=True,
    keep_best="epochs",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Around:
    """The space around a model, measured and scored.

    table: of the layers, for people. costs: latency, without a limit. model_ms: the model's own.
    batches: inputs that networks are compared on, and scores: of single replacements there.
    """

    brought: Trained
    space: Space
    table: str
    costs: Costs
    model_ms: float
    batches: tuple[Any, ...]
    scores: Scores


@dataclass(kw_only=True, eq=False)
class Specialised:
    """A network made of a trained model for one limit.

    around: the space that it was chosen from. limit_ms: the limit. network: the chosen network,
    fine-tuned once `finetune` was called. chosen: with its predicted and measured latency.
    """

    around: Around
    limit_ms: float
    network: nn.Module
    choice: Choice
    before: Score
    after: Score | None = None

    @property
    def chosen(self) -> Proposal:
        return self.choice.chosen

    @property
    def table(self) -> str:
        """Every layer, with its candidates or why it stays."""
        return self.around.table

    @property
    def architecture(self) -> dict[str, str]:
        """What was chosen, by the name of the block or the layer."""
        return self.around.space.chosen(self.chosen.indices)

    @property
    def measured_ms(self) -> float:
        """The latency of the chosen network on the runtime."""
        assert self.chosen.measured_ms is not None
        return self.chosen.measured_ms

    @property
    def summary(self) -> dict[str, Any]:
        """All figures: latencies in ms, scores (accuracy, or negative loss) of the valid part."""
        return {
            "architecture": self.architecture,
            "model_latency_ms": self.around.model_ms,
            "limit_ms": self.limit_ms,
            "predicted_latency_ms": self.chosen.costs[0],
            "measured_latency_ms": self.measured_ms,
            "noise_pct": 100 * self.chosen.noise,
            "rounds": self.choice.rounds,
            "correction": self.choice.correction,
            "distance": -self.chosen.score,
            "score_before_finetuning": self.before.value[0],
            "score": (self.after or self.before).value[0],
        }

    def derive(self, latency: str | None = None) -> nn.Module:
        """A copy of the network, plain PyTorch with the model's interface.

        latency: another limit: the network for it, which is not fine-tuned.

        Raises:
            LimitError: no network keeps the limit.
        """
        return copied(self.network if latency is None else self.within(latency).network)

    def within(self, latency: str) -> Specialised:
        """The same for another limit; nothing but the networks proposed for it is measured again.

        Raises:
            ConfigError: it is not understood. LimitError: no network keeps it.
        """
        return choose_within(self.around, latency)

    def save(self, path: str | Path) -> None:
        """Write the network and its figures into a new directory, see `surgery.saved`.

        Raises:
            RunError: the directory is not new, or cannot be written.
        """
        save_network(Path(path), self.network, self.summary, self.table)

    def finetune(self, *, epochs: float | None = None, settings: TrainSettings = FINETUNE) -> Score:
        """Train the network on `train` with the model as its teacher; the best epoch is kept.

        settings: of the training; `teacher_share` of the loss is the distance to the model's
        outputs.
        """
        settings = settings if epochs is None else replace(settings, epochs=epochs)
        brought, machine = self.around.brought, Machine()
        share, distance = settings.teacher_share, distance_for(brought.task.loss, TEMPERATURE)
        task = brought.task
        if share:
            task = distilled(task, brought.model, share=share, distance=distance)
        job = Training(
            network=self.network,
            task=task,
            train=brought.train,
            valid=brought.valid,
            settings=settings,
            seed=brought.seed,
            may_skip=True,
            stage="finetune",
        )
        with brought.reporter.bar("fine-tuning") as update:
            run_loop(job, callbacks=[ProgressBar(update)])
        self.network = job.network.eval()
        self.after = evaluate(self.network, brought.task, brought.valid, machine)
        words = f"{self.before.value[0]:.4f} -> {self.after.value[0]:.4f}"
        brought.reporter.say(f"  validation score {words}")
        return self.after


# --- the path to it ---


def specialise_model(brought: Trained, target_latency: str, blocks: Any = "auto") -> Specialised:
    """The network of a trained model for a limit; see `proxylessnas.specialise`."""
    parse_latency(target_latency)
    brought = replace(brought, model=copied(unwrapped(brought.model)).cpu().eval())
    wanted = wanted_by(brought.model, blocks)
    try_batches(brought)
    return choose_within(space_around(brought, wanted), target_latency)


def space_around(brought: Trained, wanted: Callable[[str], bool]) -> Around:
    """Find, fit, measure and score.

    Raises:
        SupernetError: the model cannot be exported, or there is nothing to narrow.
    """
    inputs, reporter = brought.inputs, brought.reporter
    with _saying(reporter, "find: layers that can be narrowed"):
        space, table = _space(brought, wanted)
    reporter.say(table)
    words = f"measure: candidates of {len(space.names)} choices"
    with _saying(reporter, words), reporter.bar("measuring") as update:
        costs, model_ms = latency_costs(
            space, inputs, brought.runtime, brought.measure, seed=brought.seed, progress=update
        )
    (low, high), *_ = costs.range(space.mask)
    reporter.say(f"  the model takes {model_ms:.4g} ms, networks around it {low:.4g} to {high:.4g}")
    with _saying(reporter, "score: what candidates change in the model's outputs"):
        batches = tuple(inputs_of(brought.valid, SCORE_BATCHES))
        with reporter.bar("scoring") as update:
            distance = distance_for(brought.task.loss)
            scores = replacement_scores(space, batches, distance, progress=update)
    return Around(
        brought=brought,
        space=space,
        table=table,
        costs=costs,
        model_ms=model_ms,
        batches=batches,
        scores=scores,
    )


def _space(brought: Trained, wanted: Callable[[str], bool]) -> tuple[Space, str]:
    """The space, and the table of all layers."""
    model, inputs = brought.model, brought.inputs
    found, refused = find_pairs(model, Graph(model, inputs), wanted)
    found, unproven = proven(model, found, inputs)
    choices = choices_of(model, found, inputs, wanted)
    widths = widths_of(choices)
    narrow = [too_narrow(pair) for pair, every in widths.items() if not every]
    refused = [*refused, *unproven, *narrow]
    rows = [
        (pair, widths[pair], choice.name if choice.can_leave_out else "")
        for choice in choices
        for pair in choice.pairs
        if widths[pair]
    ]
    table = table_of_layers(rows, refused)
    if not rows:
        reasons = "; ".join(dict.fromkeys(f"{r.name}: {r.reason}" for r in refused[:5]))
        raise SupernetError(
            f"there is nothing to narrow in {type(model).__name__}: {reasons or 'it has no layer'}"
        )
    fits = narrow_fits(model, widths, inputs_of(brought.train))
    every = [with_candidates(choice, fits) for choice in choices]
    return Space(model, [choice for choice in every if len(choice.candidates) > 1]), table


def choose_within(around: Around, latency: str) -> Specialised:
    """The network for one limit.

    Raises:
        LimitError: no network of the space keeps it, as predicted or as measured.
    """
    brought, space = around.brought, around.space
    value, relative = parse_latency(latency)
    limit = value * around.model_ms if relative else value
    costs = around.costs.limited({"latency": limit})
    _check_limit(around, costs, limit)
    with _saying(brought.reporter, f"choose: the best network within {limit:.4g} ms"):
        distance = distance_for(brought.task.loss)
        batches = around.batches
        scores = rescored(
            space,
            lambda names: replacement_scores(space, batches, distance, around=names),
            around.scores,
            costs,
            rounds=RESCORED,
        )
        # Without the costs: nothing is learned from here, and decoding keeps the limit exactly.
        space.alpha = prior(space, tempered(scores))
        choice = _choose(around, costs)
    chosen = choice.chosen
    assert chosen.measured_ms is not None
    brought.reporter.say(
        f"  predicted {chosen.costs[0]:.4g} ms, measured {chosen.measured_ms:.4g} ms "
        f"(± {100 * chosen.noise:.1f} %), limit {limit:.4g} ms"
    )
    if chosen.measured_ms > limit * (1 + max(TOLERANCE, chosen.noise)):
        raise LimitError(
            f"no network keeps {limit:.4g} ms: the fastest of those that were predicted to takes "
            f"{chosen.measured_ms:.4g} ms on {brought.runtime.name}; {_WIDER}"
        )
    network = space.network(chosen.indices)
    before = evaluate(network, brought.task, brought.valid, Machine())
    return Specialised(around=around, limit_ms=limit, network=network, choice=choice, before=before)


_WIDER = "give a higher limit, or blocks='auto' where blocks= left layers out"


def _check_limit(around: Around, costs: Costs, limit: float) -> None:
    (low, _), *_ = costs.range(around.space.mask)
    if limit < low:
        raise LimitError(
            f"no network around the model keeps {limit:.4g} ms: the reachable range is {low:.4g} "
            f"to {around.model_ms:.4g} ms ({low / around.model_ms:.2f}x to 1x); {_WIDER}"
        )


def _choose(around: Around, costs: Costs) -> Choice:
    """Decode, compare by the outputs, measure, correct."""
    brought, space = around.brought, around.space
    distance = distance_for(brought.task.loss)
    with evaluating(brought.model):
        wanted = [call(brought.model, batch) for batch in around.batches]

    def score(indices: Indices) -> tuple[float, tuple[float, ...]]:
        moved = distances(space.network(indices), around.batches, wanted, distance)
        return -sum(moved) / len(moved), tuple(-value for value in moved)

    def measure(networks: Sequence[Indices]) -> list[tuple[float, float]]:
        report = measure_networks(
            {str(i): space.network(indices) for i, indices in enumerate(networks)},
            brought.runtime,
            brought.inputs,
            brought.measure,
            # The device may be slower or faster now than when the candidates were measured.
            canary=Canary(network=brought.model, then_ms=around.model_ms),
            seed=brought.seed,
        )
        return [report[str(i)].value for i in range(len(networks))]

    return choose(
        space,
        costs,
        DERIVE,
        score=score,
        measure=measure,
        seed=derive_seed(brought.seed, "proposals"),
    )


@contextmanager
def _saying(reporter: Reporter, words: str) -> Iterator[None]:
    reporter.say(words)
    with reporter.warnings_as_lines():
        yield
