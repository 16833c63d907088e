"""Invariants 3 and 4: every estimator against autograd, enumeration and closed forms."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import (
    LEARNING,
    Chain,
    Recorder,
    Scale,
    log_of,
    priced,
    problem,
    row_of,
    seeded,
    supernet_with,
)

from proxylessnas.core.estimators import (
    Darts,
    FullPath,
    Gumbel,
    Reinforce,
    TwoPath,
    make_estimator,
)
from proxylessnas.core.gradients import (
    StepContext,
    binary_gates,
    draw_pair,
    eq4,
    reinmax,
    through_gates,
)
from proxylessnas.core.objective import Linear, MulLog
from proxylessnas.core.supernet import MixedOp, Supernet, Zero, softmax
from proxylessnas.errors import ConfigError

P = (0.5, 0.3, 0.2)
LOSSES = (1.0, 0.0, 0.0)
ALPHA = ((0.3, -0.5, 1.1), (0.2, 0.9))


# Each mixed operation a choice of its own, or the first and the last sharing one: two rows of α
# in either case, and the same equations.
both_kinds = pytest.mark.parametrize("shared", [False, True])


def chain(
    sizes: tuple[int, ...] = (3, 2), alpha: object = ALPHA, *, shared: bool = False
) -> Supernet:
    model = Chain((3, 2, 3), choices=("edge", None, "edge")) if shared else Chain(sizes)
    return supernet_with(model, alpha)


class Sum(nn.Module):
    """Mixed operations side by side that share one choice."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.terms = nn.ModuleList(
            MixedOp([nn.Linear(3, 3) for _ in range(3)], choice="edge") for _ in range(count)
        )
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return sum((term(x) for term in self.terms), torch.zeros_like(x))


def batch() -> Tensor:
    return torch.randn(5, 3, dtype=torch.float64, generator=seeded(7))


def squares(model: nn.Module) -> Tensor:
    return ((model(batch()) - 0.3) ** 2).sum()


def tabular(losses: tuple[float, ...] = LOSSES, p: tuple[float, ...] = P) -> StepContext:
    """One mixed operation; the loss of candidate j is losses[j]."""
    supernet = supernet_with(MixedOp([Scale(v) for v in losses]), [log_of(p)])
    return problem(supernet, lambda model: model(torch.ones(1, dtype=torch.float64)).sum())


def through_soft_gates(supernet: Supernet, active: tuple[int, ...]) -> Tensor:
    """∇α by autograd through g = onehot + p − stopgrad(p), every candidate computed."""
    alpha = supernet.alpha.detach().clone().requires_grad_()
    p = softmax(alpha, supernet.mask)
    onehot = nn.functional.one_hot(torch.tensor(active), p.shape[1]).double()
    g = onehot + p - p.detach()
    x = mixture(supernet, g, batch())
    (grad,) = torch.autograd.grad(((x - 0.3) ** 2).sum(), [alpha])
    return grad


def mixture(supernet: Supernet, weights: Tensor, x: Tensor) -> Tensor:
    """A chain's output where every candidate runs, weighted by its row of `weights`."""
    for mixed in supernet.model.ops:
        row, candidates = weights[row_of(supernet, mixed)], mixed.candidates.values()
        x = torch.tanh(sum(w * c(x) for w, c in zip(row, candidates, strict=False)))
    return x


def architectures(supernet: Supernet) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(c)) for c in supernet.candidates)))


def probability(supernet: Supernet, architecture: tuple[int, ...]) -> float:
    p = supernet.probabilities()
    return math.prod(float(p[m, j]) for m, j in enumerate(architecture))


# --- eq. 4 ---


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.integers(0, 2**31))
def test_eq4_is_the_gradient_through_the_softmax(alpha: list[float], seed: int) -> None:
    row = torch.tensor([alpha], dtype=torch.float64, requires_grad=True)
    grad_gates = torch.randn(row.shape, dtype=torch.float64, generator=seeded(seed))
    (expected,) = torch.autograd.grad((torch.softmax(row, 1) * grad_gates).sum(), [row])
    torch.testing.assert_close(eq4(torch.softmax(row.detach(), 1), grad_gates), expected)


