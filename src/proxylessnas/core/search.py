"""The search, as the paper tells it (section 3.2).

    warm-up          weight steps alone; uniform gates, every candidate once a shuffled round
    then, in turn    a weight step:         gates drawn from p, a training batch, α frozen
                     an architecture step:  gates drawn from p, a validation batch, weights frozen
    at the end       α says which network to derive

Everything random derives from (seed, purpose, step), and everything that changes is in
`Search.state`, so a resumed search continues as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from proxylessnas.config import SearchSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.estimators import Reinforce, RewardOf, TwoPath, estimator_of
from proxylessnas.core.gates import Path
from proxylessnas.core.gradients import Estimate, StepContext
from proxylessnas.core.objective import make_objective
from proxylessnas.core.schedule import Schedule, fair_gates
from proxylessnas.core.search_state import SearchState
from proxylessnas.data import Batches
from proxylessnas.seeds import derive_seed
from proxylessnas.training.faults import finite, guarded
from proxylessnas.training.freezing import BufferSnapshot, ModuleTensors, undisturbed
from proxylessnas.training.optimizers import beside_tensors, cosine, gradients, whole_batch
from proxylessnas.training.task import batch_size, call, pieces, scalar, split


@dataclass
class Search(SearchState):
    """One search: the two steps that `training.loop.run_loop` takes, of the parts there."""

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

    # --- what the loop asks for, see `training.job.Job` ---

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

    def retry(self, batch: Any) -> Any:
        return self._again(batch)

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


def _drop_gradients(active: list[ModuleTensors]) -> None:
    """None and not zero: a gradient of zero would let momentum move an inactive candidate."""
    for tensors in active:
        for parameter in tensors.parameters:
            parameter.grad = None
