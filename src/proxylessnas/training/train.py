"""Training and evaluating one plain network; renewing its BN statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.config import TrainSettings
from proxylessnas.data import Batches, BatchStream
from proxylessnas.errors import ConfigError
from proxylessnas.seeds import derive_seed
from proxylessnas.training.averages import BestWeights, WeightAverage
from proxylessnas.training.callbacks import StepMetrics
from proxylessnas.training.device import Machine
from proxylessnas.training.evaluate import batch_norms, evaluate
from proxylessnas.training.faults import State, guarded
from proxylessnas.training.freezing import BufferSnapshot, undisturbed
from proxylessnas.training.job import Job, Optimizers
from proxylessnas.training.mixing import make_mix
from proxylessnas.training.optimizers import adamw, gradients, scheduled, sgd, whole_batch
from proxylessnas.training.ranks import ALONE, Ranks, running_statistics
from proxylessnas.training.task import Task, not_numbers


@dataclass
class Training(Job):
    """One network's training; `training.loop.run_loop` takes its steps.

    valid: what the network is scored on after every epoch, where the settings keep the best.
    ranks: of several processes each takes its slice of every batch.
    may_skip: whether a batch may leave parameters out, as path drop does; for several ranks.
    stage: the name of the run's stage, in metrics.
    """

    network: nn.Module
    task: Task
    train: Batches
    settings: TrainSettings
    seed: int = 0
    machine: Machine = field(default_factory=Machine)
    ranks: Ranks = ALONE
    may_skip: bool = False
    stage: str = "train"
    valid: Batches | None = None

    def __post_init__(self) -> None:
        s = self.settings
        if s.sync_batch_norm:
            self.network = synchronised(self.network, self.machine)
        self.begin(self.network, max(1, round(s.epochs * len(self.train))))
        self.replica = self.ranks.replicate(self.model, may_skip=self.may_skip)
        self.statistics = running_statistics(batch_norms(self.model))
        self.loss: Tensor | None = None
        self.stream = BatchStream(self.train, share=self.ranks.share)
        self.optimizer = make_optimizer(self.model, s, self.loss_parameters())
        self.mix = make_mix(s.mix, s.mix_share, self.model)
        self.average = WeightAverage(self.model, s.average_decay) if s.average_decay else None
        self.best = BestWeights() if s.keeps_best else None
        if self.best is not None and self.valid is None:
            raise ConfigError("train.keep_best needs a validation part, and there is none")

    # --- what the loop asks for, see `training.job.Job` ---

    @property
    def rate(self) -> str:
        return f"the training's learning_rate ({self.settings.learning_rate:g})"

    def prepare(self) -> Callable[[], None]:
        self.model.train()
        frozen = self.settings.frozen_statistics
        slow_down = self.machine.prepare(self.model, frozen_statistics=frozen)
        if self.best is not None and self.best.step is None:
            self._score()  # what the network is worth before it learns

        def undo() -> None:
            slow_down()
            if self.step >= self.total:
                self._finish()

        return undo

    def give_up(self) -> bool:
        if self.best is None:
            return False
        self.stop()
        return True

    def retry(self, batch: Any) -> Tensor:
        return gradients(self.replica, self.task, self.machine, batch, self.at_once)

    def probe(self, batch: Any) -> None:
        """Take the memory of a step on a batch; nothing is left of it."""
        with undisturbed([*self.model.modules(), *self.losses.values()]):
            gradients(self.model, self.task, self.machine, self.machine.put(batch))

    @property
    def whole_batch(self) -> str:
        """Why `at_once` would change the result; empty where it would not."""
        frozen = self.settings.frozen_statistics
        return whole_batch(self.model, self.task, frozen_statistics=frozen)

    def metrics(self) -> StepMetrics | None:
        return StepMetrics(
            stage=self.stage,
            step=self.step,
            total=self.total,
            phase="training",
            loss=self.loss,
            rate_factor=self.recovery.factor,
        )

    def take_step(self) -> None:
        warmup = self.settings.warmup_epochs * len(self.train)
        rate = self.recovery.factor * self.settings.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * scheduled(rate, self.step, self.total, warmup)
        self.batch = self.machine.put(self.stream.draw())
        dropout = derive_seed(self.seed, "training dropout", self.step, *self.ranks.stream)
        self.machine.seed(dropout)
        if self.mix is not None:
            self.batch = self.mix(self.batch)
        modules = [*self.model.modules(), *self.losses.values()]
        kept = [BufferSnapshot(m._buffers) for m in modules if m._buffers]
        self.loss = self.retry(self.batch)
        # The network's gradients are averaged already.
        losses = self.loss_parameters()
        averaged = [p.grad for p in losses if p.grad is not None]
        self.ranks.average([self.loss, *self.statistics, *averaged])
        parameters, later = [*self.model.parameters(), *losses], self.machine.is_apart
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
        taken = guarded(self.optimizer, parameters, self.loss, kept, later=later)
        data = partial(not_numbers, self.batch, f"batch {self.stream.latest} of the training")
        self.recovery.report("training", self.step, taken, data=data)
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.step)
        whole = (self.step + 1) % len(self.train) == 0
        if self.best is not None and whole and self.settings.keep_best == "epochs":
            self._score(self.step + 1)
            if self.settings.patience and self.best.since >= self.settings.patience:
                self.total, self.stopped = self.step + 1, True

    def _score(self, steps: int = 0) -> None:
        """Offer the weights that would be used after so many steps as the best."""
        assert self.best is not None and self.valid is not None
        with self._averaged():
            score = evaluate(self.model, self.task, self.valid, self.machine, ranks=self.ranks)
            # Where as many are right the loss decides: small parts have few distinct accuracies.
            self.best.offer((score.value, -score.loss), steps, self.model)

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.in_place()

    def _finish(self) -> None:
        """Let the network have the weights that the training is for."""
        if self.best is not None:
            if self.best.latest != self.step:
                self._score(self.step)
            self.model.load_state_dict(self.best.state)
        elif self.average is not None:
            self.average.finish()

    def optimizers(self) -> Optimizers:
        return {"optimizer": (self.optimizer, self.parameters())}

    def state(self) -> State:
        tensors, values = super().state()
        values["batches"] = self.stream.drawn
        if self.average is not None:
            tensors |= self.average.tensors()
        if self.best is not None:
            tensors |= self.best.tensors()
            values["best"] = self.best.values()
        return tensors, values

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        super().load(tensors, values)
        if self.average is not None:
            self.average.load(tensors)
        if self.best is not None:
            self.best.load(tensors, values["best"])
        self.stream = BatchStream(self.train, int(values["batches"]), self.ranks.share)


def synchronised(network: nn.Module, machine: Machine) -> nn.Module:
    """The network with batch normalisation over the images of all ranks.

    Raises:
        ConfigError: not on a GPU.
    """
    if machine.device.type != "cuda":
        raise ConfigError(
            f"train.sync_batch_norm needs a GPU, and machine.device is {machine.device}; leave it "
            "out: statistics are averaged over the ranks anyway"
        )
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    converted: nn.Module = convert(network)  # type: ignore[no-untyped-call]
    return converted


def make_optimizer(
    model: nn.Module, settings: TrainSettings, losses: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimiser that the settings name; a group's `share` is of the learning rate.

    losses: parameters of the loss, which learn without weight decay.
    """
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    last = {id(p) for layer in linear for p in layer.parameters()}
    groups: list[dict[str, Any]] = []
    for group in decay_groups(model, settings.weight_decay):
        for is_last, share in ((False, 1.0), (True, settings.classifier_rate)):
            parameters = [p for p in group["params"] if (id(p) in last) == is_last]
            groups.append({**group, "params": parameters, "share": share})
    groups.append({"params": list(losses), "weight_decay": 0.0, "share": 1.0})
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return adamw(groups, rate=settings.learning_rate)
    return sgd(groups, rate=settings.learning_rate, momentum=settings.momentum)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices and kernels, none on BN parameters and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