@both_kinds
def test_full_path_equals_autograd_through_soft_gates_for_every_architecture(shared: bool) -> None:
    supernet = chain(shared=shared)
    task = problem(supernet, squares)
    for active in architectures(supernet):
        leaf = torch.zeros_like(supernet.alpha).requires_grad_()
        gates = binary_gates(supernet.mask, torch.tensor(active), leaf)
        grad, _, _ = through_gates(task, gates, leaf, [range(3), range(2)])
        gradient = eq4(supernet.probabilities(), grad)
        torch.testing.assert_close(gradient, through_soft_gates(supernet, active))


def active_of(supernet: Supernet, log: list[tuple[tuple[int, int], bool]]) -> tuple[int, ...]:
    """Of the candidates that ran, those that autograd recorded: the active ones, in order."""
    ran = {name for name, recording in log if recording}
    assert len(ran) == len(supernet.names)  # the same candidate at every position of a choice
    return tuple(dict(ran)[m] for m in range(len(supernet.names)))


def recorded_chain(shared: bool) -> tuple[Supernet, list[tuple[tuple[int, int], bool]]]:
    log: list[tuple[tuple[int, int], bool]] = []
    supernet = chain(shared=shared)
    for op in supernet.model.ops:
        for j, (name, candidate) in enumerate(list(op.candidates.items())):
            op.candidates[name] = Recorder(candidate, (row_of(supernet, op), j), log)
    return supernet, log


@both_kinds
def test_full_path_step_equals_eq4_on_the_path_it_drew(shared: bool) -> None:
    supernet, log = recorded_chain(shared)
    drawn = set()
    for seed in range(12):
        log.clear()
        estimate = FullPath().step(problem(supernet, squares), seeded(seed))
        active = active_of(supernet, log)
        log.clear()
        torch.testing.assert_close(estimate.gradient, through_soft_gates(supernet, active))
        drawn.add(active)
    assert len(drawn) > 2


@both_kinds
def test_two_path_step_equals_eq4_on_its_pair(shared: bool) -> None:
    """q replaces p, and the gates of the pair alone count."""
    supernet, log = recorded_chain(shared)
    pairs = set()
    for seed in range(12):
        log.clear()
        estimate = TwoPath().step(problem(supernet, squares), seeded(seed))
        active, support = active_of(supernet, log), estimate.support
        assert support is not None and support.sum(1).tolist() == [2, 2]
        restricted = supernet_with(supernet.model, ALPHA)
        restricted.mask = support
        torch.testing.assert_close(estimate.gradient, through_soft_gates(restricted, active))
        pairs.add(str(support.tolist()))
    assert len(pairs) > 1


@both_kinds
@pytest.mark.parametrize("active", [0, 1, 2])
def test_full_path_is_the_exact_gradient_for_one_choice_and_an_affine_loss(
    active: int, shared: bool
) -> None:
    """∇E[L] by enumeration; which candidate was active does not matter."""
    supernet = supernet_with(Sum(2 if shared else 1), [log_of(P)])
    weights = torch.randn(5, 3, dtype=torch.float64)

    def affine(model: nn.Module) -> Tensor:
        return (weights * model(batch())).sum() + 2.0

    alpha = supernet.alpha.detach().clone().requires_grad_()
    losses = []
    for j in range(3):
        with supernet.active([j]), torch.no_grad():
            losses.append(affine(supernet.model))
    (exact,) = torch.autograd.grad((torch.softmax(alpha, 1) * torch.stack(losses)).sum(), [alpha])
    estimates = {}
    for seed in range(20):
        estimate = FullPath().step(problem(supernet, affine), seeded(seed))
        estimates[round(estimate.loss, 6)] = estimate.gradient
    assert len(estimates) == 3  # every candidate was active once
    torch.testing.assert_close(list(estimates.values())[active], exact)


# --- both ends ---


def scalar(losses: Callable[[Tensor], Tensor], outputs: tuple[float, ...]) -> StepContext:
    """One mixed operation; candidate j returns outputs[j], of which a loss is taken."""
    supernet = supernet_with(MixedOp([Scale(v) for v in outputs]), [log_of(P)])
    return problem(supernet, lambda model: losses(model(torch.ones(1, dtype=torch.float64)).sum()))


