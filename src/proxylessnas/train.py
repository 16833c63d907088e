"""Training and evaluating one plain network; renewing its BN statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .config import TrainSettings
from .errors import ConfigError
from .frozen import Kept
from .hardware.trace import evaluating
from .machine import Machine
from .optimizers import (
    cosine,
    gradients,
    load_model,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    sgd,
)
from .ranks import ALONE, Ranks, running_statistics
from .recovery import Anchors, Memory, Recovery, explained, guarded, steps
from .seeds import derive_seed
from .task import Batches, Stream, Task, batch_size, call, scalar, split


@dataclass(frozen=True)
class Score:
    """loss: mean over the examples. accuracy: share in [0, 1], None where it has no meaning.

    batches: of each batch the accuracy, or else the negative loss.
    """

    loss: float
    accuracy: float | None
    examples: int
    batches: tuple[float, ...] = ()

    @property
    def value(self) -> tuple[float, tuple[float, ...]]:
        """(accuracy, or else the negative loss; the same of each batch): higher is better."""
        return -self.loss if self.accuracy is None else self.accuracy, self.batches


@dataclass
class Training:
    """One network's training: SGD with Nesterov momentum and cosine decay.

    ranks: of several processes each takes its slice of every batch.
    may_skip: whether a batch may leave parameters out, as path drop does; for several ranks.
    """

    network: nn.Module
    task: Task
    train: Batches
    settings: TrainSettings
    seed: int = 0
    machine: Machine = field(default_factory=Machine)
    ranks: Ranks = ALONE
    may_skip: bool = False

    def __post_init__(self) -> None:
        s = self.settings
        if s.sync_batch_norm:
            self.network = synchronised(self.network, self.machine)
        self.model = self.machine.place(self.network)
        self.replica = self.ranks.replicate(self.model, may_skip=self.may_skip)
        self.statistics = running_statistics(batch_norms(self.model))
        self.total = s.epochs * len(self.train)
        self.step, self.recovery = 0, Recovery()
        self.loss: Tensor | None = None
        self.batch: Any = None
        self.stream = Stream(self.train, share=self.ranks.share)
        groups = decay_groups(self.model, s.weight_decay)
        self.optimizer = sgd(groups, rate=s.learning_rate, momentum=s.momentum)

    def run(
        self,
        after_step: Callable[[Training], None] = lambda _: None,
        anchors: Anchors | None = None,
    ) -> None:
        """Take the steps that are left; `after_step` may look, log and save."""
        self.model.train()
        undo = self.machine.prepare(self.model)
        try:
            for _ in steps(
                self,
                self.total,
                self.train_step,
                anchors=anchors or Memory(),
                rate=f"the training's learning_rate ({self.settings.learning_rate:g})",
                retry=self._gradients,
            ):
                after_step(self)
        finally:
            undo()

    def train_step(self) -> None:
        rate = self.recovery.factor * self.settings.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(rate, self.step, self.total)
        self.batch = self.machine.put(self.stream.take())
        dropout = derive_seed(self.seed, "training dropout", self.step, *self.ranks.stream)
        self.machine.seed(dropout)
        kept = [Kept(m._buffers) for m in self.model.modules() if m._buffers]
        self.loss = self._gradients(self.batch)
        self.ranks.average([self.loss, *self.statistics])  # the gradients are averaged already
        parameters, later = list(self.model.parameters()), self.machine.is_apart
        taken = guarded(self.optimizer, parameters, self.loss, kept, later=later)
        self.recovery.report("training", self.step, taken)
        self.optimizer.zero_grad(set_to_none=True)

    def _gradients(self, batch: Any) -> Tensor:
        return gradients(self.replica, self.task, self.machine, batch)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values): all that changes while it trains."""
        tensors = model_tensors(self.model)
        names = {id(p): n for n, p in self.model.named_parameters()}
        tensors |= optimizer_tensors("optimizer", self.optimizer, names)
        values = {
            "step": self.step,
            "recovery": self.recovery.state(),
            "batches": self.stream.taken,
        }
        return tensors, values

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        load_model(self.model, tensors)
        parameters = dict(self.model.named_parameters())
        load_optimizer("optimizer", self.optimizer, parameters, tensors)
        self.step, self.recovery = int(values["step"]), Recovery.of(values["recovery"])
        self.stream = Stream(self.train, int(values["batches"]), self.ranks.share)


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations that keep statistics."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


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


@torch.no_grad()
def evaluate(
    network: nn.Module,
    task: Task,
    batches: Batches,
    machine: Machine | None = None,
    *,
    examples: int | None = None,
    ranks: Ranks = ALONE,
    after_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Score:
    """Loss and accuracy over one pass, in evaluation mode; about `examples` of them.

    Of several ranks each takes every so-manieth batch, and all return the score of all.
    """
    machine = machine or Machine()
    seen = torch.zeros(len(batches), 3, dtype=torch.float64)  # loss, correct, examples of each
    with evaluating(network), explained():
        for index, batch in _every(batches, ranks, examples):
            inputs, target = split(machine.put(batch))
            with machine.precision():
                output = call(network, inputs)
                batch_loss = scalar(task.loss(output, target))
            size = batch_size(target)
            correct = float(task.correct(output, target)) if task.correct else 0.0
            row = [float(batch_loss) * size, correct, size]
            seen[index] = torch.tensor(row, dtype=torch.float64)
            after_batch(index + 1, len(batches))
    ranks.sum([seen])
    loss, right, examples = seen.sum(0).tolist()
    seen = seen[seen[:, 2] > 0]
    each = seen[:, 1] / seen[:, 2] if task.correct else -seen[:, 0] / seen[:, 2]
    return Score(
        loss=loss / examples,
        accuracy=right / examples if task.correct else None,
        examples=int(examples),
        batches=tuple(each.tolist()),
    )


def _every(batches: Batches, ranks: Ranks, examples: int | None) -> Iterator[tuple[int, Any]]:
    """This rank's batches of about the first `examples`, with their numbers."""
    seen = 0
    rest = batches.epoch(0, ranks.rank, step=ranks.world)
    for done, batch in enumerate(rest):
        index = ranks.rank + done * ranks.world
        # As many were seen before this batch, the other ranks' being of the same size.
        if examples is not None and done and index * seen >= examples * done:
            return
        seen += batch_size(batch[1])
        yield index, batch


@torch.no_grad()
def recalibrate(
    network: nn.Module,
    batches: Batches,
    examples: int,
    machine: Machine | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Renew the BN statistics as plain averages over about `examples` training images.

    A supernet's statistics are a mixture over its paths; Once-for-All (Cai et al., 2020)
    renews them before every score. Of several ranks each takes every so-manieth batch.
    """
    machine = machine or Machine()
    norms = batch_norms(network)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    taken = torch.zeros((), dtype=torch.float64)
    with evaluating(network), explained():  # dropout off; the norms alone in training mode
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.training = True
        for _, batch in _every(batches, ranks, examples):
            inputs, _ = split(machine.put(batch))
            with machine.precision():
                call(network, inputs)
            taken += 1
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    if ranks.world > 1:  # averages over a rank's batches to the average over all
        statistics = running_statistics(norms)
        for statistic in statistics:
            statistic.mul_(float(taken))
        ranks.sum([taken, *statistics])
        for statistic in statistics:
            statistic.div_(float(taken))
