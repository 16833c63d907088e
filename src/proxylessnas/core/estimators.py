"""How the architecture parameters learn: estimators of the gradient of E[L] in α.

All share one protocol, and most share the paper's equation 4, `eq4`. An estimator decides
which candidates' gates enter the equation, and with which probabilities:

    TwoPath     a pair drawn without replacement, eq. 4 within the pair (section 3.2.1)
    FullPath    eq. 4 over all candidates
    Reinforce   ∇J = E[(R − b)·∇ log p] over sampled networks (section 3.3.2)
    Darts       the mixture Σ p·o(x), all candidates in memory; for comparison
    Gumbel      straight-through Gumbel softmax; for comparison
    Random      α never learns: the best of K uniform networks; for comparison

The expected cost is differentiable in closed form (section 3.3.1): its gradient in p_j is the
cost of candidate j, which joins ∂L/∂g_j before equation 4 is applied. Rows of all matrices are
the choices of the supernet, columns their candidates.
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
    """What an architecture step needs, besides α.

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
    """The outcome of one architecture step, before the optimiser.

    gradient: ∂L/∂α, [choices, candidates]; None where α does not learn.
    support: the same shape, True where a candidate was sampled.
    loss: on the validation batch. expected: the expected cost of each name.
    active: the index of the candidate that ran, for every choice; empty where several ran.
    """

    gradient: Tensor | None
    support: Tensor | None = None
    loss: float = float("nan")
    expected: list[float] = field(default_factory=list)
    active: tuple[int, ...] = ()


class Estimator(Protocol):
    """How α learns from one validation batch at a time. learns: whether α moves at all."""

    learns: bool

    def step(self, context: StepContext, generator: torch.Generator) -> Estimate:
        """The gradient of α on one validation batch; changes no weight and no buffer."""
        ...

    def restore_unsampled(self, alpha: Tensor, before: Tensor, estimate: Estimate) -> None:
        """After the optimiser moved α from `before`: undo what concerns unsampled candidates."""
        ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


def eq4(q: Tensor, grad_gates: Tensor) -> Tensor:
    """The paper's equation 4, row by row: ∂L/∂α_i = Σ_j ∂L/∂g_j · q_j · (δ_ij − q_i).

    q, grad_gates: [choices, candidates]; q sums to 1 in a row. The result is zero where q is.

    >>> eq4(torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[1.0, 3.0, 9.0]]))
    tensor([[-0.5000,  0.5000,  0.0000]])
    """
    # The sum over j collapses to q_i·(∂L/∂g_i − mean of ∂L/∂g under q). So a row sums to zero:
    # a candidate gains only what others lose, and a constant in every ∂L/∂g has no effect.
    return q * (grad_gates - (q * grad_gates).sum(1, keepdim=True))


def reinmax(q: Tensor, grad_gates: Tensor, active: Tensor) -> Tensor:
    """∂L/∂α from the slopes of the loss at both of two candidates (ReinMax, Liu et al., 2023).

    The exact gradient ∇E[L] consists of differences L(i) − L(j) between candidates. Equation 4
    replaces each by the slope ∂L/∂g at the active candidate, which is far off where candidates
    differ as much as a block and no block do: the first block is worth more than the second.
    The mean of the slopes at both candidates (Heun's rule) is exact for a loss that is quadratic
    in the gates. Since the active candidate a is drawn from q, the mean over draws of

        ∂L/∂α_j = ½·q_j·(∂L/∂g_j − ∂L/∂g_a) for j ≠ a,  ∂L/∂α_a = −Σ_j of these

    is that mean of slopes.

    q, grad_gates: [choices, candidates]; active: [choices], drawn from q.
    """
    a = active[:, None]
    gradient = 0.5 * q * (grad_gates - grad_gates.gather(1, a))  # 0 at a
    # The active candidate takes the rest, so that a row sums to zero as in equation 4.
    return gradient.scatter(1, a, -gradient.sum(1, keepdim=True))


# --- drawing ---