def mean_by_active(task: StepContext, estimator: FullPath | TwoPath) -> Tensor:
    """The estimate's mean over what it draws: pairs and active candidates, found by many seeds.

    Of a pair {i, j} (of all three for the full path) each is active with its q.
    """
    p = task.supernet.probabilities()[0]
    found: dict[tuple[str, float], tuple[float, Tensor]] = {}
    for seed in range(200):
        estimate = estimator.step(task, seeded(seed))
        assert estimate.support is not None and estimate.gradient is not None
        on, a = estimate.support[0], estimate.active[0]
        i, j = [k for k in range(3) if on[k]][:2]
        pair = pair_probability(P, i, j) if isinstance(estimator, TwoPath) else 1.0
        weight = pair * float(p[a] / p[on].sum())
        found[str(on.tolist()), a] = (weight, estimate.gradient)
    assert sum(weight for weight, _ in found.values()) == pytest.approx(1)  # all were seen
    return sum((w * g for w, g in found.values()), torch.zeros(1, 3).double())


def exact_mean(
    task: StepContext, of: Callable[[Tensor], Tensor], outputs: tuple[float, ...]
) -> Tensor:
    """∇E[L] by enumeration."""
    alpha = task.supernet.alpha.detach().clone().requires_grad_()
    losses = torch.stack([of(torch.tensor(v).double()) for v in outputs])
    (gradient,) = torch.autograd.grad((torch.softmax(alpha, 1) * losses).sum(), [alpha])
    return gradient


def test_reinmax_is_the_exact_gradient_for_one_operation_and_a_quadratic_loss() -> None:
    def of(y: Tensor) -> Tensor:
        return (y - 1) ** 2 + 0.3 * y

    outputs = (0.0, 0.9, 1.1)
    task = scalar(of, outputs)
    exact = exact_mean(task, of, outputs)
    torch.testing.assert_close(mean_by_active(task, FullPath(reinmax=True)), exact)
    one_end = mean_by_active(task, FullPath())
    assert float((one_end - exact).norm()) > 0.1 * float(exact.norm())


def test_reinmax_within_pairs_is_their_exact_gradient_for_a_quadratic_loss() -> None:
    """Σ over pairs of P(pair)·∇ of the mean loss under the pair's own q."""

    def of(y: Tensor) -> Tensor:
        return (y - 1) ** 2

    outputs = (0.0, 0.9, 1.4)
    task = scalar(of, outputs)
    expected = torch.zeros(1, 3).double()
    for i, j in itertools.combinations(range(3), 2):
        q = P[i] / (P[i] + P[j])
        value = q * (1 - q) * ((outputs[i] - 1) ** 2 - (outputs[j] - 1) ** 2)
        expected[0, i] += pair_probability(P, i, j) * value
        expected[0, j] -= pair_probability(P, i, j) * value
    torch.testing.assert_close(mean_by_active(task, TwoPath(reinmax=True)), expected)


def test_reinmax_still_learns_where_one_end_takes_it_for_settled() -> None:
    """The loss is flat at the probable candidate, whose slope says that nothing is gained by it.

    Half of the slope at the other end counts, however rarely that is active; eq. 4 gives it
    its probability squared.
    """

    def of(y: Tensor) -> Tensor:
        return (y - 1) ** 2

    outputs = (0.0, 1.0, 1.0)
    task = scalar(of, outputs)
    task.supernet.alpha.data = torch.tensor([log_of((0.001, 0.998, 0.001))]).double()
    mean = {rule: torch.zeros(1, 3).double() for rule in (False, True)}
    p = task.supernet.probabilities()
    for a in range(3):
        leaf = torch.zeros(1, 3).double().requires_grad_()
        gates = binary_gates(task.supernet.mask, torch.tensor([a]), leaf)
        grad, _, _ = through_gates(task, gates, leaf, [range(3)])
        mean[False] += p[0, a] * eq4(p, grad)
        mean[True] += p[0, a] * reinmax(p, grad, torch.tensor([a]))
    exact = exact_mean(task, of, outputs)
    assert float(exact[0, 0]) > 0
    torch.testing.assert_close(mean[True], exact)
    assert float(mean[False].norm()) < 0.01 * float(exact.norm())


