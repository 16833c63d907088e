"""How the architecture parameters learn: estimators of the gradient of E[L] in α.

All share one protocol and one equation. `eq4` is the paper's equation 4; an estimator
decides which candidates' gates it looks at, and with which probabilities. It takes a
candidate's worth from one end, the slope where another one ran; `reinmax` takes the mean of
the slopes at both:

    TwoPath     a pair drawn without replacement, eq. 4 within the pair (section 3.2.1)
    FullPath    eq. 4 over all candidates
    Reinforce   ∇J = E[(R − b)·∇ log p] over sampled networks (section 3.3.2)
    Darts       the mixture Σ p·o(x), all candidates in memory; for comparison
    Gumbel      straight-through Gumbel softmax; for comparison
    Random      α never learns: the best of K uniform networks; for comparison

An expected cost is differentiable in closed form (eq. 2): its gradient in p_j is the cost
of candidate j, so it joins ∂L/∂g before eq. 4 is applied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from proxylessnas.config import SearchSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.gates import Binary, Gate, Mixture, Path
from proxylessnas.core.objective import Objective, make_reward
from proxylessnas.core.supernet import Supernet, SupernetTensors, softmax
from proxylessnas.errors import ConfigError, did_you_mean
from proxylessnas.training.freezing import frozen

# Networks and their accuracy to a reward: (accuracy in [0, 1], candidate indices) -> R.
RewardOf = Callable[[float, Sequence[int]], float]


@dataclass(frozen=True, eq=False)
class StepContext:
    """What an architecture step needs to know, besides α.

    evaluate: (loss, accuracy in [0, 1] or None) of the model on the current validation
    batch, under the gates that are set. The loss carries the graph.
    average: makes tensors their means over the ranks of a distributed search, in place.
    """

    supernet: Supernet
    tensors: SupernetTensors
    costs: Costs
    objective: Objective
    evaluate: Callable[[], tuple[Tensor, Tensor | None]]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    average: Callable[[Sequence[Tensor]], None] = lambda _: None


@dataclass(frozen=True, eq=False)
class Estimate:
    """∂L/∂α [mixed operations, candidates], what it was learned from, and what was seen.

    active: the candidate of every mixed operation that ran; empty where several did.
    """

    gradient: Tensor | None
    support: Tensor | None = None
    loss: float = float("nan")
    expected: list[float] = field(default_factory=list)
    active: tuple[int, ...] = ()


class Estimator(Protocol):
    """learns: whether α moves. step: an estimate on one validation batch.
    restore_unsampled: puts α right after the optimiser moved it from `before`."""

    learns: bool

    def step(self, context: StepContext, generator: torch.Generator) -> Estimate: ...

    def restore_unsampled(self, alpha: Tensor, before: Tensor, estimate: Estimate) -> None: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


def eq4(q: Tensor, grad_gates: Tensor) -> Tensor:
    """∂L/∂α_i = Σ_j ∂L/∂g_j · q_j · (δ_ij − q_i), row by row; zero where q is."""
    return q * (grad_gates - (q * grad_gates).sum(1, keepdim=True))


def reinmax(q: Tensor, grad_gates: Tensor, active: Tensor) -> Tensor:
    """∂L/∂α by half of a candidate's slope now, and half of that when it is the active one.

    ∇E[L] is made of L(i) − L(j), which eq. 4 replaces by the slope at the active one. With
    candidates as far apart as a block and none, that is far off: what a block is worth where
    there is none it is not worth where there is one. The mean of the slopes at both ends (Heun's
    rule; ReinMax, Liu et al., 2023) is exact for a loss quadratic in the gates. As the active
    candidate a is drawn from q, the mean over draws of this is that of the two slopes:

        ∂L/∂α_j = ½·q_j·(∂L/∂g_j − ∂L/∂g_a) for j ≠ a,  ∂L/∂α_a = −Σ of these.

    q, grad_gates: [mixed operations, candidates]; active: [mixed operations], drawn from q.
    """
    a = active[:, None]
    gradient = 0.5 * q * (grad_gates - grad_gates.gather(1, a))  # 0 at a
    return gradient.scatter(1, a, -gradient.sum(1, keepdim=True))


# --- drawing ---


def draw_pair(alpha: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(support, active): two candidates a row without replacement, and the one that runs.

    alpha, mask: [mixed operations, candidates].
    support: the same shape, bool; one entry where a row has one candidate.
    active: [mixed operations], drawn within the pair from q = softmax(α_i, α_j).
    """
    # Gumbel-top-2 is sampling without replacement, and takes rows with one candidate too.
    race = alpha.masked_fill(~mask, -torch.inf)
    race = race - torch.empty_like(race).exponential_(generator=generator).log()
    pair = race.topk(min(2, race.shape[1]), dim=1).indices
    support = torch.zeros_like(mask).scatter_(1, pair, True) & mask
    q = softmax(alpha, support)
    return support, torch.multinomial(q, 1, generator=generator)[:, 0]


