"""The summary of a run on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from proxylessnas.core.costs import amount
from proxylessnas.hardware.timing import DRIFTED_PCT
from proxylessnas.report.precisions import int8_lines
from proxylessnas.runs.defaults import MODEL
from proxylessnas.runs.summary import MOST_PRINTED
from proxylessnas.session.finishing import CONFUSION

FLOAT = {"file": "model.onnx"}


def show(facts: dict[str, Any], directory: str, console: Console) -> None:
    """The architecture block by block, the figures, and what to do next."""
    blocks = Table(title="The network, block by block", title_justify="left", box=None)
    for column, justify in (("block", "left"), ("choice", "left"), ("ms", "right"), ("", "left")):
        blocks.add_column(column, justify=justify)  # type: ignore[arg-type]
    widest = max(block["ms"] for block in facts["blocks"])
    for block in facts["blocks"]:
        bar = "▇" * max(0, round(24 * block["ms"] / widest))
        blocks.add_row(block["name"], block["choice"], f"{block['ms']:.3f}", bar)
    console.print()
    console.print(blocks)
    console.print()
    console.print(_networks(facts))
    if "paid" in facts:
        console.print(facts["paid"], soft_wrap=True)
    console.print()
    console.print(_latency_line(facts))
    for name, row in facts["limits"].items():
        value, limit = (amount(row[key], row["unit"]) for key in ("is", "limit"))
        console.print(f"{name}: {value}, limit {limit}")
    for line in int8_lines(facts.get("int8"), directory):
        console.print(line, soft_wrap=True)
    entropy = facts["alpha_mean_entropy"]
    console.print(f"alpha: mean entropy {entropy:.2f} (1: nothing decided, 0: everything)")
    seconds = facts["seconds"]
    spent = "  ".join(f"{stage} {value:.0f}" for stage, value in seconds.items())
    console.print(f"seconds: {spent}  (in all {sum(seconds.values()):.0f})")
    _show_verdict(facts, console)
    problems = (facts["verdict"] or {}).get("problems", ())
    deploy = "the network; see above before you use it" if problems else "deploy it"
    lines = [
        f"next:  {directory}/report.html                open it in a browser",
        f"       proxylessnas predict {directory} IMAGE...      classify images with it",
        f"       {directory}/{facts.get('int8', FLOAT)['file']:<26} {deploy}",
    ]
    for name, row in facts.get("baselines", {}).items():
        if "file" in row and row["test_accuracy"] >= facts["test_accuracy"]:
            lines.append(f"       {directory}/{row['file']:<26} {name}, as fast and as good")
    if facts["space"] != MODEL:
        lines.append(
            f"       proxylessnas derive {directory} --latencies ...   other latencies, same search"
        )
    console.print("\n" + "\n".join(lines), soft_wrap=True)


def _show_verdict(facts: dict[str, Any], console: Console) -> None:
    """The accuracy beside what it must be better than, class by class, and what is wrong."""
    verdict = facts["verdict"]
    if verdict is None:
        return
    for line in _accuracy_lines(facts, verdict):
        console.print(line, soft_wrap=True)
    if verdict["counts"]:
        console.print(_confusion_table(verdict["recall"], verdict["counts"]))
    for kind, lines in (("before you use it", "problems"), ("note", "remarks")):
        for line in verdict[lines]:
            console.print(f"{kind}: {line}", soft_wrap=True)


def _accuracy_lines(facts: dict[str, Any], verdict: dict[str, Any]) -> Iterator[str]:
    low, high = (100 * share for share in verdict["interval"])
    words = [f"by chance {100 * verdict['chance']:.1f} %"]
    if verdict["majority"] is not None:
        majority, name = 100 * verdict["majority"], verdict["majority_class"]
        words.append(f"always {name!r} {majority:.1f} %")
    if facts["training_accuracy"] is not None:
        words.append(f"on training images {100 * facts['training_accuracy']:.1f} %")
    yield (
        f"test accuracy: {100 * facts['test_accuracy']:.2f} % of {facts['test_images']:,} images "
        f"(95 %: {low:.1f} to {high:.1f}); {', '.join(words)}"
    )
    recalls = {n: share for n, share in verdict["recall"].items() if share is not None}
    if len(recalls) > MOST_PRINTED:
        worst = sorted(recalls, key=lambda name: recalls[name])[:5]
        shares = ", ".join(f"{name} {100 * recalls[name]:.0f} %" for name in worst)
        yield f"recall by class: least of {shares} (all in {CONFUSION})"


def _confusion_table(recall: Mapping[str, float | None], counts: list[list[int]]) -> Table:
    table = Table(title="Test images: a row a class, a column an answer", title_justify="left")
    table.box = None
    table.add_column("class")
    for name in recall:
        table.add_column(name, justify="right")
    table.add_column("recall", justify="right")
    for (name, share), row in zip(recall.items(), counts, strict=True):
        table.add_row(name, *map(str, row), "-" if share is None else f"{100 * share:.0f} %")
    return table


def _networks(facts: dict[str, Any]) -> Table:
    table = Table(title="Networks", title_justify="left", box=None)
    table.add_column("network")
    for column in ("test accuracy", "parameters", "MACs", "predicted ms", "measured ms"):
        table.add_column(column, justify="right")
    found = facts | {"measured_latency_ms": facts.get("found_ms", facts["measured_latency_ms"])}
    rows = {"found": found} | facts.get("baselines", {})
    for name, row in rows.items():
        accuracy = row["test_accuracy"]
        table.add_row(
            name,
            "-" if accuracy is None else f"{100 * accuracy:.2f} %",
            f"{row['parameters']:,}",
            f"{row['macs'] / 1e6:,.1f} M" if "macs" in row else "-",
            _ms(row.get("predicted_latency_ms")),
            _ms(row["measured_latency_ms"]),
        )
    for name in ("linear", "majority"):
        if f"{name}_accuracy" in facts:
            table.add_row(name, f"{100 * facts[f'{name}_accuracy']:.2f} %", *"----")
    return table


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _latency_line(facts: dict[str, Any]) -> str:
    measured, target = facts["measured_latency_ms"], facts["target_latency_ms"]
    text = f"latency: predicted {facts['predicted_latency_ms']:.3f} ms"
    if target is not None:
        text += f", target {target:.3f}"
    if measured is None:
        return f"{text}; not measured: {facts['not_measured']}"
    text += f", measured {measured:.3f}"
    if target is not None:
        text += f" ({100 * (measured / target - 1):+.1f} % of the target)"
    drift = 100 * (facts["canary_drift"] - 1)
    tails = {name: facts.get(f"latency_{name}_ms") for name in ("p95", "p99")}
    text += "".join(f", {name} {ms:.3f}" for name, ms in tails.items() if ms is not None)
    text += (
        f"; noise {facts['latency_noise_pct']:.1f} %, raw "
        f"{facts['measured_latency_raw_ms']:.3f} before the canary's drift of {drift:+.1f} %"
    )
    low, high = facts.get("latency_interval_ms") or (measured, measured)
    apart = 100 * (high / low - 1) >= 2 * DRIFTED_PCT
    if high > low and (facts.get("disturbance") or abs(drift) >= DRIFTED_PCT or apart):
        text += (
            f"; the machine was busy or drifted: by all measurements of this run between {low:.3f} "
            f"and {high:.3f} ms, where a later `proxylessnas measure` of the file should lie"
        )
    return text
