"""Networks' latencies as a table on the terminal: a row a network, a column a runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proxylessnas.config import MeasureSettings
from proxylessnas.hardware.measure import NetworkResult
from proxylessnas.hardware.precisions import compare_precisions
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.space_table import noise
from proxylessnas.hardware.timing import disturbance
from proxylessnas.io.console import Reporter, output, say, table_of
from proxylessnas.report.latencies import NamedNetwork, default_runtime, measure_latencies
from proxylessnas.report.precisions import precision_table, verdicts


def show_latencies(
    networks: Sequence[NamedNetwork],
    runtimes: Sequence[str],
    settings: MeasureSettings,
    reporter: Reporter,
    *,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    precision: str | None = None,
) -> None:
    """Measure every network on every runtime and print a table.

    runtimes: by name, all made before anything is measured; without any, the networks' default.
    precision: of all.
    """
    names = list(runtimes) or [default_runtime(networks)]
    made = [make(name, threads=settings.threads, precision=precision) for name in names]
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


def show_precisions(
    networks: Sequence[NamedNetwork],
    runtimes: Sequence[str],
    precisions: Sequence[str],
    settings: MeasureSettings,
    reporter: Reporter,
    *,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Every network in every precision, whole and block by block, and whether they pay."""
    names = list(runtimes) or [default_runtime(networks)]
    made = [
        {p: make(name, threads=settings.threads, precision=p) for p in precisions} for name in names
    ]
    for of_precision in made:
        base = of_precision[precisions[0]]
        for network in networks:
            with reporter.bar(f"measuring {network.name} on {base.name}") as update:
                compared = compare_precisions(
                    network.network,
                    (noise((settings.batch, *network.input_shape)),),
                    of_precision,
                    settings,
                    seed=seed,
                    progress=update,
                    shapes=shapes,
                )
            output().print(precision_table(network.name, compared))
            for line in verdicts(compared):
                say(line)
            kinds = {"precision": " and ".join(precisions), "batch": settings.batch}
            say(in_words({**base.describe(), **kinds}))
            if words := disturbance(m for row in compared for m in row.measured.values()):
                say(f"meanwhile {words}: measure again when the machine is at rest")


def in_words(device: Mapping[str, object]) -> str:
    """The device that latencies belong to."""
    threads = device.get("threads")
    return (
        f"{device.get('runtime')} {device.get('version')}, {device.get('precision')}, {threads} "
        f"thread{'s' if threads != 1 else ''}, batch {device.get('batch')}, {device.get('device')}"
    )
