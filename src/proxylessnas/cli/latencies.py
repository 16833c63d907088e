"""Networks' latencies as a table on the terminal: a row a network, a column a runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from proxylessnas.config import MeasureSettings
from proxylessnas.hardware.measure import NetworkResult
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.timing import disturbance
from proxylessnas.io.console import Reporter
from proxylessnas.report.latencies import NamedNetwork, default_runtime, measure_latencies


def show_latencies(
    networks: Sequence[NamedNetwork],
    runtimes: Sequence[str],
    settings: MeasureSettings,
    console: Console,
    reporter: Reporter,
    *,
    seed: int = 0,
) -> None:
    """Measure every network on every runtime and print a table.

    runtimes: by name, all made before anything is measured; without any, the networks' default.
    """
    names = list(runtimes) or [default_runtime(networks)]
    made = [make(name, threads=settings.threads) for name in names]
    results: dict[str, dict[str, NetworkResult]] = {}
    for runtime in made:
        with reporter.bar(f"measuring on {runtime.name}") as update:
            results[runtime.name] = measure_latencies(
                networks, runtime, settings, seed=seed, progress=update
            )
    console.print(_table(networks, results))
    lines = [in_words({**runtime.describe(), "batch": settings.batch}) for runtime in made]
    measured = [result.raw for column in results.values() for result in column.values()]
    if words := disturbance(measured):
        lines.append(f"meanwhile {words}: measure again when the machine is at rest")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def in_words(device: Mapping[str, object]) -> str:
    """The device that latencies belong to."""
    threads = device.get("threads")
    return (
        f"{device.get('runtime')} {device.get('version')}, {device.get('precision')}, {threads} "
        f"thread{'s' if threads != 1 else ''}, batch {device.get('batch')}, {device.get('device')}"
    )


def _table(
    networks: Sequence[NamedNetwork], results: Mapping[str, Mapping[str, NetworkResult]]
) -> Table:
    table = Table(box=None)
    table.add_column("network", no_wrap=True)
    for runtime in results:
        table.add_column(runtime, justify="right", no_wrap=True)
    for network in networks:
        cells = [column[network.name] for column in results.values()]
        table.add_row(network.name, *(f"{r.raw_ms:.3f} ms ±{r.noise_pct:.1f} %" for r in cells))
    return table
