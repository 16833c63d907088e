"""How the architecture parameters learn: estimators of the gradient of E[L] in α.

All share one protocol, and most share the paper's equation 4 (`core.gradients`). An estimator
decides which candidates' gates enter the equation, and with which probabilities:

    TwoPath     a pair drawn without replacement, eq. 4 within the pair (section 3.2.1)
    FullPath    eq. 4 over all candidates
    Reinforce   ∇J = E[(R − b)·∇ log p] over sampled networks (section 3.3.2)
    Darts       the mixture Σ p·o(x), all candidates in memory; for comparison
    Gumbel      straight-through Gumbel softmax; for comparison
    Random      α never learns: the best of K uniform networks; for comparison
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from proxylessnas.config import SearchSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.gates import Mixture, Path
from proxylessnas.core.gradients import (
    Estimate,
    StepContext,
    binary_gates,
    cost_gradient,
    draw_pair,
    eq4,
    leaf_of,
    reinmax,
    through_gates,
)
from proxylessnas.core.objective import make_reward
from proxylessnas.core.supernet import Supernet, softmax
from proxylessnas.errors import ConfigError, did_you_mean
from proxylessnas.training.freezing import frozen

# Networks and their accuracy to a reward: (accuracy in [0, 1], candidate indices) -> R.
RewardOf = Callable[[float, Sequence[int]], float]


class Estimator(ABC):
    """How α learns from one validation batch at a time. learns: whether α moves at all."""

    learns = True

    @abstractmethod
    def step(self, context: StepContext, generator: torch.Generator) -> Estimate:
        """The gradient of α on one validation batch; changes no weight and no buffer."""

    def restore_unsampled(  # noqa: B027 (most let the optimiser move every α)
        self, alpha: Tensor, before: Tensor, estimate: Estimate
    ) -> None:
        """After the optimiser moved α from `before`: undo what concerns unsampled candidates."""

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None: ...  # noqa: B027


class _Gated(Estimator):
    """An estimator through binary gates. reinmax: slopes at both candidates, see `reinmax`."""

    def __init__(self, *, reinmax: bool = False) -> None:
        self.reinmax = reinmax

    def _gradient(self, q: Tensor, grad_gates: Tensor, cost: Tensor, active: Tensor) -> Tensor:
        """∂/∂α of the loss and of the expected costs."""
        # The expected costs are linear in p: their slope is the same everywhere, and equation 4
        # is exact for them.
        if self.reinmax:
            return reinmax(q, grad_gates, active) + eq4(q, cost)
        return eq4(q, grad_gates + cost)


class TwoPath(_Gated):
    """Equation 4 within a sampled pair (section 3.2.1): two paths, whatever the candidates."""

    def step(self, context: StepContext, generator: torch.Generator) -> Estimate:
        alpha = context.supernet.alpha.detach()
        support, active = draw_pair(alpha, context.supernet.mask, generator)
        leaf = leaf_of(context, torch.zeros_like(alpha))
        path = [[j for j, sampled in enumerate(row) if sampled] for row in support.tolist()]
        gates = binary_gates(support, active, leaf)
        grad, cost, values = through_gates(context, gates, leaf, path)
        # q stands for p in equation 4, so candidates outside the pair get a gradient of zero.
        gradient = self._gradient(softmax(alpha, support), grad, cost, active)
        return Estimate(gradient, support, values.loss, values.expected, values.active)

    def restore_unsampled(self, alpha: Tensor, before: Tensor, estimate: Estimate) -> None:
        """Shift the pair so that Σ e^α over the pair is what it was (section 3.2.1)."""
        # p_k of an unsampled candidate is e^α_k over the sum of all e^α. Its own α did not move;
        # with the pair's share of the sum restored, p_k stays the same. A log-sum-exp difference
        # neither overflows nor loses a probability near zero.
        assert estimate.support is not None
        out = ~estimate.support
        shift = torch.logsumexp(alpha.masked_fill(out, -torch.inf), 1, keepdim=True)
        shift -= torch.logsumexp(before.masked_fill(out, -torch.inf), 1, keepdim=True)
        alpha.sub_(torch.where(estimate.support, shift, 0.0))


class FullPath(_Gated):
    """Equation 4 over all candidates.

    The inactive ones run in the backward pass, one at a time, so memory is that of one path,
    but time grows with the number of candidates.
    """

    def step(self, context: StepContext, generator: torch.Generator) -> Estimate:
        p = context.supernet.probabilities()
        mask = context.supernet.mask
        active = torch.multinomial(p, 1, generator=generator)[:, 0]
        leaf = leaf_of(context, torch.zeros_like(p))
        gates = binary_gates(mask, active, leaf)
        grad, cost, values = through_gates(context, gates, leaf, _all(context.supernet))
        gradient = self._gradient(p, grad, cost, active)
        return Estimate(gradient, mask, values.loss, values.expected, values.active)


class Darts(Estimator):
    """The soft mixture Σ p_j·o_j(x) (Liu et al., 2019): memory grows with the candidates."""

    def step(self, context: StepContext, generator: torch.Generator) -> Estimate:
        p, mask = context.supernet.probabilities(), context.supernet.mask
        # The mixture is differentiable in p: ∂L/∂p stands where ∂L/∂g does in equation 4.
        leaf = leaf_of(context, p.clone())
        rows = zip(leaf.unbind(0), context.supernet.candidates, strict=True)
        gates = [Mixture(row[: len(names)]) for row, names in rows]
        grad, cost, values = through_gates(context, gates, leaf, _all(context.supernet))
        return Estimate(eq4(p, grad + cost), mask, values.loss, values.expected, values.active)


class Gumbel(Estimator):
    """Straight-through Gumbel softmax: a hard one-hot forward, its softmax's gradient."""

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = temperature

    def step(self, context: StepContext, generator: torch.Generator) -> Estimate:
        supernet = context.supernet
        p, mask = supernet.probabilities(), supernet.mask
        # The arg max of α + Gumbel noise is a draw from p; its softmax is a smooth stand-in.
        noise = -torch.empty_like(p).exponential_(generator=generator).log()
        soft = softmax((supernet.alpha.detach() + noise) / self.temperature, mask)
        leaf = leaf_of(context, torch.zeros_like(p))
        gates = binary_gates(mask, soft.argmax(1), leaf)
        grad, cost, values = through_gates(context, gates, leaf, _all(supernet))
        # The chain rule through softmax((α + noise)/τ) is equation 4 with the soft weights for p,
        # over τ. The expected cost needs no sample: its gradient is exact at p.
        gradient = eq4(soft, grad) / self.temperature + eq4(p, cost)
        return Estimate(gradient, mask, values.loss, values.expected, values.active)


