"""From a trained model and a latency limit to a network: the best around the model, fine-tuned.

The model stays as it is: all that is made of it are copies.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from proxylessnas.config import TrainSettings
from proxylessnas.limits import parse_latency
from proxylessnas.pretrained.distil import TEMPERATURE, distilled
from proxylessnas.selection.choose import Choice, Proposal
from proxylessnas.surgery.around import Around, around, limit_of, measured
from proxylessnas.surgery.brought import Records, Trained, plain_copy, try_batches
from proxylessnas.surgery.candidates import KINDS, kinds_of
from proxylessnas.surgery.choosing import recorded_choice
from proxylessnas.surgery.features import FEATURES, compared_inside, features_of
from proxylessnas.surgery.found import find
from proxylessnas.surgery.saved import (
    LEARNED,
    SUMMARY,
    WEIGHTS,
    check_same_call,
    files_of,
    save_network,
)
from proxylessnas.surgery.scores import Distance, distance_for
from proxylessnas.training.copying import copied
from proxylessnas.training.device import Machine
from proxylessnas.training.evaluate import Score, evaluate
from proxylessnas.training.train import Training

FINETUNED, BEGUN = "finetune", "finetune.json"  # the stage, and what it is of
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
    before, after: scores of the validation part, as chosen and fine-tuned.
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
            "score_before_finetuning": self.before.value,
            "score": (self.after or self.before).value,
        }

    def derive(self, latency: str | None = None) -> nn.Module:
        """A copy of the network, plain PyTorch with the model's interface.

        latency: another limit: the network for it, which is not fine-tuned.

        Raises:
            LimitError: no network keeps the limit.
        """
        return copied(self.network if latency is None else self.within(latency).network)

    def within(self, latency: str, *, candidates: Any = KINDS) -> Specialised:
        """The same for another limit; nothing but the networks proposed for it is measured again.

        What it leaves is in a directory of its own within the first one's.

        candidates: kinds of those that were offered, as of `proxylessnas.specialise`: what the
            others are worth is what this network loses.

        Raises:
            ConfigError: it is not understood. LimitError: no network keeps it.
        """
        return within(self.around, latency, candidates)

    def save(self, path: str | Path) -> None:
        """Write the network and its figures into a new directory, see `surgery.saved`.

        Raises:
            RunError: the directory is not new, or cannot be written.
        """
        save_network(Path(path), self.network, self.summary, self.table)

    def finetune(
        self,
        *,
        epochs: float | None = None,
        settings: TrainSettings = FINETUNE,
        features: float = FEATURES,
    ) -> Score:
        """Train the network on `train` with the model as its teacher; the best epoch is kept.

        It begins with the network as it was chosen, whatever it was fine-tuned to before. Where the
        call had an `out`, it is a stage there: killed, it goes on from its last checkpoint to the
        same bits, and finished, it is not done again, unless the settings are others.

        settings: of the training; `teacher_share` of the loss is the distance to the model's
        outputs, and `features` times that inside (`surgery.features`).
        """
        settings = settings if epochs is None else replace(settings, epochs=epochs)
        brought = self.around.brought
        records = brought.records
        with records.store.held():
            _begin_anew_unless_same(records, settings, features)
            if not records.done(FINETUNED):
                title = f"{settings.epochs:.4g} epochs with the model as teacher"
                with brought.stage(FINETUNED, title) as facts:
                    network = self.around.space.network(self.chosen.indices)
                    inside = features_of(self.around.space)
                    with compared_inside(brought, network, inside, features) as distance:
                        job = finetuning(brought, network, settings, distance)
                        records.drive(FINETUNED, job, "fine-tuning")
                    records.store.save_tensors(LEARNED, job.network.state_dict())
                    self._take_learned()
                    assert self.after is not None
                    facts |= {"accuracy": self.after.accuracy, "loss": self.after.loss}
                    facts["files"] = [LEARNED]
            self._take_learned()
            records.store.write_json(SUMMARY, self.summary)
        assert self.after is not None
        words = f"{self.before.value:.4f} -> {self.after.value:.4f}"
        brought.reporter.say(f"  validation score {words}")
        return self.after

    def _take_learned(self) -> None:
        """The weights that fine-tuning left."""
        brought = self.around.brought
        network = self.around.space.network(self.chosen.indices)
        brought.records.store.load_weights(LEARNED, network)
        self.network = network.eval()
        self.after = evaluate(network, brought.task, brought.valid, Machine())


def finetuning(
    brought: Trained,
    network: nn.Module,
    settings: TrainSettings,
    distance: Distance | None = None,
) -> Training:
    """The training of a network made of the model, which teaches it; by its outputs, if by no other
    distance.
    """
    if not any(p.requires_grad for p in network.parameters()):
        brought.reporter.say("  no weight of the model was to be trained: all of its copy's are")
        network.requires_grad_(True)
    task, distance = brought.task, distance or distance_for(brought.task.loss, TEMPERATURE)
    if share := settings.teacher_share:
        task = distilled(task, brought.model, share=share, distance=distance)
    return Training(
        network=network,
        task=task,
        train=brought.train,
        valid=brought.valid,
        settings=settings,
        seed=brought.seed,
        may_skip=True,
        stage=FINETUNED,
    )


def _begin_anew_unless_same(records: Records, settings: TrainSettings, features: float) -> None:
    """Forget a fine-tuning of other settings, or of another network."""
    store = records.store
    now = {"settings": json.loads(json.dumps(asdict(settings))), "of": store.digest(WEIGHTS)}
    now["features"] = features
    if store.has(BEGUN) and store.read_json(BEGUN) == now:
        return
    records.undo(FINETUNED)
    for name in (LEARNED, f"{LEARNED}.sha256"):
        store.remove(name)
    store.write_json(BEGUN, now)


# --- the path to it ---


def specialise_model(
    brought: Trained, target_latency: str, blocks: Any = "auto", candidates: Any = KINDS
) -> Specialised:
    """The network of a trained model for a limit; see `proxylessnas.specialise`.

    What the stages leave is in the store of `brought.records`; one that is done is not done again.
    """
    parse_latency(target_latency)
    brought = replace(brought, model=plain_copy(brought.model))
    try_batches(brought)
    check_same_call(brought, target_latency, blocks, kinds_of(candidates))
    found = find(brought, blocks, candidates)
    latencies = measured(found)
    limit = limit_of(target_latency, latencies, brought)  # before anything is fitted
    return _chosen(around(found, latencies), limit)


def within(space: Around, latency: str, candidates: Any = KINDS) -> Specialised:
    """The network for one limit of several, in a store of its own. candidates: kinds of them.

    Raises:
        ConfigError: the limit is not understood. LimitError: no network keeps it.
    """
    limit, brought, kinds = space.limit_of(latency), space.brought, kinds_of(candidates)
    folder = "-".join((f"within/{limit:.6g}ms", *(kinds if kinds != KINDS else ())))
    brought = replace(brought, records=brought.records.below(folder))
    with brought.records.store.held():
        return _chosen(replace(space, brought=brought, space=space.space.offering(kinds)), limit)


def _chosen(space: Around, limit: float) -> Specialised:
    """The network for the limit; what the stages leave is in the records of `space.brought`.

    Raises:
        LimitError: no network of the space keeps it, as measured.
    """
    brought = space.brought
    store = brought.records.store

    def keep(choice: Choice) -> dict[str, Any]:
        files = files_of(space.space.network(choice.chosen.indices), space.table)
        for name, content in files.items():
            store.write(name, content)
        return {"files": list(files)}

    choice = recorded_choice(space, limit, keep)
    network = space.space.network(choice.chosen.indices)
    before = evaluate(network, brought.task, brought.valid, Machine())
    made = Specialised(around=space, limit_ms=limit, network=network, choice=choice, before=before)
    if brought.records.done(FINETUNED):
        made._take_learned()
    store.write_json(SUMMARY, made.summary)
    return made
