"""A run directory's files, as they were read, to the facts of its report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxylessnas import zoo
from proxylessnas.architecture import Architecture
from proxylessnas.report.facts import (
    SEARCHES,
    Choice,
    Facts,
    Latency,
    Outcome,
    Peer,
    Row,
    Scored,
)
from proxylessnas.report.shapes import layers
from proxylessnas.report.verdict import wilson

ROAD = ("measure", "search", "derive", "train", "evaluate", "export")


@dataclass(frozen=True, kw_only=True)
class Records:
    """The files of a run directory. Mappings of files that are not there are empty.

    stages: the records by stage. metrics: the lines of metrics.jsonl.
    """

    directory: str
    settings: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    architecture: Architecture | None = None
    prices: Mapping[str, Any] = field(default_factory=dict)
    confusion: Mapping[str, Any] = field(default_factory=dict)
    mistakes: Sequence[Mapping[str, Any]] = ()
    table: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)


def facts_of(records: Records) -> Facts:
    """All facts of a run. Of damaged records it raises KeyError, TypeError, ValueError and such."""
    stages, summary = records.stages, records.summary
    measure, search = stages.get("measure", {}), stages.get("search", {})
    table, runtime = records.table, summary.get("runtime")
    pretrained = records.settings.get("pretrained") not in (None, "none")
    road = (("teach", "candidates") if pretrained else ()) + ROAD
    return Facts(
        name=records.directory.rstrip("/").rpartition("/")[2] or records.directory,
        directory=records.directory,
        settings=records.settings,
        missing=tuple(stage for stage in road if stage not in stages),
        seconds={name: float(record["seconds"]) for name, record in stages.items()},
        outcome=_outcome(records),
        latency=_latency(records),
        architecture=records.architecture,
        layers=() if records.architecture is None else tuple(layers(records.architecture)),
        choices=tuple(_choices(records)),
        moments=tuple(int(line["step"]) for line in _moments(records)),
        fixed=_fixed(records),
        curves=_curves(records.metrics),
        scored=tuple(_scored(records)),
        peers=tuple(_peers(records)),
        networks=measure.get("networks", ()),
        validation=measure.get("validation"),
        disturbance=measure.get("disturbance", ""),
        device=table.get("device") or (runtime if isinstance(runtime, Mapping) else {}),
        environments=table.get("environments", ()),
        entropy=search.get("entropy"),
        verdict=summary.get("verdict"),
        paid=summary.get("paid", ""),
        versions=summary.get("versions", {}),
    )


# --- the outcome ---


def _outcome(records: Records) -> Outcome | None:
    record = records.stages.get("evaluate")
    if record is None:
        return None
    counts = tuple(tuple(map(int, row)) for row in records.confusion.get("counts", ()))
    info = records.architecture.input if records.architecture is not None else None
    classes = records.confusion.get("classes", info.classes if info else ())
    accuracy, images = record["accuracy"], int(record["examples"])
    return Outcome(
        accuracy=accuracy,
        interval=wilson(accuracy or 0.0, images),
        images=images,
        training_accuracy=record.get("training_accuracy"),
        rows=tuple(_rows(records, accuracy)),
        limit_ms=None if "by-hand" in records.stages else _latency(records).target,
        classes=tuple(classes),
        counts=counts,
        mistakes=tuple(records.mistakes),
    )


def _rows(records: Records, accuracy: float | None) -> Iterator[Row]:
    """The network that was found, and what it is compared with, by name."""
    export, by_hand = records.stages.get("export", {}), records.stages.get("by-hand", {})
    predicted = records.stages.get("derive", {}).get("predicted", {})
    yield Row(
        name="found",
        accuracy=accuracy,
        ms=by_hand.get("found_ms") or export.get("measured_ms"),
        parameters=_whole(predicted.get("parameters", records.summary.get("parameters"))),
        macs=predicted.get("macs", records.summary.get("macs")),
    )
    rows = by_hand.get("baselines") or records.summary.get("baselines", {})
    for name, row in rows.items():
        yield Row(
            name=name.replace("_", " "),
            accuracy=row["test_accuracy"],
            ms=row["measured_latency_ms"],
            parameters=_whole(row.get("parameters")),
            macs=row.get("macs"),
        )
    for name in ("linear", "majority"):
        if f"{name}_accuracy" in by_hand:
            yield Row(name=name, accuracy=by_hand[f"{name}_accuracy"], ms=None)


def _latency(records: Records) -> Latency:
    export, derive = records.stages.get("export", {}), records.stages.get("derive", {})
    summary = records.summary
    measured = export.get("measured_ms")
    done = measured is not None
    drift = export.get("canary_drift")
    return Latency(
        target=summary.get("target_latency_ms", derive.get("target_ms")),
        # The table's, before measurements of the last candidates corrected it.
        predicted=summary.get("predicted_latency_ms", derive.get("predicted", {}).get("latency")),
        measured=measured if done else derive.get("measured_ms"),
        noise_pct=export.get("noise_pct") if done else derive.get("noise_pct"),
        drift_pct=None if drift is None else 100 * (drift - 1),
        why_not=summary.get("not_measured", ""),
        file=(summary.get("int8") or {}).get("file", Latency.file),
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


# --- the search ---


def _choices(records: Records) -> Iterator[Choice]:
    prices, architecture = records.prices, records.architecture
    if not prices:
        yield from _blocks(records)
        return
    chosen = {} if architecture is None else architecture.choices
    moments = _moments(records)
    for index, (name, row) in enumerate(prices.get("choices", {}).items()):
        yield Choice(
            name=name,
            chosen=chosen.get(name, ""),
            candidates=tuple(row["candidates"]),
            probabilities=tuple(map(float, row["probabilities"])),
            costs={cost: tuple(map(float, row[cost])) for cost in prices["costs"]},
            history=tuple(tuple(line["probabilities"][index]) for line in moments),
        )


def _blocks(records: Records) -> Iterator[Choice]:
    """Of a road that keeps no prices: what was chosen, and what that costs."""
    for block in records.summary.get("blocks", ()):
        if block["choice"]:
            costs = {"latency": (float(block["ms"]),)}
            candidates = (block["choice"],)
            yield Choice(
                name=block["name"],
                chosen=block["choice"],
                candidates=candidates,
                probabilities=(),
                costs=costs,
            )


def _fixed(records: Records) -> Mapping[str, float]:
    """The costs that all networks share."""
    rest = [b["ms"] for b in records.summary.get("blocks", ()) if not b["choice"]]
    fixed: Mapping[str, float] = records.prices.get("fixed", {"latency": rest[0]} if rest else {})
    return fixed


def _moments(records: Records) -> list[Mapping[str, Any]]:
    """The lines that hold probabilities, of the search alone."""
    return [
        line
        for line in records.metrics
        if line.get("stage") in SEARCHES and "probabilities" in line
    ]


def _curves(
    metrics: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Every number that was logged, by stage and by name."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in metrics:
        stage = curves.setdefault(str(line["stage"]), {})
        for name, value in line.items():
            if name in ("stage", "step", "probabilities"):
                continue
            values = value if isinstance(value, list) else [value]
            for k, number in enumerate(values):
                key = name if not isinstance(value, list) else f"{name} {k}"
                if isinstance(number, int | float) and math.isfinite(number):
                    points, step = stage.setdefault(key, []), float(line["step"])
                    while points and points[-1][0] >= step:
                        points.pop()  # a training that was begun anew replaces the one before
                    points.append((step, float(number)))
    return curves


def _scored(records: Records) -> Iterator[Scored]:
    """Of this derivation and of those for other limits."""
    for stage, record in records.stages.items():
        if stage != "derive" and not stage.startswith("derive-"):
            continue
        for index, proposal in enumerate(record.get("proposals", ())):
            yield Scored(
                of=stage.removeprefix("derive").lstrip("-") or "the run's limit",
                predicted_ms=proposal["predicted"].get("latency"),
                measured_ms=proposal["measured_ms"],
                score=proposal["score"],
                chosen=index == _chosen(record),
            )


def _chosen(record: Mapping[str, Any]) -> int:
    """Which of a record's proposals was taken: of its log probability and its costs."""
    for index, proposal in enumerate(record["proposals"]):
        if proposal["log_p"] == record["log_p"] and proposal["score"] == record["score"]:
            return index
    return -1


def _peers(records: Records) -> Iterator[Peer]:
    """What the networks of the zoo chose, at this table's prices and this space's widths."""
    prices, own = records.prices, records.architecture
    if own is None or "latency" not in prices.get("costs", ()):
        return
    for name in zoo.NETWORKS:
        peer = zoo.load(name)
        if peer.space != own.space or set(peer.choices) != set(prices["choices"]):
            continue
        rows = [(prices["choices"][choice], c) for choice, c in peer.choices.items()]
        if all(c in row["candidates"] for row, c in rows):
            paid = [float(row["latency"][row["candidates"].index(c)]) for row, c in rows]
            yield Peer(name=name, predicted_ms=float(prices["fixed"]["latency"]) + sum(paid))
