"""Facts to one HTML file that needs nothing else: no network, no script of others, no fonts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from proxylessnas.hardware.validate import sentence
from proxylessnas.io.yaml_files import encode_yaml
from proxylessnas.report import pictures
from proxylessnas.report.draw import draw
from proxylessnas.report.facts import Facts
from proxylessnas.report.findings import LATENCY, differences, found, limited_by
from proxylessnas.report.words import as_sentence, count, ms, percent

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


def page(runs: Sequence[Facts]) -> str:
    """The report of one run, or of several side by side; whatever is in it is escaped."""
    files = resources.files("proxylessnas.report") / "pages"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "percent": percent,
        "ms": ms,
        "count": count,
        "sentence": as_sentence,
    }
    template = environment.from_string((files / "report.html").read_text("utf-8"))
    several = len(runs) > 1
    return template.render(
        title=" and ".join(f.name for f in runs) if several else f"{runs[0].name}: proxylessnas",
        css=Markup((files / "report.css").read_text("utf-8")),
        js=Markup((files / "report.js").read_text("utf-8")),
        sections=list(SECTIONS.items()),
        runs=[_run(facts, f"r{i}") for i, facts in enumerate(runs)],
        together=pictures.together(runs) if several else "",
        devices=sorted({_device(f) for f in runs} - {""}),
        tasks=len({f.outcome.classes for f in runs if f.outcome}),
        differences=differences(runs) if several else [],
    )


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
        "curves": [c for c in pictures.curves(facts) if c[1]],
        "trade_off": pictures.trade_off(
            {"networks of this run": facts}, facts.outcome.limit_ms if facts.outcome else None
        ),
        "scored": pictures.scored(facts),
        "device": _device(facts),
        "validation": sentence(facts.validation) if facts.validation else "",
        "predicted": pictures.predicted(facts),
        "macs": pictures.macs(facts),
        "environments": _environments(facts),
        "found": found(facts),
        "limited": limited_by(facts),
        "settings": encode_yaml(dict(facts.settings)),
        "data": _data(facts),
    }


def _lead(facts: Facts) -> str:
    s = facts.settings
    pretrained = s.get("pretrained") not in (None, "none")
    if not s.get("data"):
        words = "A model of one's own"
    elif s.get("model"):
        words = f"Images of {s['data']}, from the model {s['model']}"
    elif pretrained:
        words = f"Images of {s['data']}, from trained weights ({s['pretrained']})"
    else:
        words = f"Images of {s['data']}, from scratch, space {s.get('space')}"
    return f"{words}. {_device(facts)}"


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
    milliseconds = {c.name: c.cost(LATENCY) or 0.0 for c in facts.choices}
    return Markup(draw(facts.architecture, milliseconds))


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


OBSERVED = {
    "when": ("date", ""),
    "drift of the canary": ("canary_drift_pct", "+.1f} %"),
    "other load, cores": ("other_load_cores", ".2f}"),
    "clock, MHz": ("clock_mhz", ",.0f}"),
    "throttled": ("throttled", ".0f} times"),
}


def _environments(facts: Facts) -> tuple[list[str], list[list[str]]]:
    """What was observed while it was measured: the columns that the system told, and their rows."""
    told = {
        title: (name, form)
        for title, (name, form) in OBSERVED.items()
        if any(name in e for e in facts.environments)
    }

    def words(value: Any, form: str) -> str:
        if isinstance(value, int | float) and form:
            return ("{:" + form).format(value)
        return str("-" if value is None else value).replace("T", " ").partition("+")[0]

    rows = [[words(e.get(name), form) for name, form in told.values()] for e in facts.environments]
    return list(told), rows