def test_reinmax_is_nearer_to_the_gradient_of_a_whole_network() -> None:
    """Four operations of a block and none, and a loss that is no polynomial: all 81 listed."""
    torch.manual_seed(0)
    supernet = supernet_with(Chain((3, 3, 3, 3)), torch.randn(4, 3).tolist())
    task, p = problem(supernet, squares), supernet.probabilities()
    alpha = supernet.alpha.detach().clone().requires_grad_()
    q = torch.softmax(alpha, 1)
    mean_loss = torch.zeros(()).double()
    one, two = torch.zeros_like(p), torch.zeros_like(p)
    for architecture in architectures(supernet):
        leaf = torch.zeros_like(p).requires_grad_()
        active = torch.tensor(architecture)
        gates = binary_gates(supernet.mask, active, leaf)
        grad, _, seen = through_gates(task, gates, leaf, [range(3)] * 4)
        chance = probability(supernet, architecture)
        one += chance * eq4(p, grad)
        two += chance * reinmax(p, grad, active)
        mean_loss = mean_loss + q.gather(1, active[:, None]).prod() * seen.loss
    (exact,) = torch.autograd.grad(mean_loss, [alpha])
    error = [float((mean - exact).norm() / exact.norm()) for mean in (one, two)]
    assert error[1] < 0.5 * error[0]


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.integers(0, 2**31), st.integers(0, 11)
)
def test_reinmax_sums_to_nothing_and_leaves_what_has_no_chance(
    alpha: list[float], seed: int, active: int
) -> None:
    row = torch.tensor([alpha], dtype=torch.float64)
    mask = torch.rand(row.shape, generator=seeded(seed)) < 0.7
    active %= len(alpha)
    mask[0, active] = True
    slopes = torch.randn(row.shape, dtype=torch.float64, generator=seeded(seed))
    gradient = reinmax(softmax(row, mask), slopes, torch.tensor([active]))
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-12)
    assert bool((gradient[~mask] == 0).all())


# --- two paths ---


def pair_probability(p: tuple[float, ...], i: int, j: int) -> float:
    return p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j]))


def test_pairs_are_drawn_without_replacement_from_p() -> None:
    draws = 100_000
    alpha = torch.tensor([log_of(P)]).double().expand(draws, 3)
    support, active = draw_pair(alpha, torch.ones(draws, 3, dtype=torch.bool), seeded())
    seen = Counter(tuple(row) for row in support.tolist())
    for i, j in itertools.combinations(range(3), 2):
        share = seen[tuple(k in (i, j) for k in range(3))] / draws
        assert share == pytest.approx(pair_probability(P, i, j), abs=0.008)
    marginal = torch.bincount(active, minlength=3) / draws
    torch.testing.assert_close(marginal, torch.tensor([0.5536, 0.2893, 0.1571]), atol=0.008, rtol=0)
    assert bool(support.gather(1, active[:, None]).all())


def test_two_path_mean_over_pairs_is_not_the_gradient_of_the_mean_loss() -> None:
    """p = (.5, .3, .2), losses (1, 0, 0): (.187, -.121, -.066) against (.25, -.15, -.10)."""
    task, found = tabular(), {}
    for seed in range(40):
        estimate = TwoPath().step(task, seeded(seed))
        assert estimate.support is not None and estimate.gradient is not None
        found[tuple(estimate.support[0].nonzero()[:, 0].tolist())] = estimate.gradient[0]
    assert len(found) == 3
    mean = sum(pair_probability(P, i, j) * gradient for (i, j), gradient in found.items())
    expected = torch.tensor([0.187, -0.121, -0.066]).double()
    torch.testing.assert_close(mean, expected, atol=5e-4, rtol=0)
    exact = FullPath().step(task, seeded()).gradient
    torch.testing.assert_close(exact, torch.tensor([[0.25, -0.15, -0.10]]).double())


sizes = st.lists(st.integers(1, 12), min_size=1, max_size=4)
values = st.one_of(st.floats(-4, 4), st.sampled_from([-900.0, -50.0, 0.0, 50.0, 900.0]))


