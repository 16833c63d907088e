"""From sums of blocks to whole networks.

    latency = a·Σ block + b + Σ over properties of w·property

A block measured alone is biased (facts.md, section 7). Its input has to be brought into the
runtime's own layout, and a call has its own price: in a network neither is paid at every
block. Its weights stay in the cache, which in a network they do not. So besides the line of a
and b, the number of blocks, the megabytes that go in and out, and the megabytes of weights
may each have a price, of either sign. There are few whole networks, so these prices are
shrunk (ridge), by as much as predicts left-out networks best; and they stay out unless that
is clearly better than the line, and leave every block a good part of what it took alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

STRENGTHS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)  # of the shrinkage, beside inf: to nothing
FEWEST = 6  # networks from which properties are priced at all
CLEARLY = 0.9  # of the line's error on left-out networks
LEAST = 0.3  # of a·block that a block must still cost


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The correction of sums of blocks.

    a: no unit. b: ms. weights: property -> ms a unit of it; empty where they do not help.
    networks: how many it was fitted to. residual_pct: mean absolute error on these.
    fallback: why the raw sum is used instead; empty where the fit is used.
    """

    a: float
    b: float
    weights: Mapping[str, float] = field(default_factory=dict)
    networks: int
    residual_pct: float
    fallback: str = ""


def fit(
    measured: np.ndarray,
    sums: np.ndarray,
    properties: Mapping[str, np.ndarray] | None = None,
    units: Mapping[str, np.ndarray] | None = None,
) -> Fit:
    """Least squares of the relative errors.

    measured: [networks] ms. sums: of their blocks, each measured alone, ms. properties: name
    -> [networks], sums of a property of the blocks. units: the same properties of every
    single block, name -> [blocks], and its latency alone as `ms`.
    """
    count = len(measured)
    if count < 3:
        return _raw(measured, sums, f"only {count} whole networks were measured")
    if np.ptp(sums) < 0.02 * measured.mean():
        return _raw(measured, sums, "the networks it is fitted to cost almost the same")
    line = np.stack([sums, np.ones(count)], axis=1)
    names, columns, scales = _scaled(measured, properties if count >= FEWEST else None)
    design = np.column_stack([line, *columns]) / measured[:, None]
    best, least = _solve(design, np.inf), CLEARLY * _left_out_error(design, np.inf)
    for strength in STRENGTHS if names else ():
        solution, error = _solve(design, strength), _left_out_error(design, strength)
        priced = dict(zip(names, solution[2:] / np.array(scales), strict=True))
        if error < least and _plausible(float(solution[0]), priced, units):
            best, least = solution, error
    a, b = float(best[0]), float(best[1])
    if a <= 1e-6:
        return _raw(measured, sums, f"the fit's slope is {a:.3g}, not positive")
    weights = {n: float(w / s) for n, w, s in zip(names, best[2:], scales, strict=True) if w}
    return Fit(
        a=a,
        b=b,
        weights=weights,
        networks=count,
        residual_pct=100 * float(np.abs(design @ best - 1).mean()),
    )


def _plausible(
    a: float, priced: Mapping[str, float], units: Mapping[str, np.ndarray] | None
) -> bool:
    """Whether every single block still costs a good part of what it took alone."""
    if units is None:
        return a > 0
    alone = a * units["ms"]
    corrected = alone + sum(w * units[name] for name, w in priced.items())
    return a > 0 and bool((corrected >= LEAST * alone).all())


def _raw(measured: np.ndarray, sums: np.ndarray, why: str) -> Fit:
    """The raw sum of blocks and the mean rest."""
    b = float((measured - sums).mean())
    residuals = (sums + b) / measured - 1
    return Fit(
        a=1.0,
        b=b,
        networks=len(sums),
        residual_pct=100 * float(np.abs(residuals).mean()),
        fallback=why,
    )


def _scaled(
    measured: np.ndarray, properties: Mapping[str, np.ndarray] | None
) -> tuple[list[str], list[np.ndarray], list[float]]:
    """Properties that vary, each scaled to at most the mean latency: one shrinkage fits all."""
    varied = {n: p for n, p in (properties or {}).items() if np.ptp(p) > 0}
    scales = [float(np.abs(p).max() / measured.mean()) for p in varied.values()]
    columns = [p / s for p, s in zip(varied.values(), scales, strict=True)]
    return list(varied), columns, scales


def _solve(design: np.ndarray, strength: float) -> np.ndarray:
    """The coefficients for which every row is nearest to 1; those after the line are shrunk."""
    if np.isinf(strength):
        line = np.linalg.lstsq(design[:, :2], np.ones(len(design)), rcond=None)[0]
        return np.concatenate([line, np.zeros(design.shape[1] - 2)])
    penalty = np.sqrt(strength) * np.eye(design.shape[1])[2:]
    rows = np.concatenate([design, penalty])
    target = np.concatenate([np.ones(len(design)), np.zeros(len(penalty))])
    solution: np.ndarray = np.linalg.lstsq(rows, target, rcond=None)[0]
    return solution


def _left_out_error(design: np.ndarray, strength: float) -> float:
    """The root mean square error on each network of a fit to all the others."""
    errors = [
        row @ _solve(np.delete(design, i, axis=0), strength) - 1 for i, row in enumerate(design)
    ]
    return float(np.sqrt(np.mean(np.square(errors))))