def draw_pair(alpha: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two candidates of every choice without replacement, and the one that runs (section 3.2.1).

    alpha, mask: [choices, candidates].

    Returns (support, active). support: the same shape, bool, True at the pair; a single entry
    where a row has one candidate. active: [choices], drawn from q = softmax(α_i, α_j).
    """
    # The two largest of α + Gumbel noise are a sample without replacement: the pair {i, j} has
    # the probability p_i·p_j·(1/(1 − p_i) + 1/(1 − p_j)), as if j were drawn after i was removed.
    race = alpha.masked_fill(~mask, -torch.inf)
    race = race - torch.empty_like(race).exponential_(generator=generator).log()
    pair = race.topk(min(2, race.shape[1]), dim=1).indices
    # A row with one candidate has a pad as its second: & mask.
    support = torch.zeros_like(mask).scatter_(1, pair, True) & mask
    # Drawn within the pair, as published. So a candidate is not active with probability p; for
    # p = (0.5, 0.3, 0.2) it is with (0.5536, 0.2893, 0.1571).
    q = softmax(alpha, support)
    return support, torch.multinomial(q, 1, generator=generator)[:, 0]


def binary_gates(support: Tensor, active: Tensor, leaf: Tensor) -> list[Gate]:
    """One `Binary` gate for every choice.

    support: [choices, candidates], the candidates whose gates receive ∂L/∂g.
    active: [choices], the candidate that runs forward; the rest of `support` runs in the
        backward pass alone.
    leaf: [choices, candidates], requires grad; ∂L/∂g arrives in its gradient.
    """
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

    path: for every choice the candidates that may run; these are frozen.

    Returns (∂L/∂g, Σ_k ∂L/∂E_k·cost_k, estimate without a gradient); both tensors are
    [choices, candidates].
    """
    p = context.supernet.probabilities()
    # E is the closed form over the full softmax, whichever candidates run. The published code
    # counts the sampled pair alone, and loses the cost's gradient where Zero is active.
    expected = context.costs.expected(p).detach().requires_grad_()
    with frozen(context.tensors.of(path)), context.supernet.gated(gates):
        loss, _ = context.evaluate()
        total = context.objective(loss, expected)
        grad_gates, grad_expected = torch.autograd.grad(total, [leaf, expected], allow_unused=True)
    grad_gates = torch.zeros_like(p) if grad_gates is None else grad_gates.to(p)
    # ∂L/∂E may depend on the loss (mul_log multiplies the two), so ranks average it as well.
    mean_loss = loss.detach().to(p)
    slopes = [] if grad_expected is None else [grad_expected]
    context.average([grad_gates, mean_loss, *slopes])
    cost = _cost(context, grad_expected)
    active = tuple(g.active for g in gates if isinstance(g, Binary))
    values = Estimate(None, None, float(mean_loss), expected.detach().tolist(), active)
    return grad_gates, cost, values


def _cost(context: StepContext, grad_expected: Tensor | None) -> Tensor:
    """Σ_k ∂/∂E_k·cost_k of every candidate; zeros where no expected cost enters."""
    per_candidate = context.costs.per_candidate
    if grad_expected is None:
        return torch.zeros(per_candidate.shape[1:], dtype=torch.float64)
    return torch.einsum("k,kmn->mn", grad_expected.to(per_candidate), per_candidate)


def _leaf(context: StepContext, value: Tensor) -> Tensor:
    return value.to(context.device).requires_grad_()


class _Plain:
    """An estimator without state, whose optimiser may move every α."""

    learns = True

    def restore_unsampled(self, alpha: Tensor, before: Tensor, estimate: Estimate) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass


class _Gated(_Plain):
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
        leaf = _leaf(context, torch.zeros_like(alpha))
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
        leaf = _leaf(context, torch.zeros_like(p))
        gates = binary_gates(mask, active, leaf)
        grad, cost, values = through_gates(context, gates, leaf, _all(context.supernet))
        gradient = self._gradient(p, grad, cost, active)
        return Estimate(gradient, mask, values.loss, values.expected, values.active)


class Darts(_Plain):
    """The soft mixture Σ p_j·o_j(x) (Liu et al., 2019): memory grows with the candidates."""

    def step(self, context: StepContext, generator: torch.Generator) -> Estimate:
        p, mask = context.supernet.probabilities(), context.supernet.mask
        # The mixture is differentiable in p: ∂L/∂p stands where ∂L/∂g does in equation 4.
        leaf = _leaf(context, p.clone())
        rows = zip(leaf.unbind(0), context.supernet.candidates, strict=True)
        gates = [Mixture(row[: len(names)]) for row, names in rows]
        grad, cost, values = through_gates(context, gates, leaf, _all(context.supernet))
        return Estimate(eq4(p, grad + cost), mask, values.loss, values.expected, values.active)


class Gumbel(_Plain):
    """Straight-through Gumbel softmax: a hard one-hot forward, its softmax's gradient."""

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = temperature

    def step(self, context: StepContext, generator: torch.Generator) -> Estimate:
        supernet = context.supernet
        p, mask = supernet.probabilities(), supernet.mask
        # The arg max of α + Gumbel noise is a draw from p; its softmax is a smooth stand-in.
        noise = -torch.empty_like(p).exponential_(generator=generator).log()
        soft = softmax((supernet.alpha.detach() + noise) / self.temperature, mask)
        leaf = _leaf(context, torch.zeros_like(p))
        gates = binary_gates(mask, soft.argmax(1), leaf)
        grad, cost, values = through_gates(context, gates, leaf, _all(supernet))
        # The chain rule through softmax((α + noise)/τ) is equation 4 with the soft weights for p,
        # over τ. The expected cost needs no sample: its gradient is exact at p.
        gradient = eq4(soft, grad) / self.temperature + eq4(p, cost)
        return Estimate(gradient, mask, values.loss, values.expected, values.active)


class Reinforce(_Plain):
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
        gradient = slope * self._score(p, draws, rewards) + eq4(p, _cost(context, grad_expected))
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


class Random(_Plain):
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
        reward=reward or make_reward(settings, costs),
        reinmax=settings.reinmax,
    )


def _all(supernet: Supernet) -> list[range]:
    return [range(len(names)) for names in supernet.candidates]