@given(sizes, st.data(), st.integers(0, 2**31))
def test_two_path_keeps_the_unsampled_probabilities_through_adam(
    sizes: list[int], data: st.DataObject, seed: int
) -> None:
    rows = [data.draw(st.lists(values, min_size=n, max_size=n)) for n in sizes]
    model = nn.Sequential(*[MixedOp([Scale(0.5 + j) for j in range(n)]) for n in sizes])
    supernet = supernet_with(model, rows)
    alpha, before = supernet.alpha, supernet.alpha.detach().clone()
    log_p = supernet.log_probabilities()
    estimator = TwoPath()
    estimate = estimator.step(
        problem(supernet, lambda m: m(torch.ones(2, dtype=torch.float64)).sum()), seeded(seed)
    )
    optimizer = torch.optim.Adam([alpha], lr=0.3, betas=(0.0, 0.999))
    alpha.grad = estimate.gradient
    optimizer.step()
    with torch.no_grad():
        estimator.restore_unsampled(alpha, before, estimate)
    assert estimate.support is not None
    assert estimate.support.sum(1).tolist() == [min(2, n) for n in sizes]
    unsampled = supernet.mask & ~estimate.support
    torch.testing.assert_close(
        supernet.log_probabilities()[unsampled], log_p[unsampled], atol=1e-9, rtol=1e-12
    )
    assert torch.equal(alpha[unsampled], before[unsampled])
    assert bool(torch.isfinite(alpha).all())


def test_two_path_moves_its_pair() -> None:
    """The property above does not hold because nothing moves."""
    task = tabular()
    alpha, before = task.supernet.alpha, task.supernet.alpha.detach().clone()
    estimate = TwoPath().step(task, seeded(1))
    assert estimate.support is not None and bool(estimate.support[0, 0])
    with torch.no_grad():
        alpha -= estimate.gradient
        TwoPath().restore_unsampled(alpha, before, estimate)
    assert float(task.supernet.probabilities()[0, 0]) < 0.5 - 1e-3