class Reinforce(Estimator):
    """∇J ≈ (1/M) Σ_i (R_i − b)·∇ log p(g_i) over M networks on one batch (section 3.3.2).

    samples: M. decay: of the baseline b, see `_score`.
    reward: (accuracy, candidate indices) -> R, to be maximised. R needs no derivative, so a
        measured latency may enter. Default: the negative loss. The objective scales R, and adds
        the gradient of the expected costs in closed form.
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
        scores = torch.zeros(self.samples, 2, dtype=p.dtype)  # loss and accuracy of each network
        # All networks see one batch, so that their rewards differ by the networks alone.
        for i, row in enumerate(rows):
            gates, tensors = [Path(j) for j in row], context.tensors.of([[j] for j in row])
            with frozen(tensors), supernet.gated(gates), torch.no_grad():
                loss, accuracy = context.evaluate()
            if self.reward is not None and accuracy is None:
                raise ConfigError("this reward needs an accuracy: give the task its `correct`")
            scores[i] = torch.stack((loss, loss if accuracy is None else accuracy)).to(scores)
        context.average([scores])
        rewards = -scores[:, 0]
        if self.reward is not None:
            pairs = zip(scores[:, 1].tolist(), rows, strict=True)
            rewards = torch.tensor([self.reward(*pair) for pair in pairs], dtype=p.dtype)
            context.average([rewards])  # ranks measure latencies of their own
        # Every objective is affine in the loss, a(E)·L + b(E), and a reward is a loss with a
        # minus. So its gradient is a times the score function's, plus the costs' in closed form.
        loss = -rewards.mean().requires_grad_()
        total = context.objective(loss, expected)
        slope, grad_expected = torch.autograd.grad(total, [loss, expected], allow_unused=True)
        gradient = slope * self._score(p, draws, rewards) + eq4(
            p, cost_gradient(context, grad_expected)
        )
        return Estimate(gradient, supernet.mask, float(scores[:, 0].mean()), expected.tolist())

    def _score(self, p: Tensor, draws: Tensor, rewards: Tensor) -> Tensor:
        """The gradient that a minimiser descends, −(1/M) Σ (R − b)·(onehot − p).

        draws: [choices, M], candidate indices. rewards: [M].
        """
        mean = float(rewards.mean())
        # Rewards that are not finite leave the baseline: this step is not taken, the next one is.
        if not math.isfinite(mean):
            return torch.full_like(p, mean)
        # The baseline is the moving average of earlier batches' rewards, and is saved with the
        # run. Were the networks' own rewards in it, the estimate would be biased; so the first
        # batch sets the baseline and teaches nothing. The published code applies `decay` the
        # wrong way round, and follows the newest batch by 99 %.
        if self.baseline is None:
            self.baseline = mean
            return torch.zeros_like(p)
        advantage = rewards - self.baseline
        self.baseline = self.decay * self.baseline + (1 - self.decay) * mean
        # ∂ log p(g)/∂α = onehot(g) − p, row by row.
        onehot = torch.nn.functional.one_hot(draws, p.shape[1]).to(p)  # [choices, M, candidates]
        return -(advantage[None, :, None] * (onehot - p[:, None])).mean(1)

    def state(self) -> dict[str, Any]:
        return {"baseline": self.baseline}

    def load(self, state: dict[str, Any]) -> None:
        self.baseline = state.get("baseline")


class Random(Estimator):
    """Gates stay uniform; deriving then takes the best of K random networks."""

    learns = False

    def step(self, context: StepContext, generator: torch.Generator) -> Estimate:
        return Estimate(None)


def make_estimator(
    name: str, *, samples: int = 10, reward: RewardOf | None = None, reinmax: bool = False
) -> Estimator:
    """An estimator by its name in the settings.

    samples, reward: of `reinforce`. reinmax: of `two_path` and `full_path`.

    Raises:
        ConfigError: there is no estimator of that name.
    """
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
    """The estimator that the settings name. reward: takes the place of the settings' reward."""
    return make_estimator(
        settings.estimator,
        samples=settings.reinforce_samples,
        reward=make_reward(settings, costs) if reward is None else reward,
        reinmax=settings.reinmax,
    )


def _all(supernet: Supernet) -> list[range]:
    return [range(len(names)) for names in supernet.candidates]