def binary_gates(support: Tensor, active: Tensor, leaf: Tensor) -> list[Gate]:
    """A `Binary` gate a row: `active` runs, the rest of `support` is tried in the backward."""
    rows: list[Gate] = []
    for chosen, run, gates in zip(active.tolist(), support.tolist(), leaf.unbind(0), strict=True):
        inactive = tuple(j for j, in_support in enumerate(run) if in_support and j != chosen)
        rows.append(Binary(chosen, inactive, gates))
    return rows


# --- through the gates ---


def through_gates(
    context: StepContext, gates: Sequence[Gate], leaf: Tensor, path: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Estimate]:
    """One forward and backward pass on a validation batch.

    Returns ∂L/∂g [mixed operations, candidates], the same shape's Σ_k ∂L/∂E_k·cost_k, and
    the values seen. E is the closed form over the full softmax, whatever runs.
    """
    p = context.supernet.probabilities()
    expected = context.costs.expected(p).detach().requires_grad_()
    with frozen(context.tensors.of(path)), context.supernet.gated(gates):
        loss, _ = context.evaluate()
        total = context.objective(loss, expected)
        grad_gates, grad_expected = torch.autograd.grad(total, [leaf, expected], allow_unused=True)
    grad_gates = torch.zeros_like(p) if grad_gates is None else grad_gates.to(p)
    # The slope of an objective in E may hold the loss, so each rank has its own.
    seen_loss = loss.detach().to(p)
    slopes = [] if grad_expected is None else [grad_expected]
    context.average([grad_gates, seen_loss, *slopes])
    cost = _cost(context, grad_expected)
    active = tuple(g.active for g in gates if isinstance(g, Binary))
    seen = Estimate(None, None, float(seen_loss), expected.detach().tolist(), active)
    return grad_gates, cost, seen


def _cost(context: StepContext, grad_expected: Tensor | None) -> Tensor:
    """Σ_k ∂/∂E_k·cost_k of every candidate; zeros where no expected cost enters."""
    per_candidate = context.costs.per_candidate
    if grad_expected is None:
        return torch.zeros(per_candidate.shape[1:], dtype=torch.float64)
    return torch.einsum("k,kmn->mn", grad_expected.to(per_candidate), per_candidate)


def _leaf(context: StepContext, value: Tensor) -> Tensor:
    return value.to(context.device).requires_grad_()


class _Plain:
    """Learns, keeps no state, has nothing to put right."""

    learns = True

    def restore_unsampled(self, alpha: Tensor, before: Tensor, estimate: Estimate) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass


class _Gated(_Plain):
    """reinmax: whether slopes at both ends count, or eq. 4's alone."""

    def __init__(self, *, reinmax: bool = False) -> None:
        self.reinmax = reinmax

    def _gradient(self, q: Tensor, grad_gates: Tensor, cost: Tensor, active: Tensor) -> Tensor:
        """Of the loss, and of the expected costs, which are linear in p."""
        if self.reinmax:
            return reinmax(q, grad_gates, active) + eq4(q, cost)
        return eq4(q, grad_gates + cost)