def test_pair_probabilities_do_not_underflow() -> None:
    """e^-900 is 0, but q within a pair is a softmax of differences."""
    alpha = torch.tensor([[0.0, -900.0, -900.0 + math.log(3)]], dtype=torch.float64)
    support = torch.tensor([[False, True, True]])
    q = torch.tensor([[0, 0.25, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(softmax(alpha, support), q)
    drawn, _ = draw_pair(alpha, torch.ones(1, 3, dtype=torch.bool), seeded())
    assert drawn.sum() == 2


# --- reinforce ---


def reinforce_mean(
    monkeypatch: pytest.MonkeyPatch, task: StepContext, make: object, baseline: float
) -> Tensor:
    """The exact mean of its estimate: every architecture drawn once, weighted by p."""
    total = torch.zeros_like(task.supernet.alpha)
    for architecture in architectures(task.supernet):
        draws = torch.tensor(architecture)[:, None]
        estimator = make()  # type: ignore[operator]
        estimator.load({"baseline": baseline})
        with monkeypatch.context() as patch:
            patch.setattr(torch, "multinomial", lambda *_, draws=draws, **__: draws)
            estimate = estimator.step(task, seeded())
        total += probability(task.supernet, architecture) * estimate.gradient
    return total.detach()


@both_kinds
@pytest.mark.parametrize("baseline", [0.0, -3.7])
def test_reinforce_is_the_gradient_of_the_mean_reward(
    monkeypatch: pytest.MonkeyPatch, baseline: float, shared: bool
) -> None:
    """Minimising: −∇E[R]; whatever the baseline, as it does not depend on the draws."""
    supernet = chain(shared=shared)

    def reward(accuracy: float, indices: object) -> float:
        return accuracy + sum(indices)  # type: ignore[call-overload, no-any-return]

    task = problem(supernet, squares, accuracy=squares)
    alpha = supernet.alpha.detach().clone().requires_grad_()
    p, mean = softmax(alpha, supernet.mask), torch.zeros(()).double()
    for architecture in architectures(supernet):
        with supernet.active(architecture), torch.no_grad():
            value = float(squares(supernet.model)) + sum(architecture)
        mean = mean + value * math.prod(p[m, j] for m, j in enumerate(architecture))
    (exact,) = torch.autograd.grad(-mean, [alpha])
    found = reinforce_mean(monkeypatch, task, lambda: Reinforce(1, reward=reward), baseline)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("objective", [Linear(0.7), MulLog(2.0)])
def test_reinforce_follows_the_objective_of_loss_and_expected_cost(
    monkeypatch: pytest.MonkeyPatch, objective: Linear | MulLog
) -> None:
    """Without a reward its mean is ∇ of objective(E[L], E[cost]), multiplicative ones too."""
    supernet = chain((3,), ALPHA[:1])
    costs = priced(supernet, [[1.0, 4.0, 9.0]], fixed=2.0)
    task = problem(supernet, squares, costs=costs, objective=objective)
    alpha = supernet.alpha.detach().clone().requires_grad_()
    p = softmax(alpha, supernet.mask)
    losses = []
    for architecture in architectures(supernet):
        with supernet.active(architecture), torch.no_grad():
            losses.append(squares(supernet.model))
    total = objective((p[0] * torch.stack(losses)).sum(), costs.expected(p))
    (exact,) = torch.autograd.grad(total, [alpha])
    found = reinforce_mean(monkeypatch, task, lambda: Reinforce(1), 0.0)
    torch.testing.assert_close(found, exact)


def test_reinforce_follows_a_limit_beside_the_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """−∇E[R] + λ∇E[cost]: the constraint holds whatever is rewarded."""
    supernet = chain((3,), ALPHA[:1])
    costs = priced(supernet, [[1.0, 4.0, 9.0]])
    task = problem(supernet, squares, costs=costs, objective=Linear(0.7), accuracy=squares)
    without = problem(supernet, squares, accuracy=squares)

    def make() -> Reinforce:
        return Reinforce(1, reward=lambda accuracy, _: accuracy)

    alpha = supernet.alpha.detach().clone().requires_grad_()
    expected = costs.expected(softmax(alpha, supernet.mask))
    (cost,) = torch.autograd.grad(0.7 * expected.sum(), [alpha])
    rewarded = reinforce_mean(monkeypatch, without, make, 0.0)
    assert rewarded.abs().max() > 0 and cost.abs().max() > 0
    found = reinforce_mean(monkeypatch, task, make, 0.0)
    torch.testing.assert_close(found, rewarded + cost)


def test_reinforce_subtracts_the_mean_reward_of_earlier_batches_only() -> None:
    """The first batch sets the baseline and moves nothing; later ones enter by 1 − decay."""
    estimator = Reinforce(1, reward=lambda accuracy, _: accuracy, decay=0.9)
    rewards = iter([5.0, 7.0, 7.0])
    supernet = chain()
    task = problem(supernet, squares, accuracy=lambda _: torch.tensor(next(rewards)))
    first = estimator.step(task, seeded(0))
    assert torch.equal(first.gradient, torch.zeros_like(supernet.alpha))
    second = estimator.step(task, seeded(1))
    assert estimator.state() == {"baseline": pytest.approx(5.2)}
    estimator.load({"baseline": 4.0})
    third = estimator.step(task, seeded(1))  # the same draws, an advantage of 3 instead of 2
    torch.testing.assert_close(third.gradient, second.gradient * 1.5)


def test_reinforce_averages_over_its_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one operation and the mean reward as baseline: −(1/M) Σ (R − b)(onehot − p)."""
    task = tabular((1.0, 2.0, 6.0))
    estimator = Reinforce(4)
    estimator.load({"baseline": -2.0})
    draws = torch.tensor([[0, 1, 2, 2]])
    monkeypatch.setattr(torch, "multinomial", lambda *_, **__: draws)
    gradient = estimator.step(task, seeded()).gradient
    expected = torch.zeros(3).double()
    for j, loss in ((0, 1.0), (1, 2.0), (2, 6.0), (2, 6.0)):
        onehot = nn.functional.one_hot(torch.tensor(j), 3)
        expected -= (-loss + 2.0) * (onehot - torch.tensor(P)) / 4
    torch.testing.assert_close(gradient[0], expected, atol=1e-6, rtol=0)


def test_a_reward_without_an_accuracy_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs an accuracy"):
        Reinforce(2, reward=lambda accuracy, _: accuracy).step(tabular(), seeded())


# --- the others ---


@both_kinds
def test_darts_is_the_gradient_through_the_mixture(shared: bool) -> None:
    supernet = chain(shared=shared)
    alpha = supernet.alpha.detach().clone().requires_grad_()
    x = mixture(supernet, softmax(alpha, supernet.mask), batch())
    (expected,) = torch.autograd.grad(((x - 0.3) ** 2).sum(), [alpha])
    estimate = Darts().step(problem(supernet, squares), seeded())
    torch.testing.assert_close(estimate.gradient, expected)


@both_kinds
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gumbel_is_straight_through(temperature: float, shared: bool) -> None:
    """Autograd through onehot + s − stopgrad(s), s the softmax of the perturbed α."""
    supernet = chain(shared=shared)
    alpha = supernet.alpha.detach().clone().requires_grad_()
    noise = -torch.empty_like(supernet.alpha).exponential_(generator=seeded(3)).log()
    soft = softmax((alpha + noise) / temperature, supernet.mask)
    g = nn.functional.one_hot(soft.argmax(1), 3).double() + soft - soft.detach()
    x = mixture(supernet, g, batch())
    (expected,) = torch.autograd.grad(((x - 0.3) ** 2).sum(), [alpha])
    estimate = Gumbel(temperature).step(problem(supernet, squares), seeded(3))
    torch.testing.assert_close(estimate.gradient, expected)


# --- the expected cost ---

COSTS = ((4.0, 1.0, 0.0), (2.0, 5.0))


class WithZero(nn.Module):
    """Two operations, the first with a Zero; the loss does not depend on what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = MixedOp({"a": Scale(1.0), "b": Scale(2.0), "zero": Zero()})
        self.second = MixedOp({"a": Scale(1.0), "b": Scale(2.0)})

    def forward(self, x: Tensor) -> Tensor:
        return 0.0 * self.second(self.first(x))


def costly(first: tuple[float, ...] = P) -> StepContext:
    supernet = supernet_with(WithZero(), [log_of(first), log_of((0.4, 0.6))])
    costs = priced(supernet, COSTS, fixed=3.0)
    return problem(
        supernet,
        lambda model: model(torch.ones(2, dtype=torch.float64)).sum(),
        costs=costs,
        objective=Linear(0.5),
    )


@pytest.mark.parametrize("name", LEARNING)
def test_the_expected_cost_is_the_closed_form_over_the_full_softmax(name: str) -> None:
    expected = 3.0 + (0.5 * 4 + 0.3 * 1) + (0.4 * 2 + 0.6 * 5)
    for seed in range(5):
        estimate = make_estimator(name).step(costly(), seeded(seed))
        assert estimate.expected == [pytest.approx(expected)]


@pytest.mark.parametrize("name", ["full_path", "reinforce", "darts", "gumbel"])
def test_the_expected_cost_gives_every_alpha_its_gradient(name: str) -> None:
    task = costly()
    alpha = task.supernet.alpha.detach().clone().requires_grad_()
    cost = task.costs.expected(softmax(alpha, task.supernet.mask))
    (expected,) = torch.autograd.grad(0.5 * cost.sum(), [alpha])
    for seed in range(5):
        estimate = make_estimator(name).step(task, seeded(seed))
        torch.testing.assert_close(estimate.gradient, expected)


def test_two_path_gives_the_expected_cost_to_its_pair() -> None:
    """±λ·q_i·q_j·(F_i − F_j), renormalised within the pair; the others' α stay."""
    task = costly()
    for seed in range(8):
        estimate = TwoPath().step(task, seeded(seed))
        assert estimate.support is not None and estimate.gradient is not None
        q = softmax(task.supernet.alpha.detach(), estimate.support)
        for m, row in enumerate(estimate.support.tolist()):
            i, j = (k for k, on in enumerate(row) if on)
            value = 0.5 * float(q[m, i] * q[m, j]) * (COSTS[m][i] - COSTS[m][j])
            expected = torch.zeros(3).double()
            expected[i], expected[j] = value, -value
            torch.testing.assert_close(estimate.gradient[m], expected)


@pytest.mark.parametrize("name", LEARNING)
def test_the_expected_cost_reaches_alpha_while_zero_is_active(name: str) -> None:
    """Zero dominates, so it is what runs; cheaper than its rivals, it still gets its credit."""
    task, ran = costly((0.01, 0.01, 0.98)), []
    zero = task.supernet.positions[0][0].candidates["zero"]
    zero.register_forward_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    gradient = make_estimator(name, samples=1).step(task, seeded()).gradient
    assert gradient is not None and ran == [name != "reinforce"]
    assert float(gradient[0, 2]) < 0 < float(gradient[0, :2].sum())


# --- names ---


def test_an_unknown_estimator_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="two_path"):
        make_estimator("two_paths")


def test_random_estimates_nothing() -> None:
    estimator = make_estimator("random")
    assert not estimator.learns
    assert estimator.step(tabular(), seeded()).gradient is None
