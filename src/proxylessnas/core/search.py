"""The search, as the paper tells it (section 3.2).

    warm-up          weight steps alone; uniform gates, every candidate once a shuffled round
    then, in turn    a weight step:         gates drawn from p, a training batch, α frozen
                     an architecture step:  gates drawn from p, a validation batch, weights frozen
    at the end       α says which network to derive

Everything random derives from (seed, purpose, step), and everything that changes is in
`Search.state`, so a resumed search continues as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.config import SearchSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.estimators import Estimator, Reinforce, RewardOf, TwoPath, estimator_of
from proxylessnas.core.gates import Path
from proxylessnas.core.gradients import Estimate, StepContext
from proxylessnas.core.objective import Objective, make_objective
from proxylessnas.core.schedule import Schedule, fair_gates
from proxylessnas.core.supernet import Supernet, collect_tensors
from proxylessnas.data import Batches, BatchStream
from proxylessnas.errors import ConfigError, SupernetError
from proxylessnas.seeds import derive_seed
from proxylessnas.training.callbacks import ArchitectureMetrics, StepMetrics, mean_entropy
from proxylessnas.training.device import Machine
from proxylessnas.training.faults import Recovery, finite, guarded, named
from proxylessnas.training.freezing import BufferSnapshot, ModuleTensors, undisturbed
from proxylessnas.training.optimizers import (
    beside_parameters,
    beside_tensors,
    cosine,
    gradients,
    load_beside,
    load_model,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    sgd,
    unshared,
    whole_batch,
)
from proxylessnas.training.ranks import ALONE, Ranks
from proxylessnas.training.task import Task, batch_size, call, not_numbers, pieces, scalar, split

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
class Search:
    """One search: its parts, and the two steps. `training.loop.run_loop` takes them.

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

    @staticmethod
    def from_settings(
        settings: SearchSettings,
        *,
        costs: Costs,
        train: Batches,
        reward: RewardOf | None = None,
        schedule: Schedule | None = None,
        **parts: Any,
    ) -> Search:
        """The search that the settings describe, with their objective and their estimator.

        reward: for the estimator `reinforce`, in place of the settings' own. schedule: in place of
        theirs. parts: as `Search`.
        """
        schedule = schedule or Schedule.of(settings, len(train))
        return Search(
            costs=costs,
            train=train,
            settings=settings,
            objective=make_objective(settings, costs, schedule.architecture_steps),
            estimator=estimator_of(settings, costs, reward),
            schedule=schedule,
            **parts,
        )

    def __post_init__(self) -> None:
        s = self.settings
        if not any(True for _ in self.supernet.model.parameters()):
            raise SupernetError("the model has no parameter: there are no weights to search with")
        if s.arch_beta1 > 0 and isinstance(self.estimator, TwoPath):
            raise ConfigError(
                f"arch_beta1 is {s.arch_beta1}: Adam's momentum would move candidates that a "
                "two-path step did not sample; use 0, or another estimator"
            )
        self.total, self.stopped = self.schedule.total, False
        self.model = self.machine.place(self.supernet.model)
        # A loss may have parameters as well: they learn in weight steps, and stay in others.
        beside = self.task.modules_beside(self.model) if self.beside is None else self.beside
        self.losses = dict(beside)
        for module in self.losses.values():
            self.machine.place(module)
        self.tensors = collect_tensors(self.supernet, self.losses.values())
        self.step, self.latest, self.recovery = 0, LatestStep(), Recovery()
        self.batch: Any = None
        self.at_once: int | None = None  # examples that memory is there for; None: a whole batch
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
        weights = list(self.model.parameters())
        groups = [{"params": weights, "weight_decay": s.weight_decay}]
        # Decay would pull the loss's own parameters towards another loss.
        if losses := unshared(beside_parameters(self.losses).values(), weights):
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

    # --- what the loop asks for, see `training.loop.Job` ---

    @property
    def rate(self) -> str:
        return f"the search's learning_rate ({self.settings.learning_rate:g})"

    def prepare(self) -> Callable[[], None]:
        """Rank 0's weights, training mode, and whatever lets the model compute fast here.

        Returns what undoes the latter two.
        """
        modes = {module: module.training for module in self.model.modules()}
        beside = beside_tensors(self.losses)
        self.ranks.copy_main([*self.model.state_dict().values(), *beside.values()])
        self.model.train()
        candidates = [c for mixed in self.supernet.paths for c in mixed.candidates.values()]
        undo = self.machine.prepare(
            self.model, candidates, frozen_statistics=self.frozen_statistics
        )

        def put_back() -> None:
            undo()
            for module, training in modes.items():
                module.training = training

        return put_back

    def take_step(self) -> None:
        """A weight step, and the architecture step that follows it where one is due."""
        if self.schedule.weights:
            self.weight_step()
        if self.schedule.architecture_due(self.step):
            self.architecture_step()
        if (self.step + 1) % len(self.train) == 0:
            self.ranks.check_equal("alpha", self.supernet.alpha)

    def stop(self) -> None:
        """The latest step was the last one."""
        self.total, self.stopped = self.step, True

    def give_up(self) -> bool:
        return False

    def retry(self, batch: Any) -> Any:
        """The latest step's computation on another batch; what it leaves behind is of no use."""
        return self._again(batch)

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

    # --- the weight step ---

    def weight_step(self) -> None:
        """SGD on the weights of one sampled path; α and everything else stay."""
        choice = self.weight_gates()
        # All that this step may change: the fixed part of the model and one path through it.
        active = list(self.tensors.of([[j] for j in choice]))
        for group in self.weight_optimizer.param_groups:
            group["lr"] = self.recovery.factor * self.weight_rate()
        self.batch = self.machine.put(self.train_stream.draw())
        self.machine.seed(derive_seed(self.seed, "dropout", self.step, *self.ranks.stream))
        # BN statistics move in the forward pass. Should the loss not be finite, they go back.
        snapshots = [
            BufferSnapshot(m._buffers) for t in active for m in (*t.batch_norms, *t.with_buffers)
        ]
        self._again = partial(self._weight_gradients, choice)
        loss = self._again(self.batch)
        self.latest.weight_loss = loss = self.ranks.average_step(active, loss)
        # The optimiser sees the active path's parameters alone. Weight decay or momentum on the
        # others would wear away candidates that are not drawn.
        parameters = [p for tensors in active for p in tensors.parameters]
        later = self.machine.is_apart
        taken = guarded(self.weight_optimizer, parameters, loss, snapshots, later=later)
        self._report("weight", taken, choice)
        _drop_gradients(active)

    def _weight_gradients(self, choice: Sequence[int], batch: Any) -> Tensor:
        with self.supernet.gated([Path(j) for j in choice]):
            return gradients(self.model, self.task, self.machine, batch, self.at_once)

    def weight_gates(self) -> list[int]:
        """The candidate of every choice for this weight step."""
        # α cannot compare candidates whose weights have not learned anything; and later a share of
        # uniform steps keeps improbable candidates trained, or the rich would get richer.
        warmup = self.step < self.schedule.warmup or not self.estimator.learns
        draw = float(torch.rand((), generator=self._generator("uniform")))
        if warmup or draw < self.uniform_share():
            if self.uniform_gates is not None:
                return list(self.uniform_gates(self.step))
            return fair_gates(self.supernet, self.seed, self.step)
        p = self.supernet.probabilities()
        drawn = torch.multinomial(p, 1, generator=self._generator("weight gates"))
        return [int(j) for j in drawn[:, 0].tolist()]

    def uniform_share(self) -> float:
        """Decays linearly to 0 over the joint phase."""
        joint = self.schedule.total - self.schedule.warmup
        done = (self.step - self.schedule.warmup) / max(1, joint)
        return self.settings.uniform_share * (1 - done)

    def weight_rate(self) -> float:
        """Cosine decay; the warm-up has its own where it has its own rate."""
        s, schedule = self.settings, self.schedule
        if s.warmup_learning_rate is None:
            return cosine(s.learning_rate, self.step, schedule.total)
        if self.step < schedule.warmup:
            return cosine(s.warmup_learning_rate, self.step, schedule.warmup)
        return cosine(
            s.learning_rate, self.step - schedule.warmup, schedule.total - schedule.warmup
        )

    # --- the architecture step ---

    def architecture_step(self) -> None:
        """Adam on α by the estimator's gradient; weights and buffers stay."""
        for group in self.arch_optimizer.param_groups:
            group["lr"] = self.recovery.factor * self.arch_rate
        # Validation images: the weights have fitted the training images already.
        self.batch = self.machine.put(self.valid_stream.draw())
        dropout = derive_seed(self.seed, "architecture dropout", self.step, *self.ranks.stream)
        self.machine.seed(dropout)
        self._again = self._estimate
        estimate = self._again(self.batch)
        self.latest.estimate, self.latest.estimated_at = estimate, self.step
        if estimate.gradient is None:
            return
        if not bool(finite(estimate.gradient)):
            self._report("architecture", False, estimate.active)
            return
        alpha = self.supernet.alpha
        before = alpha.detach().clone()
        # The estimator computed the gradient by itself, so no graph reaches from the loss to α.
        alpha.grad = estimate.gradient.masked_fill(~self.supernet.mask, 0.0)
        self.arch_optimizer.step()
        alpha.grad = None
        with torch.no_grad():
            self.estimator.restore_unsampled(alpha, before, estimate)
            if not bool(finite(alpha)):
                alpha.copy_(before)
                self._report("architecture", False, estimate.active)
                return
            self.walked += float((alpha - before).square().sum())
        self._report("architecture", True, estimate.active)
        # The multipliers follow the network that would be derived now (`Constraint`).
        self.objective.observe(self.costs.of(self.most_probable()))

    def _estimate(self, batch: Any) -> Estimate:
        parts = [  # of one draw; every objective is affine in the loss
            (share, self.estimator.step(self.context(part), self._generator("architecture gates")))
            for share, part in pieces(batch, self.at_once)
        ]
        first = parts[0][1]
        if len(parts) == 1 or first.gradient is None:
            return first
        gradients = [share * e.gradient for share, e in parts if e.gradient is not None]
        loss = sum(share * e.loss for share, e in parts)
        return replace(first, gradient=torch.stack(gradients).sum(0), loss=loss)

    def context(self, batch: Any) -> StepContext:
        """What the estimator needs for an architecture step on one validation batch."""
        inputs, target = split(batch)

        # Label smoothing is for the weights: here the loss is the task's own.
        def evaluate() -> tuple[Tensor, Tensor | None]:
            with self.machine.precision():
                output = call(self.model, inputs)
                loss = scalar(self.task.loss(output, target))
            if self.task.correct is None:
                return loss, None
            with torch.no_grad():
                correct = torch.as_tensor(self.task.correct(output, target), device=loss.device)
            return loss, correct.float() / batch_size(target, inputs)

        return StepContext(
            supernet=self.supernet,
            tensors=self.tensors,
            costs=self.costs,
            objective=self.objective,
            evaluate=evaluate,
            device=self.machine.device,
            average=self.ranks.average,
        )

    # --- its memory ---

    def probe(self, batch: Any) -> None:
        """Take the memory of a step of each kind, on the largest candidates; nothing is left."""
        supernet, state, batch = self.supernet, self.estimator.state(), self.machine.put(batch)
        mask, largest = supernet.mask, supernet.largest(2)
        try:
            with undisturbed([*self.model.modules(), *self.losses.values()]):
                if self.schedule.weights:
                    self._weight_gradients([row[0] for row in largest], batch)
                if self.schedule.architecture_steps:
                    if isinstance(self.estimator, TwoPath):
                        supernet.mask = torch.zeros_like(mask)
                        for on, row in zip(supernet.mask, largest, strict=True):
                            on[row] = True
                    self.estimator.step(self.context(batch), torch.Generator().manual_seed(0))
        finally:
            supernet.mask = mask
            self.estimator.load(state)

    @property
    def whole_batch(self) -> str:
        """Why `at_once` would change the result; empty where it would not."""
        if isinstance(self.estimator, Reinforce):
            return "reinforce takes the reward of the whole batch"
        frozen = self.frozen_statistics
        return whole_batch(self.model, self.task, frozen_statistics=frozen)

    # --- what it knows ---

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

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values): all that changes while a search runs."""
        tensors = model_tensors(self.model) | beside_tensors(self.losses)
        tensors["alpha"] = self.supernet.alpha.detach()
        names = {id(p): n for n, p in self._parameters().items()}
        tensors |= optimizer_tensors("weight_optimizer", self.weight_optimizer, names)
        names = {id(self.supernet.alpha): "alpha"}
        tensors |= optimizer_tensors("arch_optimizer", self.arch_optimizer, names)
        values = {
            "step": self.step,
            "stopped": self.stopped,
            "recovery": self.recovery.state(),
            "train_batches": self.train_stream.drawn,
            "valid_batches": self.valid_stream.drawn,
            "objective": self.objective.state(),
            "estimator": self.estimator.state(),
            "walked": self.walked,
        }
        return tensors, values

    def _parameters(self) -> dict[str, nn.Parameter]:
        """What weight steps train, by name; what model and loss share by the model's name."""
        return beside_parameters(self.losses) | dict(self.model.named_parameters())

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Continue from a `state`; streams of batches and gates derive from its counts."""
        load_model(self.model, tensors)
        load_beside(self.losses, tensors)
        with torch.no_grad():
            self.supernet.alpha.copy_(tensors["alpha"])
        load_optimizer("weight_optimizer", self.weight_optimizer, self._parameters(), tensors)
        load_optimizer(
            "arch_optimizer", self.arch_optimizer, {"alpha": self.supernet.alpha}, tensors
        )
        self.step, self.recovery = int(values["step"]), Recovery.of(values["recovery"])
        if values["stopped"]:
            self.stop()
        self.streams_after(int(values["train_batches"]), int(values["valid_batches"]))
        self.objective.load(values["objective"])
        self.estimator.load(values["estimator"])
        self.walked = float(values["walked"])


def _drop_gradients(active: list[ModuleTensors]) -> None:
    """None and not zero: a gradient of zero would let momentum move an inactive candidate."""
    for tensors in active:
        for parameter in tensors.parameters:
            parameter.grad = None
