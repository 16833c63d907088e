"""What takes steps: a search, or a training. What is the same about both stands here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.training.callbacks import ArchitectureMetrics, StepMetrics
from proxylessnas.training.device import Machine
from proxylessnas.training.faults import Recovery, State
from proxylessnas.training.optimizers import (
    beside_parameters,
    beside_tensors,
    load_beside,
    load_model,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    unshared,
)
from proxylessnas.training.ranks import Ranks
from proxylessnas.training.task import Task

Optimizers = Mapping[str, tuple[torch.optim.Optimizer, Mapping[str, Tensor]]]


class Job(ABC):
    """A model that learns step by step, for `loop.run_loop`; its whole state is in `state`.

    step: steps taken, of `total`. batch: the latest step's; None before the first.
    losses: the modules beside the model that learn with it, by name: those that the loss holds.
    at_once: examples that memory is there for; None: a whole batch.
    """

    task: Task
    machine: Machine
    ranks: Ranks

    def begin(
        self, model: nn.Module, total: int, beside: Mapping[str, nn.Module] | None = None
    ) -> None:
        """Before the first step. beside: default: the modules that the losses of the task hold."""
        self.model = self.machine.place(model)
        beside = self.task.modules_beside(self.model) if beside is None else beside
        self.losses = {name: self.machine.place(module) for name, module in beside.items()}
        self.step, self.total, self.stopped = 0, total, False
        self.recovery = Recovery()
        self.batch: Any = None
        self.at_once: int | None = None

    @property
    @abstractmethod
    def rate(self) -> str:
        """The setting that every learning rate is in proportion to, in words."""

    @abstractmethod
    def prepare(self) -> Callable[[], None]:
        """Put the model into the state in which it takes steps; returns what undoes that."""

    @abstractmethod
    def take_step(self) -> None: ...

    @abstractmethod
    def retry(self, batch: Any) -> Any:
        """The latest step's computation on another batch; what it leaves behind is of no use."""

    def stop(self) -> None:
        """The latest step was the last one."""
        self.total, self.stopped = self.step, True

    def give_up(self) -> bool:
        """End although the latest steps came to nothing; False where the job has no result then."""
        return False

    @abstractmethod
    def metrics(self) -> StepMetrics | None:
        """Of the latest weight step; None where the schedule has none."""

    def architecture_metrics(self) -> ArchitectureMetrics | None:
        """Of the latest step's architecture step, if it had one."""
        return None

    # --- what learns ---

    def parameters(self) -> dict[str, nn.Parameter]:
        """By name; what the model and a loss share by the model's name."""
        return beside_parameters(self.losses) | dict(self.model.named_parameters())

    def loss_parameters(self) -> list[nn.Parameter]:
        """Those of the losses that are not the model's, too."""
        return unshared(beside_parameters(self.losses).values(), self.model.parameters())

    @abstractmethod
    def optimizers(self) -> Optimizers:
        """Every optimiser by its name in the state, with the parameters it may move by theirs."""

    def state(self) -> State:
        """(tensors, plain values): all that changes while the job takes steps."""
        tensors = model_tensors(self.model) | beside_tensors(self.losses)
        for name, (optimizer, parameters) in self.optimizers().items():
            tensors |= optimizer_tensors(name, optimizer, parameters)
        recovery = self.recovery.state()
        return tensors, {"step": self.step, "stopped": self.stopped, "recovery": recovery}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Continue from a `state`."""
        load_model(self.model, tensors)
        load_beside(self.losses, tensors)
        for name, (optimizer, parameters) in self.optimizers().items():
            load_optimizer(name, optimizer, parameters, tensors)
        self.step, self.recovery = int(values["step"]), Recovery.of(values["recovery"])
        if values["stopped"]:
            self.stop()
