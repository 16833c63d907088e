"""The charts of a run's facts, each as inline SVG; empty where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from proxylessnas.report import charts
from proxylessnas.report.charts import Mark
from proxylessnas.report.facts import SEARCHES, Facts
from proxylessnas.report.findings import LATENCY
from proxylessnas.report.words import count, ms, percent

TITLES = {
    "loss": "Loss of the weight steps",
    "valid_loss": "Loss of the architecture steps",
    "entropy": "Mean entropy of α",
}


def curves(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """(title, chart, note) of the search, then of the trainings."""
    search = next((facts.curves[s] for s in SEARCHES if s in facts.curves), {})
    losses = {TITLES[n]: search[n] for n in ("loss", "valid_loss") if n in search}
    yield "Losses of the search", Markup(charts.lines(losses, "step", "loss")), ""
    if "expected_latency" in search:
        chart = charts.lines(
            {"expected": search["expected_latency"]},
            "step",
            "expected latency, ms",
            level=facts.latency.target,
        )
        note = "Dashed: the limit." if facts.latency.target is not None else ""
        yield "Expected latency", Markup(chart), note
    if "entropy" in search:
        chart = charts.lines({"entropy": search["entropy"]}, "step", "mean entropy of α")
        yield "How much is decided", Markup(chart), "1: nothing is decided; 0: everything."
    moved = {n: v for n, v in search.items() if n.startswith("multipliers") and _moves(v)}
    if moved:
        yield "Multiplier of the limit", Markup(charts.lines(moved, "step", "multiplier")), ""
    trainings = {
        stage: curves["loss"]
        for stage, curves in facts.curves.items()
        if stage not in SEARCHES and "loss" in curves
    }
    yield "Losses of the trainings", Markup(charts.lines(trainings, "step", "loss")), ""


def _moves(points: Sequence[tuple[float, float]]) -> bool:
    return any(value for _, value in points)


# --- trade-off ---


def trade_off(groups: Mapping[str, Facts], limit: float | None) -> str:
    marks = {}
    for name, facts in groups.items():
        rows = facts.outcome.rows if facts.outcome else ()
        marks[name] = [
            Mark(
                x=row.ms,
                y=100 * row.accuracy,
                words=f"{name}, {row.name}: {percent(row.accuracy)}, {ms(row.ms)} ms",
                label=row.name,
                size=6 if row.name == "found" else 4,
            )
            for row in rows
            if row.ms is not None and row.accuracy is not None
        ]
    lines = {} if limit is None else {"limit": limit}
    return Markup(
        charts.scatter(marks, "measured, ms", "test accuracy, %", front=True, uprights=lines)
    )


def together(runs: Sequence[Facts]) -> str:
    return trade_off({f.name: f for f in runs}, None)


def scored(facts: Facts) -> str:
    groups: dict[str, list[Mark]] = {}
    for s in facts.scored:
        if s.predicted_ms is None or s.score is None:
            continue
        words = f"score {s.score:.4f}, predicted {ms(s.predicted_ms)} ms"
        words += f", measured {ms(s.measured_ms)} ms" if s.measured_ms is not None else ""
        groups.setdefault(s.of, []).append(
            Mark(
                x=s.predicted_ms,
                y=s.score,
                words=words,
                label="chosen" if s.chosen else "",
                size=6 if s.chosen else 4,
            )
        )
    lines = {peer.name: peer.predicted_ms for peer in facts.peers}
    if facts.latency.target is not None:
        lines["limit"] = facts.latency.target
    axis = "score, of which more is better"
    return Markup(charts.scatter(groups, "predicted, ms", axis, front=True, uprights=lines))


# --- the device ---


def predicted(facts: Facts) -> str:
    groups: dict[str, list[Mark]] = {}
    for point in facts.networks:
        words = f"predicted {ms(point['predicted_ms'])} ms, measured {ms(point['measured_ms'])} ms"
        mark = Mark(
            x=point["predicted_ms"],
            y=point["measured_ms"],
            words=words,
            spread=point["spread_ms"],
        )
        groups.setdefault(str(point["role"]), []).append(mark)
    return Markup(charts.scatter(groups, "predicted, ms", "measured, ms", diagonal=True))


def macs(facts: Facts) -> str:
    """Every distinct candidate: its MACs, and its milliseconds."""
    marks = {
        (row["macs"][k], row[LATENCY][k]): Mark(
            x=row["macs"][k] / 1e6,
            y=row[LATENCY][k],
            words=f"{choice.name} {name}: {count(row['macs'][k])} MACs, {ms(row[LATENCY][k])} ms",
        )
        for choice in facts.choices
        for row in [choice.costs]
        if LATENCY in row and "macs" in row
        for k, name in enumerate(choice.candidates)
    }
    return Markup(charts.scatter({"candidates": list(marks.values())}, "million MACs", "ms"))
