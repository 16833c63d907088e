"""The stage `measure`: the latency table, measured here or brought from elsewhere."""

from __future__ import annotations

import dataclasses
from typing import Any

from proxylessnas.core.decode import Indices
from proxylessnas.core.supernet import Supernet
from proxylessnas.hardware.measure import measure_table
from proxylessnas.hardware.timing import disturbance
from proxylessnas.hardware.validate import sentence, validate
from proxylessnas.report.plot import points
from proxylessnas.session.costed import TABLE
from proxylessnas.session.session import Session

MOBILENET_V2_DEPTHS = (2, 3, 4, 3, 3, 1)


def measure(session: Session) -> None:
    """Every distinct candidate and a few whole networks, on the runtime."""
    brought = session.config.table is not None
    on = "the table that was given" if brought else session.config.runtime
    title = f"{len(session.trace.units)} distinct candidates on {on}"
    with session.records.stage("measure", title, session.callbacks) as facts:
        if not brought:
            _measure_table(session)
            facts["files"] = [TABLE]
        facts |= _range(session)
        if not brought:
            facts |= _quality(session)


def _measure_table(session: Session) -> None:
    """Rank 0 measures, and its table goes to the store of every rank."""

    def measured() -> str:
        with session.reporter.bar("measuring") as update:
            return measure_table(
                session.supernet,
                session.runtime,
                session.inputs,
                session.config.measure,
                seed=session.config.seed,
                progress=update,
                path=None if session.store.path is None else session.store.file(TABLE),
                force=session.force,
                traced=session.trace,
            ).to_json()

    session.store.write(TABLE, session.ranks.of_main(measured).encode())


def _range(session: Session) -> dict[str, Any]:
    """What networks of this space take, in milliseconds."""
    costs, largest = session.unlimited_costs, session.largest
    low, high = costs.range(session.supernet.mask)[costs.index("latency")]
    session.reporter.say(
        f"  networks of this space take {low:.3g} to {high:.3g} ms, the largest "
        f"{largest['latency']:.3g}"
    )
    facts = {"range_ms": [low, high], "largest_ms": largest["latency"]}
    like = mobilenet_v2_like(session.supernet)
    if like is not None:
        facts["mobilenet_v2_like_ms"] = ms = costs.cost_of("latency", like)
        session.reporter.say(f"  one like MobileNetV2 takes {ms:.4g} ms")
    return facts if costs.fit is None else {**facts, "fit": dataclasses.asdict(costs.fit)}


def mobilenet_v2_like(supernet: Supernet) -> Indices | None:
    """Kernel 3 and expansion 6 everywhere, at MobileNetV2's depths (2, 3, 4, 3, 3, 1)."""
    if supernet.space != "mobile" or not all("k3_e6" in c for c in supernet.candidates):
        return None
    choice, stage, inside = [], -1, 0
    for names in supernet.candidates:
        # A block without Zero begins a stage.
        stage, inside = (stage, inside + 1) if "zero" in names else (stage + 1, 1)
        deep = inside > MOBILENET_V2_DEPTHS[min(max(stage, 0), 5)]
        choice.append(names.index("zero" if deep else "k3_e6"))
    return tuple(choice)


def _quality(session: Session) -> dict[str, object]:
    """The table's error on networks that it has not seen, where there are any; and a warning."""
    table, costs = session.table, session.unlimited_costs
    assert table is not None
    if words := disturbance(table.entries.values()):
        session.reporter.say(f"  warning: while it was measured {words}")
    whole = [dataclasses.asdict(point) for point in points(costs, session.supernet, table)]
    facts: dict[str, object] = {"networks": whole, "disturbance": words}
    if not table.of_role("validation", space=costs.space):
        return facts
    report = validate(costs, session.supernet, table)
    validated = dataclasses.replace(table, validation=report)
    session.store.write(TABLE, validated.to_json().encode())
    session.reporter.say(f"  on {report['networks']} unseen networks: {sentence(report)}")
    return {**facts, "validation": report}
