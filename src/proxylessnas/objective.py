"""Task loss and expected cost to one scalar, and decoding under limits.

The costs that a search minds (latency, parameters, MACs) are a `Prices`: one matrix a cost
over [mixed operations, candidates] and a fixed part, so that E[cost] = fixed + Σ p·cost
(paper eq. 2 and 3). An objective is a function of the loss and of the expected costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.optimize
import scipy.sparse
import torch
from torch import Tensor

from .config import SearchSettings
from .errors import ConfigError, LimitError


@dataclass(frozen=True, eq=False)
class Prices:
    """What candidates cost, and how much a network may.

    names, units: [costs]. per_candidate: [costs, mixed operations, candidates] float64, 0 at
    pads. fixed: [costs]. limits: [costs], in the same units; inf where there is none.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    per_candidate: Tensor
    fixed: Tensor
    limits: Tensor

    @staticmethod
    def free(mixed: int, candidates: int) -> Prices:
        """No cost matters."""
        return Prices((), (), torch.zeros(0, mixed, candidates).double(), *[torch.zeros(0)] * 2)

    @staticmethod
    def one(
        name: str,
        per_candidate: Tensor,
        *,
        fixed: float = 0.0,
        limit: float = math.inf,
        unit: str = "",
    ) -> Prices:
        """One cost alone. per_candidate: [mixed operations, candidates]."""
        bound, rest = (torch.tensor([v], dtype=torch.float64) for v in (limit, fixed))
        return Prices((name,), (unit,), per_candidate[None].double(), rest, bound)

    def expected(self, probabilities: Tensor) -> Tensor:
        """E[cost] over the full softmax, [costs]; differentiable in the probabilities."""
        return self.fixed + (self.per_candidate * probabilities).sum((1, 2))

    def of(self, indices: Sequence[int]) -> list[float]:
        """The costs of one network, by plain summation."""
        rows = self.per_candidate.tolist()
        return [
            float(fixed) + math.fsum(row[i] for row, i in zip(cost, indices, strict=True))
            for cost, fixed in zip(rows, self.fixed.tolist(), strict=True)
        ]

    def range(self, mask: Tensor) -> list[tuple[float, float]]:
        """The least and the most that a network can cost, for each cost."""
        low = self.per_candidate.masked_fill(~mask, math.inf).amin(2).sum(1) + self.fixed
        high = self.per_candidate.masked_fill(~mask, -math.inf).amax(2).sum(1) + self.fixed
        return list(zip(low.tolist(), high.tolist(), strict=True))

    def check_reachable(self, mask: Tensor) -> None:
        """Refuse a limit that the space cannot keep, before anything is spent on it.

        Raises:
            LimitError: naming the reachable range.
        """
        for name, unit, limit, (low, high) in zip(
            self.names, self.units, self.limits.tolist(), self.range(mask), strict=True
        ):
            if limit < low:
                raise LimitError(
                    f"no network of this space has a {name} of {_amount(limit, unit)}: the "
                    f"reachable range is {_amount(low, unit)} to {_amount(high, unit)}"
                )


