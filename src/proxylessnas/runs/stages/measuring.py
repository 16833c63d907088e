"""The stage `measure`: the latency table, measured here or brought from elsewhere."""

from __future__ import annotations

import dataclasses

from proxylessnas.core.decode import Indices
from proxylessnas.core.supernet import Supernet
from proxylessnas.hardware.measure import measure_table
from proxylessnas.hardware.timing import disturbance
from proxylessnas.hardware.validate import sentence, validate
from proxylessnas.runs.run import Run

MOBILENET_V2_DEPTHS = (2, 3, 4, 3, 3, 1)


def measure(run: Run) -> None:
    """Every distinct candidate and a few whole networks, on the runtime."""
    on = run.config.runtime if run.device_is_here else run.config.table
    count = len(run.trace.units)
    with run.stage("measure", f"{count} distinct candidates on {on}") as facts:
        if run.device_is_here:
            _measure_table(run)
            facts["files"] = ["latency_table.json"]
        costs, largest = run.all_costs, run.largest_costs["latency"]
        low, high = costs.range(run.supernet.mask)[costs.index("latency")]
        run.reporter.say(
            f"  networks of this space take {low:.3g} to {high:.3g} ms, the largest {largest:.3g}"
        )
        facts |= {"range_ms": [low, high], "largest_ms": largest}
        like = mobilenet_v2_like(run.supernet)
        if like is not None:
            facts["mobilenet_v2_like_ms"] = like_ms = costs.cost_of("latency", like)
            run.reporter.say(f"  one like MobileNetV2 takes {like_ms:.4g} ms")
        if costs.fit is not None:
            facts["fit"] = dataclasses.asdict(costs.fit)
        if run.device_is_here:
            facts |= _how_well(run)


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


def _how_well(run: Run) -> dict[str, object]:
    """The table's error on networks it has not seen, where there are any; and a warning."""
    table, costs = run.table(), run.all_costs
    if words := disturbance(table.entries.values()):
        run.reporter.say(f"  warning: while it was measured {words}")
    if not table.of_role("validation", space=costs.space):
        return {}
    report = validate(costs, run.supernet, table)
    dataclasses.replace(table, validation=report).save(run.directory.file("latency_table.json"))
    run.reporter.say(f"  on {report['networks']} unseen networks: {sentence(report)}")
    return {"validation": report}


def _measure_table(run: Run) -> None:
    with run.reporter.bar("measuring") as update:
        measure_table(
            run.supernet,
            run.runtime,
            run.example(),
            run.config.measure,
            seed=run.config.seed,
            progress=update,
            path=run.directory.file("latency_table.json"),
            force=run.force,
        )
