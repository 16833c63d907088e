"""Training and evaluating one plain network; renewing its BN statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .config import TrainSettings
from .frozen import Kept
from .hardware.trace import evaluating
from .machine import Machine
from .optimizers import cosine, load_model, load_optimizer, model_tensors, optimizer_tensors
from .recovery import Anchors, Memory, Recovery, explained, finite
from .seeds import derive_seed
from .task import Batches, Stream, Task, batch_size, call, scalar, split


@dataclass(frozen=True)
class Score:
    """loss: mean over the examples. accuracy: share in [0, 1], None where it has no meaning."""

    loss: float
    accuracy: float | None
    examples: int


@dataclass
class Training:
    """One network's training: SGD with Nesterov momentum and cosine decay."""

    network: nn.Module
    task: Task
    train: Batches
    settings: TrainSettings
    seed: int = 0
    machine: Machine = field(default_factory=Machine)

    def __post_init__(self) -> None:
        s = self.settings
        self.model = self.machine.place(self.network)
        self.total = s.epochs * len(self.train)
        self.step, self.recovery = 0, Recovery()
        self.loss: Tensor | None = None
        self.batch: Any = None
        self.stream = Stream(self.train)
        self.optimizer = torch.optim.SGD(
            decay_groups(self.model, s.weight_decay),
            lr=s.learning_rate,
            momentum=s.momentum,
            nesterov=s.momentum > 0,
        )

    def run(
        self,
        after_step: Callable[[Training], None] = lambda _: None,
        anchors: Anchors | None = None,
    ) -> None:
        """Take the steps that are left; `after_step` may look, log and save."""
        anchors = anchors or Memory()
        self.model.train()
        with explained(lambda: self.batch, self._gradients):
            while self.step < self.total:
                self.recovery.anchor(self, anchors)
                self.train_step()
                if self.recovery.lost:
                    rate = f"the training's learning_rate ({self.settings.learning_rate:g})"
                    self.recovery.go_back(self, anchors, rate)
                    continue
                self.step += 1
                after_step(self)

    def train_step(self) -> None:
        rate = self.recovery.factor * self.settings.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(rate, self.step, self.total)
        self.batch = self.machine.put(self.stream.take())
        self.machine.seed(derive_seed(self.seed, "training dropout", self.step))
        kept = [Kept(m._buffers) for m in self.model.modules() if m._buffers]
        self.loss = self._gradients(self.batch)
        if finite(self.loss, (p.grad for p in self.model.parameters())):
            self.recovery.good("training")
            self.optimizer.step()
        else:
            self.recovery.failed("training", self.step, "")
            for buffers in kept:
                buffers.put_back()
        self.optimizer.zero_grad(set_to_none=True)

    def _gradients(self, batch: Any) -> Tensor:
        inputs, target = split(batch)
        with self.machine.precision():
            output = call(self.model, inputs)
            loss = scalar((self.task.train_loss or self.task.loss)(output, target))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

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
        self.stream = Stream(self.train, int(values["batches"]))


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
    after_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Score:
    """Loss and accuracy over one pass, in evaluation mode; at most `examples` of them."""
    machine = machine or Machine()
    loss, correct, seen = 0.0, 0.0, 0
    with evaluating(network), explained():
        for index, batch in enumerate(batches.epoch(0)):
            inputs, target = split(machine.put(batch))
            with machine.precision():
                output = call(network, inputs)
                batch_loss = scalar(task.loss(output, target))
            size = batch_size(target)
            loss += float(batch_loss) * size
            correct += float(task.correct(output, target)) if task.correct else 0.0
            seen += size
            after_batch(index + 1, len(batches))
            if examples is not None and seen >= examples:
                break
    accuracy = correct / seen if task.correct else None
    return Score(loss=loss / seen, accuracy=accuracy, examples=seen)


@torch.no_grad()
def recalibrate(
    network: nn.Module, batches: Batches, examples: int, machine: Machine | None = None
) -> None:
    """Renew the BN statistics as plain averages over about `examples` training images.

    A supernet's statistics are a mixture over its paths; Once-for-All (Cai et al., 2020)
    renews them before every score.
    """
    machine = machine or Machine()
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    seen = 0
    with evaluating(network), explained():  # dropout off; the norms alone in training mode
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.training = True
        for batch in batches.epoch(0):
            inputs, _ = split(machine.put(batch))
            with machine.precision():
                call(network, inputs)
            seen += batch_size(batch[1])
            if seen >= examples:
                break
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
