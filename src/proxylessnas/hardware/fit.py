"""From sums of blocks to whole networks.

    latency = a·Σ block + b + d·(number of blocks)

A block measured alone is biased (docs/paper.md, "Ideas from later papers"): a call has a price
of its own, and in a network caches are fuller. a and b repair most of it. Whether each block is
a little too dear or too cheap by itself, d, is worth asking where whole networks are few and
noisy only with care: d is shrunk (ridge) by as much as predicts left-out networks best, and
stays out unless that is better than the line, or if a block would become all but free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STRENGTHS = (10.0, 1.0, 0.1, 1e-2, 1e-3)  # of the shrinkage; infinite is the line alone
FEWEST = 6  # networks from which d is asked for at all
LEAST = 0.3  # of a·block that a block must still cost


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The correction of sums of blocks.

    a: no unit. b: ms. d: ms a block; 0 where it does not help.
    networks: how many it was fitted to. residual_pct: mean absolute error on these.
    fallback: why the raw sum is used instead; empty where the fit is used.
    """

    a: float
    b: float
    d: float = 0.0
    networks: int
    residual_pct: float
    fallback: str = ""


def fit(
    measured: np.ndarray,
    sums: np.ndarray,
    counts: np.ndarray | None = None,
    *,
    smallest: float = np.inf,
) -> Fit:
    """Least squares of the relative errors.

    measured: [networks] ms. sums: of their blocks, each measured alone, ms. counts: their
    numbers of blocks. smallest: the latency of the smallest block alone, ms.
    """
    if len(measured) < 3:
        return _raw(measured, sums, f"only {len(measured)} whole networks were measured")
    if np.ptp(sums) < 0.02 * measured.mean():
        return _raw(measured, sums, "the networks it is fitted to cost almost the same")
    scale, design = 1.0, np.stack([sums, np.ones_like(sums)], axis=1) / measured[:, None]
    best = np.append(_solve(design, np.inf), 0.0)
    if counts is not None and np.ptp(counts) > 0 and len(measured) >= FEWEST:
        scale = float(counts.max() / measured.mean())
        design = np.column_stack([design, counts / scale / measured])
        least = _left_out_error(design, np.inf)
        for strength in STRENGTHS:
            solution, error = _solve(design, strength), _left_out_error(design, strength)
            left = solution[0] * smallest + solution[2] / scale
            if error < least and left >= LEAST * solution[0] * smallest > 0:
                best, least = solution, error
    if best[0] <= 1e-6:
        return _raw(measured, sums, f"the fit's slope is {best[0]:.3g}, not positive")
    a, b, d = float(best[0]), float(best[1]), float(best[2]) / scale
    predicted = a * sums + b + (0 if counts is None else d * counts)
    return Fit(a=a, b=b, d=d, networks=len(sums), residual_pct=_error_pct(predicted, measured))


def _raw(measured: np.ndarray, sums: np.ndarray, why: str) -> Fit:
    """The raw sum of blocks and the mean rest."""
    b = float((measured - sums).mean())
    error = _error_pct(sums + b, measured)
    return Fit(a=1.0, b=b, networks=len(sums), residual_pct=error, fallback=why)


def _error_pct(predicted: np.ndarray, measured: np.ndarray) -> float:
    return 100 * float(np.abs(predicted / measured - 1).mean())


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
