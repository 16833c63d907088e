"""What candidates cost, and how much a network may: E[cost] = fixed + Σ p·cost (paper eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxylessnas.errors import LimitError


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
