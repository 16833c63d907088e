"""Facts to one HTML file that needs nothing else: no network, no script of others, no fonts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from proxylessnas.hardware.validate import sentence
from proxylessnas.report import charts
from proxylessnas.report.charts import Mark
from proxylessnas.report.draw import INK, LINE, PALE, PAPER, draw
from proxylessnas.report.facts import SEARCHES, Facts
from proxylessnas.report.findings import LATENCY, differences, found, limited_by

SECTIONS = {
    "result": "Result",
    "network": "Network",
    "search": "Search",
    "trade-off": "Trade-off",
    "device": "Device",
    "findings": "Findings",
    "repeat": "Repeat it",
}
MOST_CLASSES, MOST_CONFUSED = 40, 24  # rows of the table, and classes whose confusion is drawn
MOST_NUMBERS = 60_000  # of probabilities over time; longer histories are thinned
THEMED = {INK: "--ink", PALE: "--pale", LINE: "--line", PAPER: "--paper"}  # blocks stay light
TITLES = {
    "loss": "Loss of the weight steps",
    "valid_loss": "Loss of the architecture steps",
    "entropy": "Mean entropy of α",
}


def page(runs: Sequence[Facts]) -> str:
    """The report of one run, or of several side by side; whatever is in it is escaped."""
    files = resources.files("proxylessnas.report") / "pages"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"percent": percent, "ms": ms, "count": count, "sentence": _sentence}
    template = environment.from_string((files / "report.html").read_text("utf-8"))
    several = len(runs) > 1
    return template.render(
        title=" and ".join(f.name for f in runs) if several else f"{runs[0].name}: proxylessnas",
        css=Markup((files / "report.css").read_text("utf-8")),
        js=Markup((files / "report.js").read_text("utf-8")),
        sections=list(SECTIONS.items()),
        runs=[_run(facts, f"r{i}") for i, facts in enumerate(runs)],
        together=_together(runs) if several else "",
        devices=sorted({_device(f) for f in runs} - {""}),
        differences=differences(runs) if several else [],
    )


# --- numbers in words ---


def percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def count(value: float | None) -> str:
    if value is None:
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:g}"


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + ("" if words.endswith(".") else ".")


# --- a run ---


def _run(facts: Facts, name: str) -> dict[str, Any]:
    """What the template shows of a run beside its facts."""
    confusion, classes = _confusion(facts), _classes(facts)
    return {
        "id": name,
        "facts": facts,
        "lead": _lead(facts),
        "figures": list(_figures(facts)),
        "classes": classes[:MOST_CLASSES],
        "classes_left": max(0, len(classes) - MOST_CLASSES),
        "confusion": confusion if len(confusion) <= MOST_CONFUSED else [],
        "mistakes": _mistakes(facts),
        "drawing": _drawing(facts),
        "blocks": _blocks(facts),
        "explained": any(c.probabilities for c in facts.choices),
        "curves": [c for c in _curves(facts) if c[1]],
        "trade_off": _trade_off(
            {"networks of this run": facts}, facts.outcome.limit_ms if facts.outcome else None
        ),
        "scored": _scored(facts),
        "device": _device(facts),
        "validation": sentence(facts.validation) if facts.validation else "",
        "predicted": _predicted(facts),
        "macs": _macs(facts),
        "environments": _environments(facts),
        "found": found(facts),
        "limited": limited_by(facts),
        "settings": yaml.safe_dump(dict(facts.settings), sort_keys=False, allow_unicode=True),
        "data": _data(facts),
    }


def _lead(facts: Facts) -> str:
    s = facts.settings
    start = f"trained weights ({s['pretrained']})" if s.get("pretrained") else "scratch"
    words = f"Images of {s['data']}, from {start}" if s.get("data") else "A model of one's own"
    space = "" if s.get("pretrained") or not s.get("data") else f", space {s.get('space')}"
    return f"{words}{space}. {_device(facts)}"


def _figures(facts: Facts) -> Iterator[tuple[str, str]]:
    outcome, latency, verdict = facts.outcome, facts.latency, facts.verdict or {}
    if outcome is not None and outcome.accuracy is not None:
        low, high = outcome.interval
        yield (
            percent(outcome.accuracy),
            f"test accuracy; 95 %: {100 * low:.1f} to {100 * high:.1f} ({outcome.images:,} images)",
        )
        if verdict.get("chance"):
            words = "by chance"
            if verdict.get("majority") is not None:
                words += f"; {percent(verdict['majority'])} always {verdict['majority_class']!r}"
            yield percent(verdict["chance"]), words
    if latency.measured is not None:
        noise = f" ± {latency.noise_pct:.1f} %" if latency.noise_pct else ""
        drift = f"; drift {latency.drift_pct:+.1f} %" if latency.drift_pct is not None else ""
        yield f"{ms(latency.measured)} ms", f"measured{noise}{drift}"
    elif latency.why_not:
        yield "-", f"not measured: {latency.why_not}"
    if latency.predicted is not None:
        yield f"{ms(latency.predicted)} ms", "predicted"
    if latency.target is not None:
        yield f"{ms(latency.target)} ms", "the limit"
    if outcome is not None and outcome.rows[0].parameters is not None:
        row = outcome.rows[0]
        yield count(row.parameters), f"parameters; {count(row.macs)} MACs"


def _classes(facts: Facts) -> list[dict[str, Any]]:
    """Recall and precision of every class; of many, the worst first."""
    if facts.outcome is None or not facts.outcome.counts:
        return []
    counts = facts.outcome.counts
    answers = [sum(column) for column in zip(*counts, strict=True)]
    rows = [
        {
            "name": name,
            "images": sum(row),
            "recall": row[k] / sum(row) if sum(row) else None,
            "precision": row[k] / answers[k] if answers[k] else None,
        }
        for k, (name, row) in enumerate(zip(facts.outcome.classes, counts, strict=True))
    ]
    if len(rows) > MOST_CLASSES:
        rows.sort(key=lambda row: 2.0 if row["recall"] is None else row["recall"])
    return rows


def _confusion(facts: Facts) -> list[dict[str, Any]]:
    if facts.outcome is None:
        return []
    rows = []
    for i, (name, row) in enumerate(zip(facts.outcome.classes, facts.outcome.counts, strict=False)):
        cells = [
            {
                "count": n,
                "share": round(75 * n / max(1, sum(row))),
                "colour": "--s2" if i == k else "--s3",
            }
            for k, n in enumerate(row)
        ]
        rows.append({"name": name, "cells": cells})
    return rows


def _mistakes(facts: Facts) -> list[dict[str, Any]]:
    if facts.outcome is None:
        return []
    names = facts.outcome.classes
    return [
        {**m, "true": names[m["true"]], "answer": names[m["answer"]]}
        for m in facts.outcome.mistakes
    ]


# --- the network ---


def _drawing(facts: Facts) -> str:
    if facts.architecture is None:
        return ""
    svg = draw(facts.architecture, {c.name: c.cost(LATENCY) or 0.0 for c in facts.choices})
    for colour, variable in THEMED.items():
        svg = svg.replace(f"'{colour}'", f"'var({variable})'")
    return Markup(svg)


def _blocks(facts: Facts) -> list[dict[str, Any]]:
    """Every choice with its share of the predicted latency, and the part that is not searched."""
    fixed = facts.fixed.get(LATENCY)
    total = (fixed or 0.0) + sum(c.cost(LATENCY) or 0.0 for c in facts.choices)
    rows = []
    for choice in facts.choices:
        cost = choice.cost(LATENCY)
        known = choice.chosen in choice.candidates and choice.probabilities
        rows.append(
            {
                "name": choice.name,
                "chosen": choice.chosen,
                "ms": cost,
                "share": None if cost is None or not total else cost / total,
                "probability": choice.probabilities[choice.candidates.index(choice.chosen)]
                if known
                else None,
            }
        )
    if fixed is not None and total:
        share = fixed / total
        rows.append(
            {
                **{"name": "everything else", "chosen": "not searched", "ms": fixed},
                **{"share": share, "probability": None},
            }
        )
    return rows


def _data(facts: Facts) -> Markup:
    """What the page's script shows of a block; no `<` in it, so that no name ends the script."""
    numbers = sum(len(c.candidates) for c in facts.choices) * max(1, len(facts.moments))
    stride = max(1, -(-numbers // MOST_NUMBERS))
    choices = {
        c.name: {
            "chosen": c.chosen,
            "candidates": c.candidates,
            "probabilities": [round(p, 4) for p in c.probabilities],
            "costs": {n: [float(f"{v:.4g}") for v in values] for n, values in c.costs.items()},
            "history": [[round(p, 3) for p in row] for row in c.history[::stride]],
        }
        for c in facts.choices
        if c.probabilities
    }
    priced = [c for c in facts.choices if c.name in choices and c.cost(LATENCY) is not None]
    first = max(priced, key=lambda c: c.cost(LATENCY) or 0.0).name if priced else ""
    value = {
        "choices": choices,
        "moments": facts.moments[::stride],
        "units": {LATENCY: "ms"},
        "first": first,
    }
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


# --- curves ---


def _curves(facts: Facts) -> Iterator[tuple[str, str, str]]:
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


def _trade_off(groups: Mapping[str, Facts], limit: float | None) -> str:
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
    return Markup(
        charts.scatter(marks, "measured, ms", "test accuracy, %", front=True, upright=limit)
    )


def _together(runs: Sequence[Facts]) -> str:
    return _trade_off({f.name: f for f in runs}, None)


def _scored(facts: Facts) -> str:
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
    return Markup(
        charts.scatter(
            groups, "predicted, ms", "validation score", front=True, upright=facts.latency.target
        )
    )


# --- the device ---


def _device(facts: Facts) -> str:
    d = facts.device
    if not d:
        return ""
    threads = f"{d.get('threads')} thread{'s' if d.get('threads') != 1 else ''}"
    return (
        f"Latencies are of {d.get('device')}, {d.get('runtime')} {d.get('version')}, "
        f"{d.get('precision')}, {threads}, batch {d.get('batch')}."
    )


def _predicted(facts: Facts) -> str:
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


def _macs(facts: Facts) -> str:
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


def _environments(facts: Facts) -> list[tuple[str, str, str]]:
    def words(value: Any, form: str) -> str:
        return format(value, form) if isinstance(value, int | float) else "-"

    return [
        (
            str(e.get("date", "-")).replace("T", " ").partition("+")[0],
            words(e.get("canary_drift_pct"), "+.1f") + " %",
            words(e.get("other_load_cores"), ".2f"),
        )
        for e in facts.environments
    ]
