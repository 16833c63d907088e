"""The verb `measure` where it is no stage of a run: a device's table, kits, networks now.

Which form a command is follows from its options; what a form does not use is refused.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from proxylessnas.cli.latencies import DEFAULT, in_words, is_network, show_latencies, subject
from proxylessnas.config import MeasureSettings, from_namespace
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import ConfigError, MeasurementError
from proxylessnas.hardware.costs import latency_costs
from proxylessnas.hardware.kit import export_kit, import_kit
from proxylessnas.hardware.measure import measure_table
from proxylessnas.hardware.runtimes import make, split
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.timing import disturbance
from proxylessnas.hardware.trace import trace
from proxylessnas.hardware.validate import validate
from proxylessnas.io.console import Reporter, duration, output
from proxylessnas.report.plot import check_plot, plot, points
from proxylessnas.seeds import derive_seed
from proxylessnas.spaces import build_supernet

Values = Mapping[str, Any]
SPACE = ("space", "space_settings", "image_size", "seed", "measure", "runtime")
# Whole networks to fit and to validate, unless it is said: a kit carries each as a file.
HERE = {"networks": 20, "validation": 20}
IN_A_KIT = {"networks": 10, "validation": 10}


@dataclass(frozen=True)
class Form:
    """words: what it is. options, settings: what it takes. act: what it does."""

    words: str
    options: tuple[str, ...]
    settings: tuple[str, ...]
    act: Callable[[Values, Values, Reporter], None]


def form_of(own: Values, given: Values) -> Callable[[], None] | None:
    """What a command asks for; None where it is the stage of a run.

    own: the verb's own options. given: the settings that were given, nested.

    Raises:
        ConfigError: the options do not go together, or ask for nothing.
    """
    words = own["directory"] or []
    if own["import_kit"]:
        form = IMPORT
    elif own["export_kit"]:
        form = EXPORT
    elif own["merge"]:
        form = MERGE
    elif any(map(is_network, words)):
        form = NETWORKS
    elif not words and str(own["out"] or "").endswith(".json"):
        form = TABLE
    else:
        _check_run(own, given, words)
        return None
    taken = {*form.options, *form.settings, "quiet"}
    refused = [
        *(k for k, v in own.items() if v and k not in taken),
        *(k for k in given if k not in taken),
    ]
    for name in refused:
        what = f"the argument {words[0]!r}" if name == "directory" else _option(name)
        raise ConfigError(f"{what} has no meaning with {form.words}: leave it out")

    def act() -> None:
        reporter = Reporter(quiet=bool(own["quiet"]))
        with reporter.warnings_as_lines():
            form.act(own, given, reporter)

    return act


def _check_run(own: Values, given: Values, words: list[str]) -> None:
    """A run's stage takes one directory, and none of this verb's own options but --force."""
    if len(words) > 1:
        raise ConfigError(f"a run has one directory; {len(words)} are given: {', '.join(words)}")
    if own["plot"]:
        raise ConfigError("--plot goes with a table of its own: --out table.json")
    if given.get("data"):
        return
    if words and not Path(words[0]).is_dir():
        subject(words[0])  # says what it could have been
    if not words and not own["out"]:
        raise ConfigError(
            "nothing to measure is named: --out table.json for the table of --space, a network "
            "(architecture.json, .onnx, .tflite, a zoo name), or --data for a run"
        )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# --- a table ---


def _measure_table(own: Values, given: Values, reporter: Reporter) -> None:
    out, drawn = _writable(own["out"]), _drawable(own["plot"])
    settings = from_namespace(MeasureSettings, {**HERE, **given.get("measure", {})})
    runtime = make(given.get("runtime", DEFAULT), threads=settings.threads)
    supernet, inputs = _supernet(given, settings.batch)
    start = time.monotonic()
    with reporter.bar("measuring") as update:
        table = measure_table(
            supernet,
            runtime,
            inputs,
            settings,
            seed=given.get("seed", 0),
            progress=update,
            path=out,
            force=bool(own["force"]),
        )
    _finish(supernet, inputs, table, out, drawn, f" in {duration(time.monotonic() - start)}")


def _finish(
    supernet: Supernet,
    inputs: tuple[Tensor, ...],
    table: LatencyTable,
    out: Path,
    drawn: Path | None,
    took: str = "",
) -> None:
    """Validate the table, write it, and say how good it is."""
    found = trace(supernet, inputs)
    costs = latency_costs(supernet, found, table)
    report = validate(costs, supernet, table)
    replace(table, validation=report).save(out)
    if drawn is not None:
        title = f"{table.device.get('runtime')} on {table.device.get('device')}"
        plot(points(costs, supernet, table), title, drawn)
    console, device = output(), table.device

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(
        f"{out}: {len(found.units)} distinct candidates and "
        f"{len(table.of_role('fit', 'canary', 'validation', space=costs.space))} networks of "
        f"{supernet.space} at {device.get('input_shapes')}{took}"
    )
    say(in_words(device))
    low, high = costs.range(supernet.mask)[0]
    say(f"networks of this space take {low:.3g} to {high:.3g} ms")
    if report["networks"]:
        console.print(_figures(report))
        if report["noise_floor_pct"]:
            ratio = report["mean_abs_error_pct"] / report["noise_floor_pct"]
            say(f"the mean error is {ratio:.1f} times the noise floor")
    whole = [n.measurement for n in table.of_role("fit", "canary", "validation", space=costs.space)]
    if words := disturbance([*(table[key] for key in found.units), *whole]):
        say(f"meanwhile {words}: a table made on a machine at rest is better")


def _figures(report: Mapping[str, Any]) -> Table:
    """The validation's figures, beside what no model can beat and what any model should."""

    def cells(figures: Mapping[str, Any]) -> list[str]:
        percent = ("mean_abs_error_pct", "bias_pct", "worst_pct")
        errors = [f"{figures[n]:{'.2f' if n == percent[0] else '+.2f'}} %" for n in percent]
        ranks = [figures["spearman"], figures["kendall"]]
        return [*errors, *("-" if r is None else f"{r:.3f}" for r in ranks)]

    table = Table(box=None)
    table.add_column(f"{report['networks']} unseen networks", no_wrap=True)
    for column in ("mean error", "bias", "worst", "Spearman", "Kendall"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row("this table", *cells(report))
    if report["noise_floor_pct"] is not None:
        table.add_row("measured again", f"{report['noise_floor_pct']:.2f} %", *"----")
    table.add_row("MACs alone", *cells(report["macs_only"]))
    return table


def _supernet(given: Values, batch: int) -> tuple[Supernet, tuple[Tensor, ...]]:
    """The space's supernet, and noise of the shape that it is measured with."""
    settings = dict(given.get("space_settings", {}))
    size = given.get("image_size")
    if size is not None:
        if "input_shape" in settings:
            raise ConfigError("--image-size and the input_shape of --space-settings: give one")
        settings["input_shape"] = [3, size, size]
    torch.manual_seed(derive_seed(given.get("seed", 0), "weights"))
    supernet = build_supernet(given.get("space", "mobile"), settings)
    shape = supernet.settings.get("input_shape")
    if shape is None:
        raise ConfigError(f"the space {supernet.space} does not say its input: give --image-size")
    return supernet, (_noise((batch, *shape)),)


def _noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# --- kits, tables together, networks ---


def _export_kit(own: Values, given: Values, reporter: Reporter) -> None:
    path = _writable(own["export_kit"])
    settings = from_namespace(MeasureSettings, {**IN_A_KIT, **given.get("measure", {})})
    supernet, inputs = _supernet(given, settings.batch)
    seed, runtime = given.get("seed", 0), given.get("runtime", DEFAULT)
    with reporter.bar("exporting") as update:
        export_kit(supernet, inputs, settings, path, seed=seed, runtime=runtime, progress=update)
    output().print(
        f"{path}: {path.stat().st_size / 1e6:.0f} MB; on the device: python {path.name} --out "
        "results.json (README.txt in it says more)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _import_kit(own: Values, given: Values, reporter: Reporter) -> None:
    if not own["out"]:
        raise ConfigError("--import-kit needs --out table.json, where the table goes")
    out, drawn = _writable(own["out"]), _drawable(own["plot"])
    if out.exists() and not own["force"]:
        raise ConfigError(f"{out} exists: choose another --out, or --force to replace it")
    results = import_kit(own["import_kit"])
    table, space = results.table, results.space
    if not table.complete:
        raise MeasurementError(
            f"the results {own['import_kit']} are not complete: start the kit again beside them"
        )
    if ":" in space and given.get("space") != space:
        raise ConfigError(
            f"the kit is of {space}, code that a file names; to import it: --space {space}"
        )
    supernet = build_supernet(space, results.settings)
    inputs = tuple(_noise(shape) for shape in results.input_shapes)
    _finish(supernet, inputs, table, out, drawn)


def _merge(own: Values, given: Values, reporter: Reporter) -> None:
    if not own["out"]:
        raise ConfigError("--merge needs --out table.json, where the merged table goes")
    out, tables = _writable(own["out"]), [LatencyTable.load(path) for path in own["merge"]]
    if out.exists() and not own["force"]:
        raise ConfigError(f"{out} exists: choose another --out, or --force to replace it")
    merged = tables[0]
    for table in tables[1:]:
        merged = merged.merge(table)
    merged.save(out)
    output().print(
        f"{out}: {len(merged.entries)} candidates, {len(merged.networks)} networks", highlight=False
    )


def _networks(own: Values, given: Values, reporter: Reporter) -> None:
    allow = [given["space"]] if ":" in given.get("space", "") else []
    show_latencies(
        [subject(word, allow=allow) for word in own["directory"]],
        split(given.get("runtime", "")),
        from_namespace(MeasureSettings, given.get("measure", {})),
        output(),
        reporter,
        seed=given.get("seed", 0),
    )


def _writable(path: str) -> Path:
    """Refused now rather than after minutes of measuring.

    Raises:
        ConfigError: the file cannot be written there.
    """
    folder = Path(path).parent
    if not folder.is_dir():
        raise ConfigError(f"cannot write {path}: there is no directory {folder}")
    if Path(path).is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"cannot write {path}: it is a directory, or {folder} is read-only")
    return Path(path)


def _drawable(path: str | None) -> Path | None:
    if path is None:
        return None
    check_plot(path)
    return _writable(path)


TABLE = Form("--out table.json", ("out", "plot", "force", "resume"), SPACE, _measure_table)
EXPORT = Form("--export-kit", ("export_kit",), SPACE, _export_kit)
IMPORT = Form("--import-kit", ("import_kit", "out", "plot", "force"), ("space",), _import_kit)
MERGE = Form("--merge", ("merge", "out", "force"), (), _merge)
NETWORKS = Form("a network", ("directory",), ("space", "seed", "measure", "runtime"), _networks)
