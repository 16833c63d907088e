"""Training and evaluating one plain network; renewing its BN statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .config import TrainSettings
from .errors import UserError
from .hardware.trace import evaluating
from .machine import Machine
from .optimizers import cosine, load_optimizer, optimizer_tensors
from .seeds import derive_seed
from .task import Batches, Stream, Task, call, split

MAX_BAD_STEPS = 5


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
        self.step, self.bad_steps = 0, 0
        self.loss: Tensor | None = None
        self.stream = Stream(self.train)
        self.optimizer = torch.optim.SGD(
            decay_groups(self.model, s.weight_decay),
            lr=s.learning_rate,
            momentum=s.momentum,
            nesterov=s.momentum > 0,
        )

    def run(self, after_step: Callable[[Training], None] = lambda _: None) -> None:
        """Take the steps that are left; `after_step` may look, log and save."""
        self.model.train()
        while self.step < self.total:
            self.train_step()
            self.step += 1
            after_step(self)

    def train_step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(self.settings.learning_rate, self.step, self.total)
        inputs, target = split(self.machine.put(self.stream.take()))
        self.machine.seed(derive_seed(self.seed, "training dropout", self.step))
        with self.machine.precision():
            loss = (self.task.train_loss or self.task.loss)(call(self.model, inputs), target)
        loss.backward()  # type: ignore[no-untyped-call]
        self.loss = loss.detach()
        if bool(torch.isfinite(self.loss)):
            self.bad_steps = 0
            self.optimizer.step()
        else:
            self.bad_steps += 1
            if self.bad_steps >= MAX_BAD_STEPS:
                raise UserError(
                    f"the training loss was not finite {self.bad_steps} times in a row, last at "
                    f"step {self.step}: lower --train.learning-rate "
                    f"({self.settings.learning_rate:g})"
                )
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values): all that changes while it trains."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        names = {id(p): n for n, p in self.model.named_parameters()}
        tensors |= optimizer_tensors("optimizer", self.optimizer, names)
        values = {"step": self.step, "bad_steps": self.bad_steps, "batches": self.stream.taken}
        return tensors, values

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        weights = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
        self.model.load_state_dict(weights)
        parameters = dict(self.model.named_parameters())
        load_optimizer("optimizer", self.optimizer, parameters, tensors)
        self.step, self.bad_steps = values["step"], values["bad_steps"]
        self.stream = Stream(self.train, values["batches"])


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
    with evaluating(network):
        for index, batch in enumerate(batches.epoch(0)):
            inputs, target = split(machine.put(batch))
            with machine.precision():
                output = call(network, inputs)
                batch_loss = task.loss(output, target)
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
    with evaluating(network):  # dropout off; the norms alone in training mode
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


def batch_size(target: Any) -> int:
    """Examples in a batch, by its target's first tensor."""
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(target) if isinstance(leaf, Tensor)]
    return len(leaves[0]) if leaves and leaves[0].dim() else 1