class TwoPath(_Gated):
    """Eq. 4 within a pair; the unsampled candidates keep their probabilities."""

    def step(self, context: StepContext, generator: torch.Generator) -> Estimate:
        alpha = context.supernet.alpha.detach()
        support, active = draw_pair(alpha, context.supernet.mask, generator)
        leaf = _leaf(context, torch.zeros_like(alpha))
        path = [[j for j, on in enumerate(row) if on] for row in support.tolist()]
        gates = binary_gates(support, active, leaf)
        grad, cost, seen = through_gates(context, gates, leaf, path)
        gradient = self._gradient(softmax(alpha, support), grad, cost, active)
        return Estimate(gradient, support, seen.loss, seen.expected, seen.active)

    def restore_unsampled(self, alpha: Tensor, before: Tensor, estimate: Estimate) -> None:
        """Shift the pair so that Σ e^α over it is what it was (section 3.2.1)."""
        assert estimate.support is not None
        out = ~estimate.support
        shift = torch.logsumexp(alpha.masked_fill(out, -torch.inf), 1, keepdim=True)
        shift -= torch.logsumexp(before.masked_fill(out, -torch.inf), 1, keepdim=True)
        alpha.sub_(torch.where(estimate.support, shift, 0.0))


class FullPath(_Gated):
    """Eq. 4 over all candidates; the activations of the active path alone are kept."""

    def step(self, context: StepContext, generator: torch.Generator) -> Estimate:
        p = context.supernet.probabilities()
        mask = context.supernet.mask
        active = torch.multinomial(p, 1, generator=generator)[:, 0]
        leaf = _leaf(context, torch.zeros_like(p))
        gates = binary_gates(mask, active, leaf)
        grad, cost, seen = through_gates(context, gates, leaf, _all(context.supernet))
        gradient = self._gradient(p, grad, cost, active)
        return Estimate(gradient, mask, seen.loss, seen.expected, seen.active)


class Darts(_Plain):
    """The soft mixture Σ p_j·o_j(x) (Liu et al., 2019): memory grows with the candidates."""

    def step(self, context: StepContext, generator: torch.Generator) -> Estimate:
        p = context.supernet.probabilities()
        leaf = _leaf(context, p.clone())
        rows = zip(leaf.unbind(0), context.supernet.candidates, strict=True)
        gates = [Mixture(row[: len(names)]) for row, names in rows]
        grad, cost, seen = through_gates(context, gates, leaf, _all(context.supernet))
        return Estimate(
            eq4(p, grad + cost), context.supernet.mask, seen.loss, seen.expected, seen.active
        )


class Gumbel(_Plain):
    """Straight-through Gumbel softmax: a hard one-hot forward, its softmax's gradient."""

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = temperature

    def step(self, context: StepContext, generator: torch.Generator) -> Estimate:
        supernet = context.supernet
        p, mask = supernet.probabilities(), supernet.mask
        noise = -torch.empty_like(p).exponential_(generator=generator).log()
        soft = softmax((supernet.alpha.detach() + noise) / self.temperature, mask)
        leaf = _leaf(context, torch.zeros_like(p))
        gates = binary_gates(mask, soft.argmax(1), leaf)
        grad, cost, seen = through_gates(context, gates, leaf, _all(supernet))
        gradient = eq4(soft, grad) / self.temperature + eq4(p, cost)
        return Estimate(gradient, mask, seen.loss, seen.expected, seen.active)


