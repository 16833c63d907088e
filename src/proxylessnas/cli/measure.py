"""The verb `measure` where it is no stage of a run: a device's table, kits, networks now.

Which form a command is follows from its options; an option that a form does not use is refused.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from proxylessnas.cli.latencies import (
    How,
    show_latencies,
    show_precisions,
    show_sustained,
    show_table,
)
from proxylessnas.config import MeasureSettings, parse_minutes, parse_precisions
from proxylessnas.errors import ConfigError
from proxylessnas.hardware.kit import export_kit
from proxylessnas.hardware.kit_results import import_kit
from proxylessnas.hardware.runtimes import DEFAULT, split
from proxylessnas.hardware.space_table import (
    KIT_SETTINGS,
    TABLE_SETTINGS,
    measure_space,
    space_table_of_kit,
    supernet_to_measure,
)
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.io.console import Reporter, duration, say
from proxylessnas.report.latencies import default_runtime, is_network, named_network
from proxylessnas.report.plot import check_plot

Values = Mapping[str, Any]
SPACE = ("space", "space_settings", "image_size", "seed", "measure", "runtime", "precision")


@dataclass(frozen=True)
class Form:
    """words: its name in messages. options, settings: those that it takes. act: its work."""

    words: str
    options: tuple[str, ...]
    settings: tuple[str, ...]
    act: Callable[[Values, Values, Reporter], None]


def form_of(options: Values, settings: Values) -> Callable[[], None] | None:
    """The work that a command asks for; None where it is the stage of a run.

    options: the verb's own. settings: those of the command line and its config, nested.

    Raises:
        ConfigError: the options do not go together, or ask for nothing.
    """
    words, several = options["directory"] or [], "," in (settings.get("precision") or "")
    if options["import_kit"]:
        form = IMPORT
    elif options["export_kit"]:
        form = EXPORT
    elif options["merge"]:
        form = MERGE
    elif words and any(is_network(word, runs=several) for word in words):
        form = NETWORKS
    elif not words and str(options["out"] or "").endswith(".json"):
        form = TABLE
    else:
        _check_run(options, settings, words)
        return None
    allowed = {*form.options, *form.settings, "quiet"}
    for name in [*(name for name, value in options.items() if value), *settings]:
        if name not in allowed:
            refused = f"the argument {words[0]!r}" if name == "directory" else _option(name)
            raise ConfigError(f"{refused} has no meaning with {form.words}: leave it out")

    def act() -> None:
        reporter = Reporter(quiet=bool(options["quiet"]))
        with reporter.warnings_as_lines():
            form.act(options, settings, reporter)

    return act


def _check_run(options: Values, settings: Values, words: list[str]) -> None:
    """A run's stage takes one directory, and none of this verb's own options but --force."""
    if len(words) > 1:
        raise ConfigError(f"a run has one directory; {len(words)} are given: {', '.join(words)}")
    for name in ("batch", "threads", "sustained"):
        if options[name]:
            raise ConfigError(
                f"--{name} is for networks: name one, or say --measure.{name}"
                if name != "sustained"
                else "--sustained is for networks: name one"
            )
    if options["shape"]:
        raise ConfigError("--shape is for .onnx and .tflite files: name the file")
    if options["plot"]:
        raise ConfigError("--plot goes with a table of its own: --out table.json")
    if settings.get("data"):
        return
    if words and not Path(words[0]).is_dir():
        named_network(words[0])  # its error says which networks there are
    if not words and not options["out"]:
        raise ConfigError(
            "nothing to measure is named: --out table.json for the table of --space, a network "
            "(architecture.json, .onnx, .tflite, a zoo name), or --data for a run"
        )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# --- the forms ---


def _measure_table(options: Values, settings: Values, reporter: Reporter) -> None:
    out, drawing = _writable(options["out"]), _drawable(options["plot"])
    start = time.monotonic()
    with reporter.bar("measuring") as update:
        measured = measure_space(
            settings.get("space", "mobile"),
            settings.get("space_settings"),
            image_size=settings.get("image_size"),
            runtime=settings.get("runtime", DEFAULT),
            precision=_precision(settings),
            settings=replace(TABLE_SETTINGS, **settings.get("measure", {})),
            seed=settings.get("seed", 0),
            path=out,
            force=bool(options["force"]),
            progress=update,
        )
    show_table(measured, out, drawing, f" in {duration(time.monotonic() - start)}")


def _export_kit(options: Values, settings: Values, reporter: Reporter) -> None:
    path = _writable(options["export_kit"])
    measure = replace(KIT_SETTINGS, **settings.get("measure", {}))
    seed, runtime = settings.get("seed", 0), settings.get("runtime", DEFAULT)
    supernet, inputs = supernet_to_measure(
        settings.get("space", "mobile"),
        settings.get("space_settings"),
        image_size=settings.get("image_size"),
        batch=measure.batch,
        seed=seed,
    )
    with reporter.bar("exporting") as update:
        export_kit(
            supernet,
            inputs,
            measure,
            path,
            seed=seed,
            runtime=runtime,
            precision=_precision(settings) or "f32",
            progress=update,
        )
    starts = "python {} --out results.json"
    if runtime == "tensorrt":
        starts = "unzip {} -d kit; sh kit/trtexec.sh > results.log (untested on a device)"
    size, words = path.stat().st_size / 1e6, starts.format(path.name)
    say(f"{path}: {size:.0f} MB; on the device: {words}; README.txt in it says more")


def _import_kit(options: Values, settings: Values, reporter: Reporter) -> None:
    out, drawing = _new_table("--import-kit", options), _drawable(options["plot"])
    results = import_kit(options["import_kit"])
    table = space_table_of_kit(results, space=settings.get("space"), path=out)
    show_table(table, out, drawing)


def _merge(options: Values, settings: Values, reporter: Reporter) -> None:
    out = _new_table("--merge", options)
    merged = reduce(LatencyTable.merge, map(LatencyTable.load, options["merge"]))
    merged.save(out)
    say(f"{out}: {len(merged.entries)} candidates, {len(merged.networks)} networks")


def _networks(options: Values, settings: Values, reporter: Reporter) -> None:
    allow = [settings["space"]] if settings.get("space") else []
    networks = [named_network(word, allow=allow) for word in options["directory"]]
    measure = MeasureSettings(**settings.get("measure", {}))
    how = How(
        runtimes=split(settings.get("runtime", "")) or [default_runtime(networks)],
        settings=[
            replace(measure, batch=batch, threads=threads)
            for batch in _counts(options, "batch", measure.batch)
            for threads in _counts(options, "threads", measure.threads)
        ],
        reporter=reporter,
        seed=settings.get("seed", 0),
        shapes=_shapes(options["shape"] or []),
    )
    precisions = parse_precisions(settings["precision"]) if settings.get("precision") else ()
    precision = precisions[0] if len(precisions) == 1 else None
    if options["sustained"] is not None:
        if len(precisions) > 1:
            raise ConfigError("--sustained is of one precision: give one, as --precision int8")
        show_sustained(
            networks, 60 * parse_minutes(options["sustained"], "--sustained"), precision, how
        )
    elif len(precisions) > 1:
        show_precisions(networks, precisions, how)
    else:
        show_latencies(networks, how, precision=precision)


def _counts(options: Values, name: str, usual: int) -> list[int]:
    """The numbers of `--batch 1,8,32`; without the option the usual one."""
    if options[name] is None:
        return [usual]
    words = options[name].split(",")
    if not all(re.fullmatch(r" *[1-9]\d{0,4} *", word) for word in words):
        raise ConfigError(f"--{name} {options[name]}: write numbers from 1 on, as --{name} 1,8")
    return list(dict.fromkeys(map(int, words)))


def _precision(settings: Values) -> str | None:
    """The one precision of a table or a kit."""
    precision: str | None = settings.get("precision")
    if precision is not None and "," in precision:
        raise ConfigError(
            f"--precision {precision}: a table is of one precision; several are for networks"
        )
    return precision


def _shapes(words: list[str]) -> dict[str, tuple[int, ...]]:
    """`images=1x3x224x224` as shapes of inputs by name."""
    shapes = {}
    for word in words:
        name, _, sizes = word.rpartition("=")
        if not name or not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})*", sizes):
            raise ConfigError(f"--shape {word}: write NAME=SIZES, as --shape images=1x3x224x224")
        if name in shapes:
            raise ConfigError(f"--shape {name} is given twice: leave one out")
        shapes[name] = tuple(map(int, sizes.split("x")))
    return shapes


# --- files, refused now rather than after minutes of measuring ---


def _writable(path: str) -> Path:
    """Raises ConfigError where the file cannot be written."""
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


def _new_table(form: str, options: Values) -> Path:
    if not options["out"]:
        raise ConfigError(f"{form} needs --out table.json, where the table goes")
    out = _writable(options["out"])
    if out.exists() and not options["force"]:
        raise ConfigError(f"{out} exists: choose another --out, or --force to replace it")
    return out


TABLE = Form("--out table.json", ("out", "plot", "force", "resume"), SPACE, _measure_table)
EXPORT = Form("--export-kit", ("export_kit",), SPACE, _export_kit)
IMPORT = Form("--import-kit", ("import_kit", "out", "plot", "force"), ("space",), _import_kit)
MERGE = Form("--merge", ("merge", "out", "force"), (), _merge)
NETWORK_SETTINGS = ("space", "seed", "measure", "runtime", "precision")
OF_NETWORKS = ("directory", "shape", "batch", "threads", "sustained")
NETWORKS = Form("a network", OF_NETWORKS, NETWORK_SETTINGS, _networks)
