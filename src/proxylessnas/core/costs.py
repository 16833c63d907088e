"""Costs of networks, and their limits: E[cost] = fixed + Σ p·cost (paper section 3.3.1).

A cost is a number that adds up over the choices of a network: its latency (by a model, see
`hardware.costs`), its MACs, its parameters, or any number that a user can give a candidate. The
search only ever sees this sum, so that every cost is differentiable in the probabilities and
linear in the one-hot vectors of an integer programme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxylessnas.errors import LimitError, MeasurementError


@dataclass(frozen=True, kw_only=True, eq=False)
class Costs:
    """K named costs of every candidate, and a limit of each.

    names, units: one a cost; the unit of a count is empty.
    per_candidate: [costs, choices, candidates] float64, 0 at pads.
    fixed: [costs], the part that all networks share.
    limits: [costs], in the cost's unit; inf where there is none.
    space: which networks at which input these are the costs of, see `hardware.costs.space_id`.
    fit: how the latency was corrected to whole networks, see `hardware.fit.Fit`.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    per_candidate: Tensor
    fixed: Tensor
    limits: Tensor
    space: str = ""
    fit: Any = None

    # --- making them ---

    @staticmethod
    def free(choices: int, candidates: int) -> Costs:
        """No cost matters."""
        nothing = torch.zeros(0, dtype=torch.float64)
        per_candidate = torch.zeros(0, choices, candidates, dtype=torch.float64)
        return Costs(names=(), units=(), per_candidate=per_candidate, fixed=nothing, limits=nothing)

    @staticmethod
    def one(
        name: str,
        per_candidate: Tensor,
        *,
        fixed: float = 0.0,
        limit: float = math.inf,
        unit: str = "",
        space: str = "",
        fit: Any = None,
    ) -> Costs:
        """One cost alone. per_candidate: [choices, candidates]."""
        return Costs(
            names=(name,),
            units=(unit,),
            per_candidate=per_candidate[None].double(),
            fixed=torch.tensor([fixed], dtype=torch.float64),
            limits=torch.tensor([limit], dtype=torch.float64),
            space=space,
            fit=fit,
        )

    @staticmethod
    def join(*costs: Costs) -> Costs:
        """The costs of several, side by side."""
        names = tuple(name for c in costs for name in c.names)
        assert len(set(names)) == len(names), names
        return Costs(
            names=names,
            units=tuple(unit for c in costs for unit in c.units),
            per_candidate=torch.cat([c.per_candidate for c in costs]),
            fixed=torch.cat([c.fixed for c in costs]),
            limits=torch.cat([c.limits for c in costs]),
            space=next((c.space for c in costs if c.space), ""),
            fit=next((c.fit for c in costs if c.fit is not None), None),
        )

    def limited(self, limits: Mapping[str, float]) -> Costs:
        """The same costs under these limits alone; a cost without an entry has none.

        Raises:
            LimitError: there is no cost of a name.
        """
        for name in limits:
            if name not in self.names:
                known = ", ".join(self.names) or "none"
                raise LimitError(f"there is no cost {name!r} to limit; there are: {known}")
        values = [limits.get(name, math.inf) for name in self.names]
        return replace(self, limits=torch.tensor(values, dtype=torch.float64))

    def scaled(self, name: str, factor: float) -> Costs:
        """One cost multiplied by a measured correction; its limit stays.

        Raises:
            MeasurementError: the factor is not a positive number.
        """
        if not 0 < factor < math.inf:
            raise MeasurementError(f"the cost {name} cannot be corrected by a factor of {factor}")
        # The fixed part too: a measurement is of the whole network, and cannot tell them apart.
        factors = torch.ones(len(self.names), dtype=torch.float64)
        factors[self.index(name)] = factor
        per_candidate = self.per_candidate * factors[:, None, None]
        return replace(self, per_candidate=per_candidate, fixed=self.fixed * factors)

    # --- reading them ---

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def index(self, name: str) -> int:
        """The position of a cost."""
        return self.names.index(name)

    def limit(self, name: str) -> float:
        """The limit of a cost; inf where there is none, or no such cost."""
        return float(self.limits[self.index(name)]) if name in self else math.inf

    @property
    def finite_limits(self) -> dict[str, float]:
        """The limits there are, by the cost's name."""
        limits = zip(self.names, self.limits.tolist(), strict=True)
        return {name: limit for name, limit in limits if math.isfinite(limit)}

    def expected(self, probabilities: Tensor) -> Tensor:
        """E[cost] over the full softmax, [costs]; differentiable in the probabilities.

        probabilities: [choices, candidates].
        """
        # The expectation of a sum is the sum of expectations, so no network is drawn: the value is
        # exact, and ∂E/∂p_j is the cost of candidate j, whichever candidates run in this step.
        per_candidate = self.per_candidate.to(probabilities)
        return self.fixed.to(probabilities) + (per_candidate * probabilities).sum((1, 2))

    def of(self, indices: Sequence[int]) -> list[float]:
        """The costs of one network. indices: one candidate for every choice."""
        # fsum rounds once, at the end: whether a limit is kept must not depend on the order.
        rows = self.per_candidate.tolist()
        return [
            float(fixed) + math.fsum(row[i] for row, i in zip(cost, indices, strict=True))
            for cost, fixed in zip(rows, self.fixed.tolist(), strict=True)
        ]

    def within(self, networks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of many networks, [networks, choices], keep every limit."""
        rows = torch.from_numpy(networks).T
        sums = self.per_candidate.gather(2, rows.expand(len(self.names), *rows.shape)).sum(1)
        kept: NDArray[np.bool_] = (
            (sums + self.fixed[:, None] <= self.limits[:, None]).all(0).numpy()
        )
        # A sum in another order may differ in its last digit: `of` decides about the limit itself.
        return kept

    def cost_of(self, name: str, indices: Sequence[int]) -> float:
        """One cost of one network."""
        return self.of(indices)[self.index(name)]

    def extremes(self, name: str, mask: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The networks of the least and of the greatest cost, the first among equals.

        mask: [choices, candidates], True where a candidate may be chosen.
        """
        cost = self.per_candidate[self.index(name)]
        least = cost.masked_fill(~mask, math.inf).argmin(1)
        most = cost.masked_fill(~mask, -math.inf).argmax(1)
        return tuple(least.tolist()), tuple(most.tolist())

    def range(self, mask: Tensor) -> list[tuple[float, float]]:
        """The least and the most that a network can cost, for each cost."""
        # Each choice is free, so the extremes of a sum are the sums of the extremes.
        low = self.per_candidate.masked_fill(~mask, math.inf).amin(2).sum(1) + self.fixed
        high = self.per_candidate.masked_fill(~mask, -math.inf).amax(2).sum(1) + self.fixed
        return list(zip(low.tolist(), high.tolist(), strict=True))

    def check_reachable(self, mask: Tensor) -> None:
        """Refuse a limit that no network of the space keeps, before a search is spent on it.

        Raises:
            LimitError: naming the reachable range.
        """
        for name, unit, limit, (low, high) in zip(
            self.names, self.units, self.limits.tolist(), self.range(mask), strict=True
        ):
            if limit < low:
                raise LimitError(
                    f"no network of this space keeps a {name} of {amount(limit, unit)}: the "
                    f"reachable range is {amount(low, unit)} to {amount(high, unit)}"
                )


def amount(value: float, unit: str) -> str:
    """A cost as people read it: `4.2 ms`, `2,076,544`."""
    return f"{value:.4g} {unit}".strip() if value < 1e4 else f"{value:,.0f} {unit}".strip()
