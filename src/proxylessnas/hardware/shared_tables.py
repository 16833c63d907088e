"""A folder of latency tables of several devices: what is there, and the one of a device.

The folder may be a URL, whose `index.json` is a list of the tables' names: they are copied into the
user's cache each time that they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from proxylessnas.errors import MeasurementError, UserError, did_you_mean, foreign
from proxylessnas.hardware.published_table import is_published, read_published_table
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.io.files import write_atomic

FOLDER_VARIABLE = "PROXYLESSNAS_TABLES"
DEFAULT_FOLDER = "~/.local/share/proxylessnas/tables"
CACHE = Path("~/.cache/proxylessnas/tables")  # of what URLs hold
MOST_TABLES, MOST_BYTES, PATIENCE_S = 500, 64 << 20, 20
SUFFIXES = (".json", ".yaml", ".yml")
PUBLISHED_AT = "github.com/han-cai/files publishes mobile_trim.yaml for the Pixel 1"


@dataclass(frozen=True, kw_only=True)
class SharedTable:
    """A table of the folder, as far as it is described.

    date: of the last measurement, ISO 8601. validation: mean error on unseen networks in %; None
    where there is none. problem: why it cannot be used; empty where it can.
    """

    path: Path
    device: str = ""
    runtime: str = ""
    version: str = ""
    precision: str = ""
    date: str = ""
    shapes: str = ""
    validation: float | None = None
    problem: str = ""

    def is_of(self, device: str) -> bool:
        """Whether a user's name of a device is this one: `pixel1` for `Pixel 1`, not `Pixel 10`."""
        name, digit = _plain(device), "[0-9]"
        begins, ends = f"(?:(?<!{digit})|(?!{digit}))", f"(?:(?!{digit})|(?<!{digit}))"
        return bool(name and re.search(begins + name + ends, _plain(self.device)))


def tables_in(folder: str | Path) -> list[SharedTable]:
    """The tables of a folder or of a URL, by their names; one that is damaged says so.

    Of a run's directory it is the run's table: its other files are none.

    Raises:
        MeasurementError: there is no such folder, or the URL cannot be read.
    """
    copied = re.match("https?://", str(folder))
    folder = _copy_of(str(folder)) if copied else Path(folder).expanduser()
    if not folder.is_dir():
        raise MeasurementError(
            f"there is no folder of tables {folder}: make it and put tables into it, or name "
            f"another one (--tables FOLDER, or {FOLDER_VARIABLE})"
        )
    paths = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if folder / "config.yaml" in paths:
        paths = [path for path in paths if path.name == "latency_table.json"]
    return [_described(path) for path in paths]


def default_folder() -> str:
    """The folder or URL of the environment variable, or the user's folder."""
    return os.environ.get(FOLDER_VARIABLE) or os.path.expanduser(DEFAULT_FOLDER)


def _copy_of(url: str) -> Path:
    """The tables of a URL, in a folder of the cache that is only theirs."""
    url = url.rstrip("/")
    folder = CACHE.expanduser() / hashlib.sha256(url.encode()).hexdigest()[:16]
    with foreign(MeasurementError, f"cannot read the tables of {url}"):
        names = json.loads(_fetched(f"{url}/index.json"))
        allowed = rf"[\w-][\w.-]*({'|'.join(map(re.escape, SUFFIXES))})"
        if not isinstance(names, list) or not all(
            isinstance(name, str) and re.fullmatch(allowed, name) for name in names[:MOST_TABLES]
        ):
            raise MeasurementError(
                f'{url}/index.json is no list of names of tables, as ["pixel1.yaml"]'
            )
        folder.mkdir(parents=True, exist_ok=True)
        for old in set(os.listdir(folder)) - set(names):
            (folder / old).unlink()
        for name in names[:MOST_TABLES]:
            write_atomic(folder / name, _fetched(f"{url}/{name}"))
    return folder


def _fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        content = bytes(answer.read(MOST_BYTES + 1))
    if len(content) > MOST_BYTES:
        raise MeasurementError(f"{url} is larger than {MOST_BYTES >> 20} MiB")
    return content


def table_of_device(
    device: str,
    folder: str | Path,
    *,
    precision: str | None = None,
    runtime: str | None = None,
) -> Path:
    """The one table of a device, in a precision (None: float) and of a runtime (None: any).

    Raises:
        MeasurementError: there is none, or there are several; they are named.
    """
    tables = tables_in(folder)
    usable = [table for table in tables if not table.problem]
    of_device = [table for table in usable if table.is_of(device)]
    if not of_device:
        devices = {table.device for table in usable}
        near = did_you_mean(device, devices) if devices else "the folder has no table"
        pixel = f"; {PUBLISHED_AT}" if _plain(device).startswith("pixel") else ""
        raise MeasurementError(f"{folder} has no table of the device {device!r}; {near}{pixel}")
    fitting = [
        table
        for table in of_device
        if (table.precision == precision if precision else table.precision != "int8")
        and runtime in (None, table.runtime)
    ]
    if len(fitting) != 1:
        what = f"{precision or 'float'}{f' on {runtime}' if runtime else ''}"
        there = "; ".join(map(_words, fitting or of_device))
        how = "give --runtime, or --table with one of them" if fitting else "it has"
        many = "several tables" if fitting else "no table"
        raise MeasurementError(
            f"{folder} has {many} of the device {device!r} in {what}: {how}: {there}"
        )
    return fitting[0].path


def _described(path: Path) -> SharedTable:
    try:
        return _published(path) if is_published(path) else _ours(path)
    except UserError as error:
        return SharedTable(path=path, problem=str(error))


def _published(path: Path) -> SharedTable:
    table = read_published_table(path)
    return SharedTable(path=path, device=table.device, runtime="published", precision="f32")


def _ours(path: Path) -> SharedTable:
    table = LatencyTable.load(path)
    validation = (table.validation or {}).get("mean_abs_error_pct")
    described = {name: str(table.device.get(name, "")) for name in ("device", "runtime")}
    return SharedTable(
        path=path,
        **described,
        version=str(table.device.get("version", "")),
        precision=str(table.device.get("precision", "")),
        date=max(_dates(table), default=""),
        shapes=str(table.device.get("input_shapes", "")),
        validation=validation if isinstance(validation, int | float) else None,
        problem="" if table.complete else "its measurement was broken off",
    )


def _dates(table: LatencyTable) -> Iterator[str]:
    for measurement in (*table.entries.values(), *(n.measurement for n in table.networks)):
        yield str(measurement.environment.get("date", ""))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _words(table: SharedTable) -> str:
    return f"{table.path} ({table.runtime}, {table.precision})"


def columns_of(tables: Sequence[SharedTable]) -> Iterator[tuple[str, ...]]:
    """Rows for people: file, device, runtime with version, precision, input, date, validation."""
    for t in tables:
        error = "-" if t.validation is None else f"{t.validation:.1f} %"
        words = (f"{t.runtime} {t.version}".strip(), t.precision, t.shapes, t.date[:10], error)
        yield (t.path.name, t.device, *(word or "-" for word in words))
