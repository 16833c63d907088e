"""Networks' latencies as a table on the terminal: a row a network, a column a runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proxylessnas.config import MeasureSettings
from proxylessnas.hardware.measure import NetworkResult
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.timing import disturbance
from proxylessnas.io.console import Reporter, output, say, table_of
from proxylessnas.report.latencies import NamedNetwork, default_runtime, measure_latencies


def show_latencies(
    networks: Sequence[NamedNetwork],
    runtimes: Sequence[str],
    settings: MeasureSettings,
    reporter: Reporter,
    *,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
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
                networks, runtime, settings, seed=seed, progress=update, shapes=shapes
            )
    table = table_of("network", results)
    for network in networks:
        cells = [column[network.name] for column in results.values()]
        table.add_row(network.name, *(f"{r.raw_ms:.3f} ms ±{r.noise_pct:.1f} %" for r in cells))
    output().print(table)
    for network in networks:
        for file in {column[network.name].file for column in results.values()} - {""}:
            say(f"{network.name}: {file}")
    for runtime in made:
        kinds = {str(r.raw.environment["precision"]) for r in results[runtime.name].values()}
        precision = " and ".join(sorted(kinds))
        say(in_words({**runtime.describe(), "precision": precision, "batch": settings.batch}))
    measured = [result.raw for column in results.values() for result in column.values()]
    if words := disturbance(measured):
        say(f"meanwhile {words}: measure again when the machine is at rest")


def in_words(device: Mapping[str, object]) -> str:
    """The device that latencies belong to."""
    threads = device.get("threads")
    return (
        f"{device.get('runtime')} {device.get('version')}, {device.get('precision')}, {threads} "
        f"thread{'s' if threads != 1 else ''}, batch {device.get('batch')}, {device.get('device')}"
    )
