"""The gradient of α (paper section 3.2.1): equation 4, the pair it is applied to, one step.

The expected cost is differentiable in closed form (section 3.3.1): its gradient in p_j is the
cost of candidate j, which joins ∂L/∂g_j before equation 4 is applied. Rows of all matrices are
the choices of the supernet, columns their candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proxylessnas.core.costs import Costs
from proxylessnas.core.gates import Binary, Gate
from proxylessnas.core.objective import Objective
from proxylessnas.core.supernet import Supernet, softmax
from proxylessnas.core.tensors import SupernetTensors
from proxylessnas.training.freezing import frozen

# --- equations ---


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


# --- one architecture step ---


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
    cost = cost_gradient(context, grad_expected)
    active = tuple(g.active for g in gates if isinstance(g, Binary))
    values = Estimate(None, None, float(mean_loss), expected.detach().tolist(), active)
    return grad_gates, cost, values


def cost_gradient(context: StepContext, grad_expected: Tensor | None) -> Tensor:
    """Σ_k ∂/∂E_k·cost_k of every candidate; zeros where no expected cost enters."""
    per_candidate = context.costs.per_candidate
    if grad_expected is None:
        return torch.zeros(per_candidate.shape[1:], dtype=torch.float64)
    return torch.einsum("k,kmn->mn", grad_expected.to(per_candidate), per_candidate)


def leaf_of(context: StepContext, value: Tensor) -> Tensor:
    """The value on the model's device, as a tensor whose gradient is ∂L/∂g."""
    return value.to(context.device).requires_grad_()
