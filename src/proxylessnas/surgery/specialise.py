"""From a trained model and a latency limit to a network: the best around the model, fine-tuned.

The model stays as it is: all that is made of it are copies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from proxylessnas.config import TrainSettings
from proxylessnas.limits import parse_latency
from proxylessnas.pretrained.distil import TEMPERATURE, distilled
from proxylessnas.selection.choose import Choice, Proposal
from proxylessnas.surgery.around import Around, around, find, limit_of, measured
from proxylessnas.surgery.brought import Trained, plain_copy, try_batches
from proxylessnas.surgery.choosing import chosen_within, recorded_choice
from proxylessnas.surgery.saved import check_same_call, files_of, save_network
from proxylessnas.surgery.scores import distance_for
from proxylessnas.training.callbacks import ProgressBar
from proxylessnas.training.copying import copied
from proxylessnas.training.device import Machine
from proxylessnas.training.evaluate import Score, evaluate
from proxylessnas.training.loop import run_loop
from proxylessnas.training.train import Training

# AdamW's rate depends little on what the model is.
FINETUNE = TrainSettings(
    epochs=3,
    optimizer="adamw",
    learning_rate=3e-4,
    warmup_epochs=0.1,
    frozen_statistics=True,
    keep_best="epochs",
)


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
            "attributes": self.around.space.attributes(self.chosen.indices),
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
        limit = self.around.limit_of(latency)
        return _specialised(self.around, limit, chosen_within(self.around, limit))

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
    """The network of a trained model for a limit; see `proxylessnas.specialise`.

    What the stages leave is in the store of `brought.records`; one that is done is not done again.
    """
    parse_latency(target_latency)
    brought = replace(brought, model=plain_copy(brought.model))
    try_batches(brought)
    check_same_call(brought, target_latency, blocks)
    found = find(brought, blocks)
    latencies = measured(found)
    limit_of(target_latency, latencies, brought)  # before anything is fitted
    space = around(found, latencies)
    limit = space.limit_of(target_latency)
    made: list[Specialised] = []

    def keep(choice: Choice) -> dict[str, Any]:
        made.append(_specialised(space, limit, choice))
        files = files_of(made[0].network, made[0].summary, made[0].table)
        for name, content in files.items():
            brought.records.store.write(name, content)
        return {"files": list(files)}

    choice = recorded_choice(space, limit, keep)
    return made[0] if made else _specialised(space, limit, choice)


def _specialised(space: Around, limit: float, choice: Choice) -> Specialised:
    brought = space.brought
    network = space.space.network(choice.chosen.indices)
    before = evaluate(network, brought.task, brought.valid, Machine())
    return Specialised(around=space, limit_ms=limit, network=network, choice=choice, before=before)
