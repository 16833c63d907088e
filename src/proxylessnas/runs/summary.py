"""A finished run to facts (`summary.json`), and facts to the table a person reads."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from proxylessnas.architecture import Architecture
from proxylessnas.core.costs import amount
from proxylessnas.hardware.timing import DRIFTED_PCT
from proxylessnas.report.precisions import int8_lines
from proxylessnas.report.verdict import Figures, judge, paid
from proxylessnas.runs import narrowing
from proxylessnas.runs.any_model import ModelProblem
from proxylessnas.runs.defaults import MODEL
from proxylessnas.runs.sizes import FACTS as SIZES
from proxylessnas.session import STAGES
from proxylessnas.session.deploying import facts_of
from proxylessnas.session.finishing import CONFUSION
from proxylessnas.session.records import BASELINES
from proxylessnas.session.session import Session

SMALLEST_PHOTO = 64  # pixels: trained networks see nothing in smaller ones
FLOAT = {"file": "model.onnx"}
MOST_PRINTED = 12  # classes whose confusion is printed
PACKAGES = ("proxylessnas", "torch", "torchvision", "onnxruntime", "onnx", "numpy", "scipy")


def summarise(session: Session) -> dict[str, Any]:
    """All figures of a finished run."""
    records = {stage: session.records.require(stage) for stage in STAGES}
    export, search = records["export"], records["search"]
    of_model = isinstance(session.problem, ModelProblem)
    space = narrowing.space_facts(session) if of_model else _space_facts(session)
    candidates = space.pop("candidates")
    facts: dict[str, Any] = {
        "data": session.config.data,
        "space": session.config.space,
        **space,
        "measured_latency_ms": export["measured_ms"],
        "not_measured": session.not_local,
        "measured_latency_raw_ms": export["measured_raw_ms"],
        "canary_drift": export["canary_drift"],
        "latency_noise_pct": export["noise_pct"],
        "latency_interval_ms": export.get("interval_ms"),
        "latency_p95_ms": export.get("p95_ms"),
        "latency_p99_ms": export.get("p99_ms"),
        "disturbance": export.get("disturbance", ""),
        "test_accuracy": records["evaluate"]["accuracy"],
        "test_images": records["evaluate"]["examples"],
        "training_accuracy": records["evaluate"]["training_accuracy"],
        "alpha_mean_entropy": search["entropy"],
        "export_largest_difference": export["largest_difference"],
        "seconds": {stage: record["seconds"] for stage, record in records.items()},
        "seed": session.config.seed,
        "versions": versions(),
    }
    if (in_int8 := facts_of(records)) is not None:
        facts["int8"] = in_int8
    if session.config.is_specialised:
        facts |= _specialised(session, facts)
    elif session.config.baselines:
        facts["baselines"] = {name: _baseline(session, name, export) for name in BASELINES}
        for name in BASELINES:
            for stage in (f"train-{name}", f"evaluate-{name}"):
                facts["seconds"][stage] = session.records.require(stage)["seconds"]
    return facts | {"verdict": _verdict(session, facts, records, candidates)}


def _space_facts(session: Session) -> dict[str, Any]:
    """The limits of a space, and where the network is in it."""
    architecture, costs = session.load_architecture("architecture.json"), session.unlimited_costs
    indices = session.supernet.indices(architecture)
    return {
        "runtime": _device(session),
        "target_latency_ms": session.target_ms,
        "predicted_latency_ms": costs.cost_of("latency", indices),
        "parameters": round(costs.cost_of("parameters", indices)),
        "macs": round(costs.cost_of("macs", indices)),
        "limits": _other_limits(session, indices),
        "largest_network_ms": session.largest["latency"],
        "blocks": _blocks(session, architecture, indices),
        "candidates": session.supernet.mask.shape[1],
    }


def _verdict(
    session: Session,
    facts: Mapping[str, Any],
    records: Mapping[str, Mapping[str, Any]],
    candidates: int,
) -> dict[str, Any] | None:
    """What the figures mean (`report.verdict`); None where there is no accuracy."""
    config, info, evaluation = session.config, session.problem.input(), records["evaluate"]
    if evaluation["accuracy"] is None or info is None:
        return None
    # A prior from trained weights, or scores alone, decided: there was nothing for α to find.
    searched = not config.is_specialised and config.search.estimator != "random"
    figures = Figures(
        accuracy=evaluation["accuracy"],
        loss=math.nan if evaluation["loss"] is None else evaluation["loss"],
        examples=evaluation["examples"],
        classes=info.classes,
        counts=_confusion(session),
        training_accuracy=evaluation["training_accuracy"],
        epochs=config.train.epochs,
        pretrained=config.is_specialised,
        could_be=info.shape[0] == 3 and min(info.shape[1:]) >= SMALLEST_PHOTO,
        candidates=candidates,
        architecture_steps=records["search"]["architecture_steps"],
        entropy=facts["alpha_mean_entropy"] if searched else None,
        straightness=records["search"]["straightness"] if searched else None,
        directory=str(session.store.path),
    )
    counts = figures.counts if len(figures.counts) <= MOST_PRINTED else ()
    return {**asdict(judge(figures)), "counts": counts}


def _confusion(session: Session) -> list[list[int]]:
    """Images of the test part by [true class][answer]; empty where they were not counted."""
    if not session.store.has(CONFUSION):
        return []
    counts: list[list[int]] = session.store.read_json(CONFUSION)["counts"]
    return counts


def _specialised(session: Session, facts: dict[str, Any]) -> dict[str, Any]:
    """What a run with trained weights says beside all runs."""
    stages = ["teach", "candidates", *(["by-hand"] if session.config.baselines else [])]
    records = {stage: session.records.require(stage) for stage in stages}
    facts["seconds"] |= {stage: record["seconds"] for stage, record in records.items()}
    common: dict[str, Any] = {"pretrained": session.config.teacher_name}
    if session.store.has(SIZES):
        common["sizes"] = session.store.read_json(SIZES)["tried"]
    if "by-hand" not in records:
        return common
    compared = records["by-hand"]
    rivals = {n: row["test_accuracy"] for n, row in compared["baselines"].items() if n != "teacher"}
    if rivals:
        common["paid"] = paid(facts["test_accuracy"], rivals, facts["test_images"])
    return common | {
        "majority_accuracy": compared["majority_accuracy"],
        "linear_accuracy": compared["linear_accuracy"],
        "teacher_accuracy": compared["baselines"]["teacher"]["test_accuracy"],
        "baselines": compared["baselines"],
        "found_ms": compared["found_ms"],  # measured in the same rounds as the baselines
    }


def _device(session: Session) -> str | dict[str, Any]:
    """The table that was brought, or the device that was measured."""
    table = session.table
    if session.config.table is not None or table is None:
        return session.config.table or ""
    return dict(table.device)


def _other_limits(session: Session, indices: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """What the network costs where there is a limit; of latency there are figures of its own."""
    costs = session.costs
    return {
        name: {"limit": limit, "is": costs.cost_of(name, indices), "unit": unit}
        for name, unit in zip(costs.names, costs.units, strict=True)
        if name != "latency" and (limit := costs.finite_limits.get(name)) is not None
    }


def _blocks(
    session: Session, architecture: Architecture, indices: tuple[int, ...]
) -> list[dict[str, Any]]:
    costs, k = session.unlimited_costs, session.unlimited_costs.index("latency")
    milliseconds = costs.per_candidate[k].tolist()
    return [
        {"name": name, "choice": choice, "ms": milliseconds[m][indices[m]]}
        for m, (name, choice) in enumerate(architecture.choices.items())
    ] + [{"name": "everything else", "choice": "", "ms": float(costs.fixed[k])}]


def _baseline(session: Session, name: str, export: dict[str, Any]) -> dict[str, Any]:
    architecture = session.load_architecture(f"architecture-{name}.json")
    indices = session.supernet.indices(architecture)
    return {
        "test_accuracy": session.records.require(f"evaluate-{name}")["accuracy"],
        "predicted_latency_ms": session.costs.cost_of("latency", indices),
        "measured_latency_ms": export["baselines_ms"].get(name),
        "parameters": round(session.unlimited_costs.cost_of("parameters", indices)),
        "macs": round(session.unlimited_costs.cost_of("macs", indices)),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["torch"] = torch.__version__
    return found


# --- for people ---


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
        console.print(facts["paid"], highlight=False, soft_wrap=True)
    console.print()
    console.print(_latency_line(facts), highlight=False)
    for name, row in facts["limits"].items():
        value, limit = (amount(row[key], row["unit"]) for key in ("is", "limit"))
        console.print(f"{name}: {value}, limit {limit}", highlight=False)
    for line in int8_lines(facts.get("int8"), directory):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    entropy = facts["alpha_mean_entropy"]
    console.print(
        f"alpha: mean entropy {entropy:.2f} (1: nothing decided, 0: everything)", highlight=False
    )
    seconds = facts["seconds"]
    spent = "  ".join(f"{stage} {value:.0f}" for stage, value in seconds.items())
    console.print(f"seconds: {spent}  (in all {sum(seconds.values()):.0f})", highlight=False)
    _show_verdict(facts, console)
    problems = (facts["verdict"] or {}).get("problems", ())
    deploy = "the network; see above before you use it" if problems else "deploy it"
    lines = [
        f"next:  {directory}/report.html                open it in a browser",
        f"       proxylessnas predict {directory} IMAGE...      classify images with it",
        f"       {directory}/{facts.get('int8', FLOAT)['file']:<26} {deploy}",
    ]
    if facts["space"] != MODEL:
        lines.append(
            f"       proxylessnas derive {directory} --latencies ...   other latencies, same search"
        )
    console.print("\n" + "\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _show_verdict(facts: dict[str, Any], console: Console) -> None:
    """The accuracy beside what it must be better than, class by class, and what is wrong."""
    verdict = facts["verdict"]
    if verdict is None:
        return
    for line in _accuracy_lines(facts, verdict):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if verdict["counts"]:
        console.print(_confusion_table(verdict["recall"], verdict["counts"]))
    for kind, lines in (("before you use it", "problems"), ("note", "remarks")):
        for line in verdict[lines]:
            console.print(f"{kind}: {line}", highlight=False, markup=False, soft_wrap=True)


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
    disturbed = facts.get("disturbance") or abs(drift) >= DRIFTED_PCT
    if disturbed and facts.get("latency_interval_ms"):
        low, high = facts["latency_interval_ms"]
        text += (
            f"; the machine was busy or drifted: between {low:.3f} and {high:.3f} ms on one at "
            "rest, as `proxylessnas measure` of the file tells"
        )
    return text
