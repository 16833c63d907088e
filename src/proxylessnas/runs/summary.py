"""A finished run to facts (`summary.json`)."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from proxylessnas.architecture import Architecture
from proxylessnas.report.verdict import Figures, Rival, judge, paid
from proxylessnas.runs import narrowing
from proxylessnas.runs.any_model import ModelProblem
from proxylessnas.runs.sizes import FACTS as SIZES
from proxylessnas.session import STAGES
from proxylessnas.session.deploying import facts_of
from proxylessnas.session.finishing import CONFUSION
from proxylessnas.session.records import BASELINES
from proxylessnas.session.session import Session

SMALLEST_PHOTO = 64  # pixels: trained networks see nothing in smaller ones
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
    at_other_times = [records["derive"].get("measured_ms"), facts.get("found_ms")]
    at_other_times.append((in_int8 or {}).get("int8_ms"))
    facts["latency_interval_ms"] = widened(export.get("interval_ms"), at_other_times)
    return facts | {"verdict": _verdict(session, facts, records, candidates)}


def widened(
    interval: Sequence[float] | None, others: Iterable[float | None]
) -> tuple[float, float] | None:
    """An interval of a measurement, and what else was measured of the same network.

    A machine that others use differs more from minute to minute than within one measurement.
    """
    if interval is None:
        return None
    every = [*interval, *(ms for ms in others if ms is not None)]
    return min(every), max(every)


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
    rivals = {
        name: Rival(row["test_accuracy"], *row["alone"])
        for name, row in compared["baselines"].items()
        if "alone" in row
    }
    if rivals:
        common["paid"] = paid(rivals, facts["test_images"])
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
