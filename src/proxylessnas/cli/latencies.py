"""Latencies on the terminal: of networks, and how good a table of a space is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import nn

from proxylessnas.config import MeasureSettings
from proxylessnas.errors import ConfigError
from proxylessnas.hardware.measure import opened
from proxylessnas.hardware.plan import Measurable
from proxylessnas.hardware.precisions import compare_precisions
from proxylessnas.hardware.rounds import crowded
from proxylessnas.hardware.runtimes import Runtime, make
from proxylessnas.hardware.space_table import SpaceTable, noise
from proxylessnas.hardware.sustained import sustain
from proxylessnas.hardware.timing import Measurement, disturbance
from proxylessnas.hardware.whole_networks import NetworkResult
from proxylessnas.io.console import Reporter, output, say, table_of
from proxylessnas.report.latencies import NamedNetwork, measure_latencies
from proxylessnas.report.plot import plot, points
from proxylessnas.report.precisions import precision_table, verdicts
from proxylessnas.report.sustained import sustained_lines, sustained_table


@dataclass(frozen=True, kw_only=True)
class How:
    """How networks are measured.

    runtimes: by name. settings: one for every batch and number of threads. shapes: see
    `measure_networks`.
    """

    runtimes: Sequence[str]
    settings: Sequence[MeasureSettings]
    reporter: Reporter
    seed: int = 0
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def made(self, runtime: str, settings: MeasureSettings, precision: str | None) -> Runtime:
        """A runtime by its name, for these settings."""
        return make(runtime, threads=settings.threads, precision=precision)


def show_latencies(
    networks: Sequence[NamedNetwork], how: How, *, precision: str | None = None
) -> None:
    """A row a network, batch and number of threads, a column a runtime.

    precision: of all. All runtimes are made before anything is measured.
    """
    made = [(s, [how.made(n, s, precision) for n in how.runtimes]) for s in how.settings]
    table, results = table_of("network", how.runtimes), {}
    for settings, runtimes in made:
        columns: dict[str, dict[str, NetworkResult]] = {}
        for runtime in runtimes:
            with how.reporter.bar(f"measuring on {runtime.name}") as update:
                columns[runtime.name] = measure_latencies(
                    networks, runtime, settings, seed=how.seed, progress=update, shapes=how.shapes
                )
        for network in networks:
            cells = [column[network.name] for column in columns.values()]
            table.add_row(_row_name(network, settings, how), *map(_cell, cells))
        results[settings] = columns
    output().print(table)
    _say_files(networks, list(results.values()))
    for settings, runtimes in made:
        for runtime in runtimes:
            column = results[settings][runtime.name].values()
            kinds = {str(r.raw.environment["precision"]) for r in column}
            words = {"precision": " and ".join(sorted(kinds)), "batch": settings.batch}
            say(in_words({**runtime.describe(), **words}))
    measured = [r.raw for columns in results.values() for c in columns.values() for r in c.values()]
    _say_disturbance(measured)


def _say_disturbance(measured: Iterable[Measurement]) -> None:
    if words := disturbance(measured):
        say(f"meanwhile {words}: measure again when the machine is at rest")


def _row_name(network: NamedNetwork, settings: MeasureSettings, how: How) -> str:
    words = [network.name]
    if len({s.batch for s in how.settings}) > 1:
        words.append(f"batch {settings.batch}")
    if len({s.threads for s in how.settings}) > 1:
        words.append(f"{settings.threads} thread{'s' * (settings.threads > 1)}")
    return ", ".join(words)


def _cell(result: NetworkResult) -> str:
    tails = result.raw.tail_words
    return f"{result.raw_ms:.3f} ms ±{result.noise_pct:.1f} %" + (f" ({tails})" if tails else "")


def _say_files(
    networks: Sequence[NamedNetwork], results: Sequence[Mapping[str, Mapping[str, NetworkResult]]]
) -> None:
    """What was measured of exported files."""
    for network in networks:
        columns = [column for of_settings in results for column in of_settings.values()]
        for file in dict.fromkeys(column[network.name].file for column in columns):
            if file:
                say(f"{network.name}: {file}")


def show_precisions(networks: Sequence[NamedNetwork], precisions: Sequence[str], how: How) -> None:
    """Every network in every precision, whole and block by block, and whether they pay."""
    pairs = itertools.product(how.settings, how.runtimes)
    made = [(s, {p: how.made(n, s, p) for p in precisions}) for s, n in pairs]
    for (settings, runtimes), network in itertools.product(made, networks):
        base = runtimes[precisions[0]]
        with how.reporter.bar(f"measuring {network.name} on {base.name}") as update:
            compared = compare_precisions(
                network.network,
                (noise((settings.batch, *network.input_shape)),),
                runtimes,
                settings,
                seed=how.seed,
                progress=update,
                shapes=how.shapes,
            )
        output().print(precision_table(network.name, compared))
        for line in verdicts(compared):
            say(line)
        kinds = {"precision": " and ".join(precisions), "batch": settings.batch}
        say(in_words({**base.describe(), **kinds}))
        _say_disturbance(m for row in compared for m in row.measured.values())


SUSTAINED_S = 300.0  # until small devices are warm


def show_sustained(
    networks: Sequence[NamedNetwork], seconds: float, precision: str | None, how: How
) -> None:
    """What networks take once the device is warm: a row a minute."""
    if len(how.runtimes) > 1 or len(how.settings) > 1:
        raise ConfigError("--sustained is on one runtime, at one batch and number of threads")
    (settings,) = how.settings
    if seconds < SUSTAINED_S:
        warm = f"a device slows down within minutes: --sustained {SUSTAINED_S / 60:.0f}m or more"
        how.reporter.say(f"{seconds:g} s are too short to tell what a warm device does ({warm})")
    runtime = how.made(how.runtimes[0], settings, precision)
    subjects = {
        n.name: Measurable(
            f"the network {n.name!r}",
            n.network,
            (noise((settings.batch, *n.input_shape)),),
            how.shapes if not isinstance(n.network, nn.Module) else {},
        )
        for n in networks
    }
    with (
        opened(runtime, subjects.items()) as sessions,
        how.reporter.bar(f"running on {runtime.name}") as update,
    ):
        measured = sustain(sessions, seconds, threads=settings.threads, progress=update)
    output().print(sustained_table(measured))
    for line in [*sustained_lines(measured), crowded(settings.threads)]:
        if line:
            say(line)
    say(in_words({**runtime.describe(), "batch": settings.batch}))


def in_words(device: Mapping[str, object]) -> str:
    """The device that latencies belong to."""
    threads = device.get("threads")
    return (
        f"{device.get('runtime')} {device.get('version')}, {device.get('precision')}, {threads} "
        f"thread{'s' if threads != 1 else ''}, batch {device.get('batch')}, {device.get('device')}"
    )


def show_table(measured: SpaceTable, out: Path, drawing: Path | None, took: str = "") -> None:
    """How good the table is; and its plot, where it is asked for."""
    table, supernet, report = measured.table, measured.supernet, measured.table.validation
    assert report is not None
    if drawing is not None:
        title = f"{table.device.get('runtime')} on {table.device.get('device')}"
        plot(points(measured.costs, supernet, table), title, drawing)
    say(
        f"{out}: {len(measured.keys)} distinct candidates and {len(measured.networks)} networks of "
        f"{supernet.space} at {table.device.get('input_shapes')}{took}"
    )
    say(in_words(table.device))
    low, high = measured.range_ms
    say(f"networks of this space take {low:.3g} to {high:.3g} ms")
    if report["networks"]:
        output().print(_figures(report))
        if report["noise_floor_pct"]:
            ratio = report["mean_abs_error_pct"] / report["noise_floor_pct"]
            say(f"the mean error is {ratio:.1f} times the noise floor")
    if words := measured.disturbance:
        say(f"meanwhile {words}: a table made on a machine at rest is better")


def _figures(report: Mapping[str, Any]) -> Table:
    """The validation's figures, beside what no model can beat and what any model should."""

    def cells(figures: Mapping[str, Any]) -> list[str]:
        errors = [f"{figures['mean_abs_error_pct']:.2f} %"]
        errors += [f"{figures[name]:+.2f} %" for name in ("bias_pct", "worst_pct")]
        ranks = [figures["spearman"], figures["kendall"]]
        return [*errors, *("-" if r is None else f"{r:.3f}" for r in ranks)]

    columns = ("mean error", "bias", "worst", "Spearman", "Kendall")
    table = table_of(f"{report['networks']} unseen networks", columns)
    table.add_row("this table", *cells(report))
    if report["noise_floor_pct"] is not None:
        table.add_row("measured again", f"{report['noise_floor_pct']:.2f} %", *"----")
    table.add_row("MACs alone", *cells(report["macs_only"]))
    return table