class Reinforce(_Plain):
    """∇J ≈ (1/M) Σ_i (R_i − b)·∇ log p(g_i) over M networks on one validation batch.

    reward: (accuracy, candidate indices) -> R, to be maximised; it needs no derivative, so a
    measured latency may enter. Default: the negative loss. The objective scales it, and adds the
    gradient of the expected costs in closed form.
    The baseline b is a moving average of earlier batches' mean rewards alone, so it does not
    depend on the networks it is subtracted from; it is part of the run's state.
    """

    def __init__(
        self, samples: int = 10, *, reward: RewardOf | None = None, decay: float = 0.9
    ) -> None:
        self.samples, self.reward, self.decay = samples, reward, decay
        self.baseline: float | None = None

    def step(self, context: StepContext, generator: torch.Generator) -> Estimate:
        supernet = context.supernet
        p = supernet.probabilities()
        expected = context.costs.expected(p).detach().requires_grad_()
        draws = torch.multinomial(p, self.samples, replacement=True, generator=generator)
        rows = draws.T.tolist()
        seen = torch.zeros(self.samples, 2, dtype=p.dtype)  # loss and accuracy of each network
        for i, row in enumerate(rows):
            gates, tensors = [Path(j) for j in row], context.tensors.of([[j] for j in row])
            with frozen(tensors), supernet.gated(gates), torch.no_grad():
                loss, accuracy = context.evaluate()
            if self.reward is not None and accuracy is None:
                raise ConfigError("this reward needs an accuracy: give the task its `correct`")
            seen[i] = torch.stack((loss, loss if accuracy is None else accuracy)).to(seen)
        context.average([seen])
        rewards = -seen[:, 0]
        if self.reward is not None:
            scored = zip(seen[:, 1].tolist(), rows, strict=True)
            rewards = torch.tensor([self.reward(*one) for one in scored], dtype=p.dtype)
            context.average([rewards])  # a measured latency is each rank's own
        # Every objective is affine in the loss: a(E)·L + b(E). A reward is a loss with a minus.
        loss = -rewards.mean().requires_grad_()
        total = context.objective(loss, expected)
        slope, grad_expected = torch.autograd.grad(total, [loss, expected], allow_unused=True)
        gradient = slope * self._score(p, draws, rewards) + eq4(p, _cost(context, grad_expected))
        return Estimate(gradient, supernet.mask, float(seen[:, 0].mean()), expected.tolist())

    def _score(self, p: Tensor, draws: Tensor, rewards: Tensor) -> Tensor:
        """−(1/M) Σ (R − b)·(onehot − p): the gradient that a minimiser descends.

        The first batch only sets the baseline: there is none of an earlier batch to subtract.
        A batch that is not finite leaves it: the step is not taken, and the next one is sound.
        """
        mean = float(rewards.mean())
        if not math.isfinite(mean):
            return torch.full_like(p, mean)
        if self.baseline is None:
            self.baseline = mean
            return torch.zeros_like(p)
        advantage = rewards - self.baseline
        self.baseline = self.decay * self.baseline + (1 - self.decay) * mean
        onehot = torch.nn.functional.one_hot(draws, p.shape[1]).to(p)  # [mixed, M, candidates]
        return -(advantage[None, :, None] * (onehot - p[:, None])).mean(1)

    def state(self) -> dict[str, Any]:
        return {"baseline": self.baseline}

    def load(self, state: dict[str, Any]) -> None:
        self.baseline = state.get("baseline")


class Random(_Plain):
    """Gates stay uniform; deriving then takes the best of K random networks."""

    learns = False

    def step(self, context: StepContext, generator: torch.Generator) -> Estimate:
        return Estimate(None)


def make_estimator(
    name: str, *, samples: int = 10, reward: RewardOf | None = None, reinmax: bool = False
) -> Estimator:
    """An estimator by its name in the settings; the rest is for those that it concerns."""
    makers: dict[str, Callable[[], Estimator]] = {
        "two_path": partial(TwoPath, reinmax=reinmax),
        "full_path": partial(FullPath, reinmax=reinmax),
        "reinforce": lambda: Reinforce(samples, reward=reward),
        "darts": Darts,
        "gumbel": Gumbel,
        "random": Random,
    }
    if name not in makers:
        raise ConfigError(f"there is no estimator {name!r}; {did_you_mean(name, makers)}")
    return makers[name]()


def estimator_of(
    settings: SearchSettings, costs: Costs, reward: RewardOf | None = None
) -> Estimator:
    """The estimator that the settings name; a reward of one's own comes before theirs."""
    return make_estimator(
        settings.estimator,
        samples=settings.reinforce_samples,
        reward=reward or make_reward(settings, costs),
        reinmax=settings.reinmax,
    )


def _all(supernet: Supernet) -> list[range]:
    return [range(len(names)) for names in supernet.candidates]
