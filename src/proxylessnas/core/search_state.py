"""A search's parts and its state: everything that changes while its steps are taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.config import SearchSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.estimators import Estimator, TwoPath
from proxylessnas.core.gradients import Estimate
from proxylessnas.core.objective import Objective
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.supernet import Supernet
from proxylessnas.core.tensors import collect_tensors
from proxylessnas.data import Batches, BatchStream
from proxylessnas.errors import ConfigError, SupernetError
from proxylessnas.seeds import derive_seed
from proxylessnas.training.callbacks import ArchitectureMetrics, StepMetrics, mean_entropy
from proxylessnas.training.device import Machine
from proxylessnas.training.faults import State, named
from proxylessnas.training.job import Job, Optimizers
from proxylessnas.training.optimizers import sgd
from proxylessnas.training.ranks import ALONE, Ranks
from proxylessnas.training.task import Task, not_numbers

# Rate x steps of α: Adam moves α by about its rate a step, so this is how far α can go in a whole
# search. A difference of 10 between two α is a probability of 0.99995.
ARCH_TRAVEL = 10.0


@dataclass
class LatestStep:
    """What the latest step of each kind returned; tensors stay on the device until read."""

    weight_loss: Tensor | None = None
    estimate: Estimate | None = None
    estimated_at: int = -1  # the step of the estimate


@dataclass
class SearchState(Job):
    """The parts of a search; `search.Search` has the steps.

    train, valid: batches of the weight steps and of the architecture steps. They share no image,
        or else α would prefer whatever memorises the training set.
    schedule: which steps there are.
    alpha: [choices, candidates] to begin from; default: noise, as published.
    frozen_statistics: batch normalisation keeps the running statistics that the weights were
        trained with, in the steps of both kinds, instead of taking those of the batch.
    ranks: each of several processes takes its slice of every batch.
    beside: modules that learn with the weights; default: those of the loss.
    uniform_gates: the candidates of a weight step with uniform gates, by its number; default: every
        candidate once a shuffled round, see `fair_gates`.

    Raises:
        SupernetError: the model has no parameter.
        ConfigError: Adam's momentum is asked for with the two-path estimator.
    """

    supernet: Supernet
    task: Task
    train: Batches
    valid: Batches
    costs: Costs
    objective: Objective
    estimator: Estimator
    settings: SearchSettings
    schedule: Schedule
    seed: int = 0
    machine: Machine = field(default_factory=Machine)
    ranks: Ranks = ALONE
    alpha: Tensor | None = None
    frozen_statistics: bool = False
    beside: Mapping[str, nn.Module] | None = None
    uniform_gates: Callable[[int], Sequence[int]] | None = None

    def __post_init__(self) -> None:
        s = self.settings
        if not any(True for _ in self.supernet.model.parameters()):
            raise SupernetError("the model has no parameter: there are no weights to search with")
        if s.arch_beta1 > 0 and isinstance(self.estimator, TwoPath):
            raise ConfigError(
                f"arch_beta1 is {s.arch_beta1}: Adam's momentum would move candidates that a "
                "two-path step did not sample; use 0, or another estimator"
            )
        # A loss may have parameters as well: they learn in weight steps, and stay in others.
        self.begin(self.supernet.model, self.schedule.total, self.beside)
        self.tensors = collect_tensors(self.supernet, self.losses.values())
        self.latest = LatestStep()
        self._again: Callable[[Any], Any] = lambda _: None  # the latest step, on another batch
        self.streams_after(0, 0)
        self._make_optimizers()
        # α ~ N(0, 1e-3), as published: nearly uniform, with no ties for the most probable one.
        with torch.no_grad():
            noise = torch.randn(self.supernet.alpha.shape, generator=self._generator("alpha"))
            self.supernet.alpha.copy_(1e-3 * noise if self.alpha is None else self.alpha)
        self.alpha_start, self.walked = self.supernet.alpha.detach().clone(), 0.0

    def _make_optimizers(self) -> None:
        s = self.settings
        groups = [{"params": list(self.model.parameters()), "weight_decay": s.weight_decay}]
        # Decay would pull the loss's own parameters towards another loss.
        if losses := self.loss_parameters():
            groups.append({"params": losses, "weight_decay": 0.0})
        self.weight_optimizer = sgd(groups, rate=s.learning_rate, momentum=s.momentum)
        # The published rate suits 114,000 architecture steps; with a few hundred α would stay
        # near uniform. So the rate follows from the number of steps unless it is set.
        steps = max(1, self.schedule.architecture_steps)
        self.arch_rate = s.arch_learning_rate or ARCH_TRAVEL / steps
        # β1 = 0, as published: with momentum, α of an unsampled candidate would move as well. No
        # weight decay, which would pull every choice back to uniform.
        self.arch_optimizer = torch.optim.Adam(
            [self.supernet.alpha], lr=self.arch_rate, betas=(s.arch_beta1, 0.999)
        )

    # --- what is told of it ---

    def metrics(self) -> StepMetrics | None:
        schedule = self.schedule
        start = 0 if schedule.weights else schedule.arch_from
        return StepMetrics(
            stage="search" if schedule.weights else "adapt",
            step=self.step - start,
            total=self.total - start,
            phase="warm-up" if self.step <= schedule.warmup else "search",
            loss=self.latest.weight_loss,
            rate_factor=self.recovery.factor,
        )

    def architecture_metrics(self) -> ArchitectureMetrics | None:
        estimate = self.latest.estimate
        if estimate is None or self.latest.estimated_at != self.step - 1:
            return None
        return ArchitectureMetrics(
            step=self.step,
            total=self.total,
            loss=estimate.loss,
            expected=dict(zip(self.costs.names, estimate.expected, strict=False)),
            multipliers=tuple(self.objective.state()),
            probabilities=self.supernet.probabilities(),
            mask=self.supernet.mask,
        )

    def most_probable(self) -> list[int]:
        """The most probable candidate of every choice."""
        return [int(j) for j in self.supernet.probabilities().argmax(1).tolist()]

    def entropy(self) -> float:
        """Mean over the choices of H(p) / log N: 1 where nothing was learned, 0 decided."""
        return mean_entropy(self.supernet.probabilities(), self.supernet.mask)

    def straightness(self) -> float | None:
        """Squared distance of α from its beginning, over the sum of its squared steps.

        About 1 where α went at random, the number of steps where it went straight; None where it
        never moved. Rates and numbers of steps cancel out, which the entropy depends on.
        """
        alpha, mask = self.supernet.alpha.detach(), self.supernet.mask
        distance = float((alpha - self.alpha_start.to(alpha))[mask].square().sum())
        return distance / self.walked if self.walked else None

    def _report(self, kind: str, taken: bool | Tensor, choice: Sequence[int]) -> None:
        def active() -> str:
            supernet = self.supernet
            pairs = zip(supernet.candidates, choice, strict=False)
            names = [candidates[j] for candidates, j in pairs]
            return named(supernet.names[: len(names)], names)

        stream = self.train_stream if kind == "weight" else self.valid_stream
        name = "train" if kind == "weight" else "valid"
        data = partial(not_numbers, self.batch, f"batch {stream.latest} of {name}")
        self.recovery.report(kind, self.step, taken, active, data)

    def _generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, purpose, self.step))

    def streams_after(self, train_batches: int, valid_batches: int) -> None:
        """The two streams of batches, after so many of each."""
        self.train_stream = BatchStream(self.train, train_batches, self.ranks.share)
        self.valid_stream = BatchStream(self.valid, valid_batches, self.ranks.share)

    # --- its state ---

    def optimizers(self) -> Optimizers:
        return {
            "weight_optimizer": (self.weight_optimizer, self.parameters()),
            "arch_optimizer": (self.arch_optimizer, {"alpha": self.supernet.alpha}),
        }

    def state(self) -> State:
        tensors, values = super().state()
        tensors["alpha"] = self.supernet.alpha.detach()
        values |= {
            "train_batches": self.train_stream.drawn,
            "valid_batches": self.valid_stream.drawn,
            "objective": self.objective.state(),
            "estimator": self.estimator.state(),
            "walked": self.walked,
        }
        return tensors, values

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        super().load(tensors, values)
        with torch.no_grad():
            self.supernet.alpha.copy_(tensors["alpha"])
        # The streams of batches and the gates derive from counts.
        self.streams_after(int(values["train_batches"]), int(values["valid_batches"]))
        self.objective.load(values["objective"])
        self.estimator.load(values["estimator"])
        self.walked = float(values["walked"])
