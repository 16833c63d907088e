"""Task loss L and expected costs E to the one scalar that α minimises (paper section 3.3).

The paper adds λ2·E[latency] to the loss, with a λ2 that somebody has to find: too small, and
the network is too slow; too large, and it is faster than needed. `Constraint`, the default,
takes the limit itself and finds the multiplier while the search runs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from proxylessnas.config import SearchSettings
from proxylessnas.core.costs import Costs
from proxylessnas.errors import ConfigError


class Objective(ABC):
    """A scalar of the loss and the expected costs, differentiable in both.

    Every objective is affine in the loss, which REINFORCE relies on.
    """

    @abstractmethod
    def __call__(self, loss: Tensor, expected: Tensor) -> Tensor:
        """loss: scalar. expected: [costs], each in its unit."""

    def observe(self, costs: Sequence[float]) -> None:  # noqa: B027 (most keep no state)
        """After an architecture step: the costs of the network that is now most probable."""

    def state(self) -> list[float]:
        return []

    def load(self, state: Sequence[float]) -> None: ...  # noqa: B027


class Alone(Objective):
    """The loss, or a reward with a minus, without a cost."""

    def __call__(self, loss: Tensor, expected: Tensor) -> Tensor:
        return loss


class Linear(Objective):
    """L + λ2·E[latency] (section 3.3.1), E in ms. weight: λ2. index: of the latency in E."""

    def __init__(self, weight: float, *, index: int = 0) -> None:
        self.weight, self.index = weight, index

    def __call__(self, loss: Tensor, expected: Tensor) -> Tensor:
        return loss + self.weight * expected[self.index].to(loss)


class MulLog(Objective):
    """0.2·L·(log E / log T)^0.3, `mul#log` of the published code; E and T in ms.

    Raises:
        ConfigError: the target is not over 1 ms.
    """

    def __init__(
        self, target: float, *, index: int = 0, scale: float = 0.2, power: float = 0.3
    ) -> None:
        if target <= 1:
            raise ConfigError(f"mul_log needs a target over 1, not {target:g}: its log divides")
        self.target, self.index, self.scale, self.power = target, index, scale, power

    def __call__(self, loss: Tensor, expected: Tensor) -> Tensor:
        # Under 1 ms the logarithm is negative, and its power no number: hence the floor.
        ratio = torch.log(expected[self.index]) / math.log(self.target)
        return self.scale * loss * ratio.clamp_min(1e-3).pow(self.power).to(loss)


class AddLinear(Objective):
    """L + 0.1·(E − T)/T, `add#linear` of the published code."""

    def __init__(self, target: float, *, index: int = 0, scale: float = 0.1) -> None:
        self.target, self.index, self.scale = target, index, scale

    def __call__(self, loss: Tensor, expected: Tensor) -> Tensor:
        return loss + self.scale * (expected[self.index] / self.target - 1).to(loss)


class Constraint(Objective):
    """L + Σ_k λ_k·(E_k/T_k − 1): a multiplier for every limit, by dual ascent (LightNAS).

    limits: T, one a cost, inf where there is none. rate: of λ.

    This is the Lagrangian of "minimise L where every cost k is at most T_k". Descending in α and
    ascending in λ ≥ 0 leads to its saddle point, where each limit just holds, or has room and a
    multiplier of 0.
    """

    def __init__(self, limits: Sequence[float], *, rate: float) -> None:
        self.limits, self.rate = [float(v) for v in limits], rate
        self.multipliers = [0.0] * len(self.limits)

    def __call__(self, loss: Tensor, expected: Tensor) -> Tensor:
        # Costs count relative to their limits, so that one rate suits milliseconds and MACs.
        for k, (multiplier, limit) in enumerate(zip(self.multipliers, self.limits, strict=True)):
            if multiplier:  # else 0·(E/∞ − 1) of a cost without a limit
                loss = loss + multiplier * (expected[k] / limit - 1).to(loss)
        return loss

    def observe(self, costs: Sequence[float]) -> None:
        # λ rises while the most probable network breaks its limit, and falls while there is room,
        # until the limit just holds. The network counts and not E: while α is undecided, E mixes
        # in candidates that will not be chosen. A λ under 0 would reward slowness.
        for k, (cost, limit) in enumerate(zip(costs, self.limits, strict=True)):
            if math.isfinite(limit):
                step = self.rate * (cost / limit - 1)
                self.multipliers[k] = max(0.0, self.multipliers[k] + step)

    def state(self) -> list[float]:
        return list(self.multipliers)

    def load(self, state: Sequence[float]) -> None:
        self.multipliers = [max(0.0, float(v)) for v in state]


def reward(accuracy: float, cost: float, target: float, power: float = 0.1) -> float:
    """accuracy·(T/latency)^w, the reward of REINFORCE in the published code (w = 0.1).

    accuracy: in [0, 1]. cost, target: of one unit.

    >>> reward(0.5, cost=10.0, target=10.0)
    0.5
    """
    return float(accuracy * (target / cost) ** power)


# --- by their settings ---

# Rate x architecture steps of a multiplier: how far it would rise in a whole search whose network
# costs twice the limit. The loss is of order 1, so the limit wins well before the end.
DUAL_TRAVEL = 20.0


def check_objective(
    settings: SearchSettings, *, measured: bool, limited: bool, own_reward: bool = False
) -> None:
    """Refuse an objective without what it needs, before anything is measured for it.

    measured: networks have a latency. limited: it has a limit. own_reward: the user gives a
    reward function to the estimator.

    Raises:
        ConfigError: the objective needs a weight, a latency, a limit of it, another estimator or
            another objective.
    """
    name, estimator = settings.objective, settings.estimator
    if (name == "reward" or own_reward) and estimator != "reinforce":
        subject = "a reward function" if own_reward else "the objective reward"
        raise ConfigError(
            f"{subject} gives no gradient: it needs the estimator reinforce (search.estimator), "
            f"not {estimator}"
        )
    if own_reward and name == "mul_log":
        raise ConfigError("mul_log multiplies a loss, not a reward: use the objective constraint")
    if name == "linear" and settings.cost_weight is None:
        raise ConfigError(
            "the objective linear needs cost_weight (--search.cost-weight), per millisecond"
        )
    if name == "linear" and not measured:
        raise ConfigError(
            "the objective linear weighs a latency: give a target latency or a latency table"
        )
    if name in ("mul_log", "add_linear", "reward") and not limited:
        raise ConfigError(f"the objective {name} needs a target latency (--target-latency)")


def make_objective(settings: SearchSettings, costs: Costs, arch_steps: int) -> Objective:
    """The objective that the settings name. arch_steps: architecture steps of the whole search.

    Raises:
        ConfigError: mul_log with a target of 1 ms or less; and see `check_objective`.
    """
    target = costs.limit("latency")
    check_objective(settings, measured="latency" in costs, limited=math.isfinite(target))
    name, weight = settings.objective, settings.cost_weight
    if name == "reward":
        return Alone()  # the latency is in the reward
    if name == "constraint":
        rate = settings.multiplier_learning_rate or DUAL_TRAVEL / max(1, arch_steps)
        return Constraint(costs.limits.tolist(), rate=rate)
    index = costs.index("latency")
    if name == "linear":
        assert weight is not None  # checked
        return Linear(weight, index=index)
    scale = {} if weight is None else {"scale": weight}
    return (MulLog if name == "mul_log" else AddLinear)(target, index=index, **scale)


def make_reward(
    settings: SearchSettings, costs: Costs
) -> Callable[[float, Sequence[int]], float] | None:
    """accuracy·(T/latency)^w on predicted latency for the objective `reward`, None for others."""
    if settings.objective != "reward":
        return None
    target = costs.limit("latency")
    power = 0.1 if settings.cost_weight is None else settings.cost_weight

    def of(accuracy: float, indices: Sequence[int]) -> float:
        return reward(accuracy, costs.cost_of("latency", indices), target, power)

    return of
