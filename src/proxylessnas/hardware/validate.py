"""How well the cost model predicts networks it was not fitted to."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from proxylessnas.core.costs import Costs
from proxylessnas.core.supernet import Supernet
from proxylessnas.hardware.costs import indices_of
from proxylessnas.hardware.fit import fit
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.table_entries import NetworkEntry


def validate(costs: Costs, supernet: Supernet, table: LatencyTable) -> dict[str, Any]:
    """The table's validation networks, predicted and measured.

    mean_abs_error_pct, bias_pct, worst_pct: of predicted / measured - 1. spearman, kendall:
    rank correlations. noise_floor_pct: how far the same networks, built and loaded again and
    measured in the same rounds, are from themselves; no model can be expected to be nearer.
    macs_only: the same figures of a line through the fitted networks' MACs. networks: how many.
    Figures that need more networks than there are, are None.
    """
    unseen = table.of_role("validation", space=costs.space)
    fitted = table.of_role("fit", "canary", space=costs.space)
    predicted = [costs.cost_of("latency", indices_of(supernet, n.choices)) for n in unseen]
    # Both measurements of a network estimate the same latency.
    measured = [
        statistics.mean(m.median_ms for m in (n.measurement, n.repeat) if m is not None)
        for n in unseen
    ]
    floor = [
        abs(n.repeat.median_ms / n.measurement.median_ms - 1)
        for n in unseen
        if n.repeat is not None
    ]
    by_macs = _by_macs(fitted, unseen)
    return {
        **figures(predicted, measured),
        "noise_floor_pct": 100 * float(np.mean(floor)) if floor else None,
        "macs_only": figures(by_macs, measured),
        "networks": len(unseen),
    }


def _by_macs(fitted: Sequence[NetworkEntry], unseen: Sequence[NetworkEntry]) -> list[float]:
    """The unseen networks' latencies in ms, by a line through the fitted networks' MACs.

    MACs are turned into ms at the fitted networks' mean rate first: `fit` compares the sums it
    is given with the latencies, and whether they vary enough must not depend on the unit.
    """
    measured = np.array([n.measurement.median_ms for n in fitted])
    macs = np.array([float(n.macs) for n in fitted])
    ms_a_mac = measured.mean() / macs.mean() if macs.any() else 0.0
    line = fit(measured, ms_a_mac * macs)
    return [line.a * ms_a_mac * n.macs + line.b for n in unseen]


def sentence(report: Mapping[str, Any]) -> str:
    """A validation's figures in one line."""
    floor, alone = report["noise_floor_pct"], report["macs_only"]["mean_abs_error_pct"]
    return (
        f"mean error {report['mean_abs_error_pct']:.1f} %"
        f" (noise floor {'unknown' if floor is None else f'{floor:.1f} %'}, MACs alone "
        f"{alone:.1f} %), bias {report['bias_pct']:+.1f} %, worst {report['worst_pct']:+.1f} %"
    )


def figures(predicted: Sequence[float], measured: Sequence[float]) -> dict[str, float | None]:
    """Errors in % and rank correlations; see `validate`."""
    names = ("mean_abs_error_pct", "bias_pct", "worst_pct", "spearman", "kendall")
    if not predicted:
        return dict.fromkeys(names)
    errors = 100 * (np.array(predicted) / np.array(measured) - 1)
    values: list[float | None] = [
        float(np.abs(errors).mean()),
        float(errors.mean()),
        float(errors[np.abs(errors).argmax()]),
    ]
    for correlation in (stats.spearmanr, stats.kendalltau):
        varied = len(set(predicted)) > 1 and len(set(measured)) > 1
        values.append(float(correlation(predicted, measured).statistic) if varied else None)
    return dict(zip(names, values, strict=True))