def _amount(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".strip() if value < 1e4 else f"{value:,.0f} {unit}".strip()


# --- objectives ---


class Objective(Protocol):
    """loss: scalar; expected: [costs]. The value is minimised in α."""

    def __call__(self, loss: Tensor, expected: Tensor) -> Tensor: ...

    def observe(self, costs: Sequence[float]) -> None:
        """See the costs of the network that would be derived now."""

    def state(self) -> list[float]: ...

    def load(self, state: Sequence[float]) -> None: ...


class _Stateless:
    def observe(self, costs: Sequence[float]) -> None:
        pass

    def state(self) -> list[float]:
        return []

    def load(self, state: Sequence[float]) -> None:
        pass


class Alone(_Stateless):
    """L, or a reward with a minus, and no cost besides."""

    def __call__(self, loss: Tensor, expected: Tensor) -> Tensor:
        return loss


class Linear(_Stateless):
    """L + λ2·E[latency] (paper eq. 3), E in its unit."""

    def __init__(self, weight: float, *, index: int = 0) -> None:
        self.weight, self.index = weight, index

    def __call__(self, loss: Tensor, expected: Tensor) -> Tensor:
        return loss + self.weight * expected[self.index].to(loss)


class MulLog(_Stateless):
    """0.2·L·(log E / log T)^0.3, `mul#log` of the published code; E and T in its unit."""

    def __init__(self, target: float, *, scale: float = 0.2, power: float = 0.3) -> None:
        if target <= 1:
            raise ConfigError(f"mul_log needs a target over 1, not {target:g}: its log divides")
        self.target, self.scale, self.power = target, scale, power

    def __call__(self, loss: Tensor, expected: Tensor) -> Tensor:
        ratio = torch.log(expected[0]) / math.log(self.target)
        return self.scale * loss * ratio.clamp_min(1e-3).pow(self.power).to(loss)


class AddLinear(_Stateless):
    """L + 0.1·(E − T)/T, `add#linear` of the published code."""

    def __init__(self, target: float, *, scale: float = 0.1) -> None:
        self.target, self.scale = target, scale

    def __call__(self, loss: Tensor, expected: Tensor) -> Tensor:
        return loss + self.scale * (expected[0] / self.target - 1).to(loss)


class Constraint:
    """L + Σ_k λ_k·(E_k/T_k − 1), λ by dual ascent on the network derived now (LightNAS).

    A λ rises while that network breaks its limit and falls, never under 0, while there is
    room: the search settles where the limit just holds, instead of at a price guessed before.
    """

    def __init__(self, limits: Sequence[float], *, rate: float) -> None:
        self.limits, self.rate = [float(v) for v in limits], rate
        self.multipliers = [0.0] * len(self.limits)

    def __call__(self, loss: Tensor, expected: Tensor) -> Tensor:
        for k, (multiplier, limit) in enumerate(zip(self.multipliers, self.limits, strict=True)):
            if multiplier:
                loss = loss + multiplier * (expected[k] / limit - 1).to(loss)
        return loss

    def observe(self, costs: Sequence[float]) -> None:
        for k, (cost, limit) in enumerate(zip(costs, self.limits, strict=True)):
            if math.isfinite(limit):
                step = self.rate * (cost / limit - 1)
                self.multipliers[k] = max(0.0, self.multipliers[k] + step)

    def state(self) -> list[float]:
        return list(self.multipliers)

    def load(self, state: Sequence[float]) -> None:
        self.multipliers = [max(0.0, float(v)) for v in state]


def reward(accuracy: float, cost: float, target: float, power: float = 0.1) -> float:
    """ACC·(T/LAT)^w, the reward of REINFORCE in the published code (w = 0.1)."""
    return float(accuracy * (target / cost) ** power)


# --- by their settings ---

DUAL_TRAVEL = 20.0  # rate x steps of the multiplier, at a latency of twice the limit


def check_objective(settings: SearchSettings, target_latency: str | None) -> None:
    """Refuse an objective without what it needs, before anything is measured for it.

    Raises:
        ConfigError: it needs a weight, a latency target or another estimator.
    """
    name = settings.objective
    if name == "linear" and settings.cost_weight is None:
        raise ConfigError(
            "the objective linear needs cost_weight (--search.cost-weight), per millisecond"
        )
    if name == "reward" and settings.estimator != "reinforce":
        raise ConfigError(
            f"the objective reward has no gradient: it needs the estimator reinforce "
            f"(--search.estimator), not {settings.estimator}"
        )
    if name in ("mul_log", "add_linear", "reward") and target_latency is None:
        raise ConfigError(f"the objective {name} needs a target latency (--target-latency)")


def make_objective(settings: SearchSettings, prices: Prices, arch_steps: int) -> Objective:
    """The objective that the settings name.

    Raises:
        ConfigError: mul_log with a target of 1 ms or less. See `check_objective` for the rest.
    """
    name, weight = settings.objective, settings.cost_weight
    if name == "reward":
        return Alone()  # the latency is in the reward
    if name == "constraint":
        rate = settings.dual_rate or DUAL_TRAVEL / max(1, arch_steps)
        return Constraint(prices.limits.tolist(), rate=rate)
    if name == "linear":
        if weight is None:
            raise ConfigError("the objective linear needs a cost_weight, per millisecond")
        return Linear(weight, index=prices.names.index("latency"))
    target = float(prices.limits[prices.names.index("latency")])
    if not math.isfinite(target):
        raise ConfigError(f"the objective {name} needs --target-latency")
    if name == "mul_log":
        return MulLog(target, **({} if weight is None else {"scale": weight}))
    return AddLinear(target, **({} if weight is None else {"scale": weight}))


def make_reward(
    settings: SearchSettings, prices: Prices
) -> Callable[[float, Sequence[int]], float] | None:
    """ACC·(T/LAT)^w on predicted latency, for the objective `reward`.

    Raises:
        ConfigError: another estimator than reinforce, or no latency target.
    """
    if settings.objective != "reward":
        return None
    if settings.estimator != "reinforce":
        raise ConfigError(
            f"the objective reward has no gradient: it needs --search.estimator reinforce, "
            f"not {settings.estimator}"
        )
    latency = prices.names.index("latency")
    target = float(prices.limits[latency])
    if not math.isfinite(target):
        raise ConfigError("the objective reward needs --target-latency")
    power = 0.1 if settings.cost_weight is None else settings.cost_weight

    def of(accuracy: float, indices: Sequence[int]) -> float:
        return reward(accuracy, prices.of(indices)[latency], target, power)

    return of


# --- networks within the limits ---


def sample_within(
    mask: Tensor, prices: Prices, generator: torch.Generator, *, draws: int = 200_000
) -> Iterator[tuple[int, ...]]:
    """Uniform networks among those within the limits, by rejection; repeats are possible."""
    chunk = 5_000
    for _ in range(draws // chunk):
        drawn = torch.multinomial(mask.double(), chunk, replacement=True, generator=generator)
        picked = drawn.expand(len(prices.fixed), *drawn.shape)
        costs = prices.per_candidate.gather(2, picked).sum(1) + prices.fixed[:, None]
        kept = (costs <= prices.limits[:, None]).all(0).nonzero()[:, 0]
        for column in kept.tolist():
            yield tuple(drawn[:, column].tolist())


def decode(log_p: Tensor, mask: Tensor, prices: Prices) -> Iterator[tuple[int, ...]]:
    """The networks within the limits, the most probable first.

    Each maximises Σ log p exactly among those not given before: an integer programme with
    zero gap (a multiple-choice knapsack) and one no-good cut for every network found. Ties
    go to the earlier candidates. Costs are scaled by their limit, and a network counts only
    if plain summation confirms that it keeps every limit.

    log_p: [mixed operations, candidates], finite where `mask` is True.
    """
    bounded = [k for k, limit in enumerate(prices.limits.tolist()) if math.isfinite(limit)]
    limits = [float(prices.limits[k]) for k in bounded]
    where = mask.nonzero().tolist()
    rows = np.array([m for m, _ in where])
    count, size = mask.shape[0], len(where)
    # The share of ties: far under any difference in log p that a search can mean, and
    # scaled with it over the solver's absolute gap, 1e-6, which scipy does not let us set.
    order = np.array([j for _, j in where]) * 1e-9
    score = 1e4 * (np.array([float(log_p[m, j]) for m, j in where]) - order)
    one_each = scipy.sparse.csr_array((np.ones(size), (rows, np.arange(size))))
    constraints = [scipy.optimize.LinearConstraint(one_each, 1, 1)]
    for k, limit in zip(bounded, limits, strict=True):
        scale = abs(limit) or 1.0
        scaled = np.array([float(prices.per_candidate[k, m, j]) for m, j in where]) / scale
        room = (limit - float(prices.fixed[k])) / scale
        constraints.append(scipy.optimize.LinearConstraint(scaled[None], -np.inf, room))
    cuts: list[np.ndarray] = []
    while True:
        chosen = _solve(score, constraints, cuts, count)
        if chosen is None:
            return
        cuts.append(chosen)
        indices = tuple(where[i][1] for i in np.flatnonzero(chosen))
        costs = prices.of(indices)
        if all(costs[k] <= limit for k, limit in zip(bounded, limits, strict=True)):
            yield indices


def _solve(
    score: np.ndarray,
    constraints: list[scipy.optimize.LinearConstraint],
    cuts: list[np.ndarray],
    count: int,
) -> np.ndarray | None:
    """The best 0/1 vector, or None where no other exists."""
    cut = [scipy.optimize.LinearConstraint(np.array(cuts), -np.inf, count - 1)] if cuts else []
    result = scipy.optimize.milp(
        -score,
        integrality=np.ones(len(score), dtype=np.int64),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=[*constraints, *cut],
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        return None
    return np.round(result.x)
