"""Minutes of continuous inference, as a table and a few lines."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from proxylessnas.hardware.sustained import Sustained
from proxylessnas.io.console import table_of

DRIFTED = 3.0  # % that a network may be slower in the end


def sustained_table(measured: Sustained) -> Table:
    """A row a step: every network's median and 95th percentile, and the clock."""
    names = list(measured.steps[0].median_ms)
    table = table_of("after", [*(f"{name} ms (p95)" for name in names), "MHz"])
    for step in measured.steps:
        cells = [f"{step.median_ms[n]:.3f} ({step.p95_ms[n]:.3f})" for n in names]
        mhz = step.clocks.mhz
        table.add_row(f"{step.seconds:.0f} s", *cells, "-" if mhz is None else f"{mhz:.0f}")
    return table


def sustained_lines(measured: Sustained) -> Iterator[str]:
    """Drift, ranking, and what the system tells of its clocks."""
    first, last = measured.steps[0], measured.steps[-1]
    for name in first.median_ms:
        drift = measured.drift_pct(name)
        mark = "warning: " if drift > DRIFTED else ""
        yield f"{mark}{name}: {drift:+.1f} % from the first step to the last"
    if len(first.median_ms) > 1:
        before, after = measured.ranking(0), measured.ranking(-1)
        if before == after:
            yield "the ranking of the networks is the same in the end"
        else:
            yield f"warning: the ranking changed from {', '.join(before)} to {', '.join(after)}"
    if first.clocks.mhz and last.clocks.mhz:
        yield f"clock: {first.clocks.mhz:.0f} MHz at first, {last.clocks.mhz:.0f} in the end"
    yield f"governor: {last.clocks.governor or 'the system does not tell'}"
    events = measured.throttled
    told = "the system does not tell" if events is None else f"{events} events"
    yield f"throttling: {told}"
