"""Training and evaluating one plain network; renewing its BN statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from proxylessnas.config import TrainSettings
from proxylessnas.data import Batches, BatchStream
from proxylessnas.errors import ConfigError
from proxylessnas.seeds import derive_seed
from proxylessnas.training.callbacks import StepMetrics
from proxylessnas.training.device import Machine
from proxylessnas.training.evaluate import batch_norms
from proxylessnas.training.faults import Recovery, guarded
from proxylessnas.training.freezing import BufferSnapshot
from proxylessnas.training.optimizers import (
    cosine,
    gradients,
    load_model,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    sgd,
)
from proxylessnas.training.ranks import ALONE, Ranks, running_statistics
from proxylessnas.training.task import Task


@dataclass
class Training:
    """One network's training: SGD with Nesterov momentum and cosine decay.

    `training.loop.run_loop` takes its steps.

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

    def __post_init__(self) -> None:
        s = self.settings
        if s.sync_batch_norm:
            self.network = synchronised(self.network, self.machine)
        self.model = self.machine.place(self.network)
        self.replica = self.ranks.replicate(self.model, may_skip=self.may_skip)
        self.statistics = running_statistics(batch_norms(self.model))
        self.total, self.stopped = s.epochs * len(self.train), False
        self.step, self.recovery = 0, Recovery()
        self.loss: Tensor | None = None
        self.batch: Any = None
        self.stream = BatchStream(self.train, share=self.ranks.share)
        groups = decay_groups(self.model, s.weight_decay)
        self.optimizer = sgd(groups, rate=s.learning_rate, momentum=s.momentum)

    # --- what the loop asks for, see `training.loop.Job` ---

    @property
    def rate(self) -> str:
        return f"the training's learning_rate ({self.settings.learning_rate:g})"

    def prepare(self) -> Callable[[], None]:
        self.model.train()
        frozen = self.settings.frozen_statistics
        return self.machine.prepare(self.model, frozen_statistics=frozen)

    def stop(self) -> None:
        """The latest step was the last one."""
        self.total, self.stopped = self.step, True

    def retry(self, batch: Any) -> Tensor:
        return gradients(self.replica, self.task, self.machine, batch)

    def metrics(self) -> StepMetrics | None:
        return StepMetrics(
            stage=self.stage,
            step=self.step,
            total=self.total,
            phase="training",
            loss=self.loss,
            rate_factor=self.recovery.factor,
        )

    def architecture_metrics(self) -> None:
        return None

    def take_step(self) -> None:
        rate = self.recovery.factor * self.settings.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(rate, self.step, self.total)
        self.batch = self.machine.put(self.stream.draw())
        dropout = derive_seed(self.seed, "training dropout", self.step, *self.ranks.stream)
        self.machine.seed(dropout)
        kept = [BufferSnapshot(m._buffers) for m in self.model.modules() if m._buffers]
        self.loss = self.retry(self.batch)
        self.ranks.average([self.loss, *self.statistics])  # the gradients are averaged already
        parameters, later = list(self.model.parameters()), self.machine.is_apart
        taken = guarded(self.optimizer, parameters, self.loss, kept, later=later)
        self.recovery.report("training", self.step, taken)
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values): all that changes while it trains."""
        tensors = model_tensors(self.model)
        names = {id(p): n for n, p in self.model.named_parameters()}
        tensors |= optimizer_tensors("optimizer", self.optimizer, names)
        values = {
            "step": self.step,
            "stopped": self.stopped,
            "recovery": self.recovery.state(),
            "batches": self.stream.drawn,
        }
        return tensors, values

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        load_model(self.model, tensors)
        parameters = dict(self.model.named_parameters())
        load_optimizer("optimizer", self.optimizer, parameters, tensors)
        self.step, self.recovery = int(values["step"]), Recovery.of(values["recovery"])
        if values["stopped"]:
            self.stop()
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


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices and kernels, none on BN parameters and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
