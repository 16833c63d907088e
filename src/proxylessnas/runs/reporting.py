"""The report of run directories: their records read, then facts, then one HTML file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proxylessnas.architecture import Architecture
from proxylessnas.config import read_config
from proxylessnas.errors import ConfigError, RunError, one_line
from proxylessnas.io.files import write_atomic
from proxylessnas.report.facts import Facts
from proxylessnas.report.page import page
from proxylessnas.report.records import Records, facts_of
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.session.costed import TABLE
from proxylessnas.session.deriving import PRICES
from proxylessnas.session.finishing import CONFUSION
from proxylessnas.session.mistakes import MISTAKES
from proxylessnas.session.store import CONFIG, MALFORMED, METRICS

REPORT, FACTS, TOGETHER = "report.html", "report.json", "comparison.html"
MAX_METRICS = 256 << 20  # bytes


def facts_of_run(path: str | Path) -> Facts:
    """What the records of a run directory say, finished or not.

    Raises:
        RunError: it holds no run, or a record is damaged; ConfigError: its settings are.
    """
    directory = RunDirectory(Path(path))
    if not directory.has(CONFIG):
        raise RunError(f"{path} holds no run: there is no {CONFIG} in it")
    records = _read(directory)
    try:
        return facts_of(records)
    except MALFORMED as error:
        raise RunError(f"{path}: its records are damaged: {one_line(error)}") from None


def write_report(paths: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """One HTML file about one run, or about several side by side; returns where it is.

    out: default `report.html` in the run directory, with the facts beside it as `report.json`; of
    several `comparison.html` in the first one's.

    Raises:
        RunError: see `facts_of_run`. ConfigError: a run is named twice.
    """
    resolved = [Path(path).resolve() for path in paths]
    for path in resolved:
        if resolved.count(path) > 1:
            raise ConfigError(f"{path} is given twice: leave one out")
    runs = [facts_of_run(path) for path in paths]
    first = Path(paths[0])
    file = Path(out) if out is not None else first / (REPORT if len(runs) == 1 else TOGETHER)
    html = page(runs)
    write_atomic(file, html.encode())
    if out is None and len(runs) == 1:
        write_atomic(first / FACTS, _as_json(runs[0]).encode())
    return file


def _as_json(facts: Facts) -> str:
    plain = dataclasses.asdict(dataclasses.replace(facts, architecture=None))
    plain["architecture"] = (
        None if facts.architecture is None else json.loads(facts.architecture.to_json())
    )
    return json.dumps(plain, indent=1, allow_nan=False) + "\n"


def _read(directory: RunDirectory) -> Records:
    """The files that there are; a damaged one is named by the error."""

    def plain(name: str, kind: type = dict) -> Any:
        if not directory.has(name):
            return kind()
        value = directory.read_json(name)
        if not isinstance(value, kind):
            raise RunError(f"{directory.file(name)} is damaged: it is no {kind.__name__}")
        return value

    stages = [name for name in directory.names() if name.startswith("stages/")]
    architecture = None
    if directory.has("architecture.json"):
        architecture = Architecture.load(directory.file("architecture.json"))
    return Records(
        directory=str(directory.path),
        # A run of an earlier version lacks settings that came later.
        settings=dataclasses.asdict(read_config(directory.file(CONFIG))),
        stages={name[len("stages/") : -len(".json")]: plain(name) for name in stages},
        metrics=_metrics(directory),
        architecture=architecture,
        prices=plain(PRICES),
        confusion=plain(CONFUSION),
        mistakes=plain(MISTAKES, list),
        table=plain(TABLE),
        summary=plain("summary.json"),
    )


def _metrics(directory: RunDirectory) -> list[dict[str, Any]]:
    """The whole lines: a run that goes on, or was killed, may have begun another."""
    if not directory.has(METRICS):
        return []
    lines = directory.read(METRICS, MAX_METRICS).splitlines(keepends=True)
    try:
        return [json.loads(line) for line in lines if line.endswith(b"\n")]
    except ValueError as error:
        raise RunError(f"{directory.file(METRICS)} is damaged: {one_line(error)}") from None
