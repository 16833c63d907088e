"""Predicted against measured latency of a table's whole networks: the facts, then the plot."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proxylessnas.core.costs import Costs
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import ConfigError, MissingDependency
from proxylessnas.hardware.costs import indices_of
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.io.files import write_atomic

COLOURS: Mapping[str, str] = {"fit": "#9aa4b2", "canary": "#c9820a", "validation": "#1661b3"}
FORMATS = (".svg", ".png", ".pdf")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A whole network. spread_ms: robust standard deviation of a visit."""

    predicted_ms: float
    measured_ms: float
    spread_ms: float
    role: str


def points(costs: Costs, supernet: Supernet, table: LatencyTable) -> list[Point]:
    """The table's whole networks of this space: the facts that the plot draws."""
    return [
        Point(
            predicted_ms=costs.cost_of("latency", indices_of(supernet, n.choices)),
            measured_ms=n.measurement.median_ms,
            spread_ms=n.measurement.median_ms * n.measurement.spread_pct / 100,
            role=n.role,
        )
        for n in table.of_role("fit", "canary", "validation", space=costs.space)
    ]


def check_plot(path: str | Path) -> None:
    """Refuse now a plot that could not be written after minutes of measuring.

    Raises:
        ConfigError: the file's name ends in no format that can be written.
        MissingDependency: matplotlib is not installed.
    """
    if Path(path).suffix not in FORMATS:
        raise ConfigError(f"--plot {path}: the name must end in {', '.join(FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependency("matplotlib", "plots", "a plot")


def plot(shown: Sequence[Point], title: str, path: str | Path) -> None:
    """Write the scatter of predicted and measured latency; the diagonal is a perfect model.

    Raises:
        ConfigError, MissingDependency: see `check_plot`.
    """
    check_plot(path)
    import matplotlib
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(5.4, 5.4), layout="constrained")).add_subplot()
    for role in dict.fromkeys(p.role for p in shown):
        these = [p for p in shown if p.role == role]
        x, y = [p.predicted_ms for p in these], [p.measured_ms for p in these]
        spread = [p.spread_ms for p in these]
        axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=COLOURS[role], linewidth=1)
        axes.scatter(x, y, color=COLOURS[role], alpha=0.8, label=role, gid=role, zorder=2)
    axes.axline((0, 0), slope=1, color="#667085", linestyle="--", linewidth=1, zorder=1)
    axes.set(title=title.replace("$", r"\$"), xlabel="predicted, ms", ylabel="measured, ms")
    axes.title.set_fontsize("medium")
    axes.grid(color="#e3e7ee")
    if shown:
        axes.legend()
    file, suffix = io.BytesIO(), Path(path).suffix[1:]
    # The same points give the same file.
    undated = (
        {"Date": None} if suffix == "svg" else {"CreationDate": None} if suffix == "pdf" else {}
    )
    with matplotlib.rc_context({"svg.hashsalt": "proxylessnas", "svg.fonttype": "none"}):
        figure.savefig(file, format=suffix, metadata=undated)
    write_atomic(Path(path), file.getvalue())
