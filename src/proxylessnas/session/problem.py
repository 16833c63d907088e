"""What is to be solved: a model with choices, a task, its batches, and what is measured.

A problem never changes. Settings (how long, how fast, on which machine) are no part of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from proxylessnas.architecture import Architecture, InputInfo
from proxylessnas.config import RunConfig
from proxylessnas.core.costs import Costs
from proxylessnas.core.estimators import RewardOf
from proxylessnas.core.supernet import Supernet
from proxylessnas.data.batches import Batches
from proxylessnas.errors import ConfigError, DataError, SupernetError
from proxylessnas.hardware.costs import CostFunction
from proxylessnas.training.copying import copied
from proxylessnas.training.task import Task

Part = Literal["search", "valid", "calibration", "scoring", "train", "test", "teach"]


class Problem(ABC):
    """What both doors hand to a `Session`.

    task: the loss, and what else is known of the outputs.
    functions: costs of the user's own by name, see `hardware.costs.function_costs`.
    reward: for the estimator `reinforce`, in place of the settings' own.
    """

    task: Task
    functions: Mapping[str, CostFunction]
    reward: RewardOf | None = None

    @abstractmethod
    def example_inputs(self, config: RunConfig) -> tuple[Any, ...]:
        """The arguments of one forward pass; their shapes are what is measured."""

    @abstractmethod
    def supernet(self, config: RunConfig) -> Supernet:
        """The model that is searched."""

    @abstractmethod
    def spare(self, config: RunConfig) -> tuple[Supernet, Task]:
        """Another one, with its task, that trials may spoil."""

    @abstractmethod
    def batches(self, part: Part, config: RunConfig) -> Batches:
        """The batches of one purpose.

        search: of the weight steps. valid: of the architecture steps. calibration: training
        batches that renew the statistics of batch normalisation. scoring: validation batches
        that proposals are scored on. train: everything that the derived network is trained on.
        test: what nothing before has seen.

        Raises:
            DataError: the problem has none.
        """

    def architecture(self, architecture: Architecture, config: RunConfig) -> Architecture:
        """What is written, trained and exported for an architecture of the supernet."""
        return architecture

    @abstractmethod
    def network(self, architecture: Architecture, config: RunConfig) -> nn.Module:
        """The plain network with fresh weights of the current generator."""

    def search_parts(
        self, config: RunConfig, supernet: Supernet, costs: Costs, epoch_steps: int
    ) -> Mapping[str, Any]:
        """Parts of the `Search` in place of the settings' own: α to begin from, a schedule.

        epoch_steps: training batches an epoch.
        """
        return {}

    def training_task(self, config: RunConfig) -> Task:
        """What the derived network is trained on."""
        return self.task

    def input(self) -> InputInfo | None:
        """How an example becomes the network's input, where that is known."""
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelProblem(Problem):
    """A model of the user's own that holds mixed operations, with batches of its own.

    batches_of: part -> batches; `calibration` and `scoring` default to `search` and `valid`.
    """

    model: nn.Module
    task: Task
    inputs: tuple[Any, ...]
    batches_of: Mapping[str, Batches]
    functions: Mapping[str, CostFunction] = field(default_factory=dict)
    reward: RewardOf | None = None

    def example_inputs(self, config: RunConfig) -> tuple[Any, ...]:
        return self.inputs

    def supernet(self, config: RunConfig) -> Supernet:
        model = self.model
        if any(t.is_inference() for t in (*model.parameters(), *model.buffers())):
            raise SupernetError(
                "the model was made under torch.inference_mode(), so that it cannot learn: make "
                "it outside of that block"
            )
        return Supernet(model)

    def spare(self, config: RunConfig) -> tuple[Supernet, Task]:
        model, task = copied((self.model, self.task))  # a loss may hold the model
        return Supernet(model), task

    def batches(self, part: Part, config: RunConfig) -> Batches:
        stand_in = {"calibration": "search", "scoring": "valid"}.get(part, part)
        batches = self.batches_of.get(part, self.batches_of.get(stand_in))
        if batches is None:
            name = "train" if part == "search" else part  # as the argument is called
            raise DataError(f"there are no batches of `{name}`: give them to the call")
        return batches

    def network(self, architecture: Architecture, config: RunConfig) -> nn.Module:
        raise ConfigError(
            "a model of your own is trained on from the weights that the search gave it: "
            "result.derive() returns it"
        )
