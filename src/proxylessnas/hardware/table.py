"""The latency table: every candidate's measurement on one device, and some whole networks'.

A JSON file with the raw samples. Nothing in it is trusted on reading, and nothing that is
missing has a default.
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from proxylessnas.errors import MeasurementError, MissingEntry
from proxylessnas.hardware.table_entries import (
    Column,
    NetworkEntry,
    NetworkRow,
    Role,
    Samples,
    Scalar,
)
from proxylessnas.hardware.timing import Environment, Measurement
from proxylessnas.io.files import read_bytes, write_atomic
from proxylessnas.io.json_files import parse_json
from proxylessnas.schema import checked

MAX_FILE_BYTES = 64 << 20
SAME = ("runtime", "precision", "threads", "device")  # what makes another device of it
ALIKE = (*SAME, "version", "batch")  # what samples of one table must share

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Latencies on one device.

    device: runtime, version, precision, threads, device (its model), batch, input_shapes,
        cores, system, versions of libraries.
    entries: key (see `trace.Unit`) -> measurement. networks: whole networks.
    validation: the cost model's error on unseen networks, see `validate.validate`.
    complete: whether all visits that were planned were done.
    columns: further costs of the same candidates, by name.
    """

    device: Mapping[str, Scalar]
    entries: Mapping[str, Measurement]
    networks: tuple[NetworkEntry, ...] = ()
    validation: Mapping[str, Any] | None = None
    complete: bool = True
    columns: Mapping[str, Column] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Measurement:
        """The measurement of a candidate.

        Raises:
            MissingEntry: the table does not have it; there is no default.
        """
        advice = "at this input size and batch (proxylessnas measure, or search() without `table`)"
        return self._entry(self.entries, key, "entry", advice)

    def value(self, column: str, key: str) -> float:
        """A column's value of a candidate.

        Raises:
            MissingEntry: the column does not have it; there is no default.
        """
        advice = f"and add it to columns.{column}.entries"
        return self._entry(self.columns[column].entries, key, column, advice)

    def _entry(self, entries: Mapping[str, T], key: str, sought: str, advice: str) -> T:
        if key in entries:
            return entries[key]
        near = difflib.get_close_matches(key, entries, n=3, cutoff=0.3)
        raise MissingEntry(
            f"the latency table of {self.device.get('device')} ({self.device.get('runtime')}) has "
            f"no {sought} for {key!r}; nearest: {', '.join(map(repr, near)) or 'none'}; measure it "
            f"{advice}"
        )

    def of_role(self, *roles: Role, space: str | None = None) -> tuple[NetworkEntry, ...]:
        return tuple(
            n for n in self.networks if n.role in roles and (space is None or n.space == space)
        )

    def canary(self, space: str) -> NetworkEntry | None:
        """The network of this space that is measured again with every later measurement."""
        return next(iter(self.of_role("canary", space=space)), None)

    def differs_from(self, description: Mapping[str, Scalar]) -> str:
        """How its device differs from a `Runtime.describe()`, in words; empty where it does not."""
        differences = {name: (a, b) for name, a, b in differing(self.device, description, SAME)}
        if "device" in differences:
            return f"the table's device, {differences['device'][0]}, is not here"
        words = [f"{name} {ours}, not {theirs}" for name, (ours, theirs) in differences.items()]
        return f"the table is of this device, but with {' and '.join(words)}" if words else ""

    def check(self, description: Mapping[str, Scalar], batch: int, *, force: bool = False) -> None:
        """Refuse to price with a table of something else.

        description: `Runtime.describe()`. force: warn instead, but of another precision.

        Raises:
            MeasurementError: another device, runtime, precision, number of threads or batch,
                or a table whose measurement was broken off.
        """
        for name, ours, value in differing(
            self.device, {**description, "batch": batch}, (*SAME, "batch")
        ):
            _refuse(
                f"the latency table was measured with {name} {ours!r}, not {value!r}: measure "
                "again" + ("" if name == "precision" else ", or use --force"),
                force and name != "precision",
            )
        if not self.complete:
            _refuse(
                "the latency table is not complete: measure on (the same command or call)", force
            )
        if self.device.get("version") != description.get("version"):
            warnings.warn(
                f"the latency table was measured with {self.device.get('runtime')} "
                f"{self.device.get('version')}, this is {description.get('version')}",
                stacklevel=2,
            )

    def check_precision(self, wanted: str | None) -> None:
        """Refuse to price networks of one precision with latencies of another.

        wanted: as it was asked for; None: in float, whichever.

        Raises:
            MeasurementError: the table is of another precision.
        """
        own = str(self.device.get("precision"))
        if own != wanted and (wanted is not None or own == "int8"):
            raise MeasurementError(
                f"the latency table is of {own}, and {wanted or 'f32'} is asked for: an {own} "
                f"latency says little of another precision's; give --precision {own}, or a table "
                f"in {wanted or 'f32'} (measure --precision {wanted or 'f32'} --out table.json)"
            )

    def merge(self, other: LatencyTable) -> LatencyTable:
        """Both tables' entries and networks; this one's where both have one.

        The validation is this table's, unless networks come to its spaces: the cost model is
        fitted to more then, and judged by others.

        Raises:
            MeasurementError: they are of different devices, or were made in another way.
        """
        for name, ours, theirs in differing(self.device, other.device, ALIKE):
            raise MeasurementError(
                f"tables of different {name} cannot be merged: {ours!r} and {theirs!r}"
            )
        known = {n.identity for n in self.networks}
        new = [n for n in other.networks if n.identity not in known]
        stale = bool({n.space for n in new} & {n.space for n in self.networks})
        return replace(
            self,
            entries={**other.entries, **self.entries},
            networks=(*self.networks, *new),
            validation=None if stale else self.validation,
            complete=self.complete and other.complete,
            columns={**other.columns, **self.columns, **_both(self.columns, other.columns)},
        )

    # --- the file ---

    def save(self, path: str | Path) -> None:
        """Write the file whole or not at all."""
        write_atomic(Path(path), self.to_json().encode())

    def to_json(self) -> str:
        environments: list[Environment] = []

        def packed(m: Measurement) -> dict[str, Any]:
            if m.environment not in environments:
                environments.append(m.environment)
            index = environments.index(m.environment)
            return {"samples_ms": list(m.samples_ms), "environment": index}

        entries = {key: packed(m) for key, m in self.entries.items()}
        networks = [
            {
                "role": n.role,
                "space": n.space,
                "macs": n.macs,
                "choices": dict(n.choices),
                **packed(n.measurement),
                "repeat": packed(n.repeat) if n.repeat else None,
            }
            for n in self.networks
        ]
        fields = {
            "schema": 1,
            "complete": self.complete,
            "device": dict(self.device),
            "validation": self.validation,
            "environments": [dict(e) for e in environments],
            **(
                {"columns": {k: asdict(c) for k, c in self.columns.items()}} if self.columns else {}
            ),
        }
        # One entry a line: a file that can be read and compared.
        text = json.dumps(fields, indent=1, allow_nan=False)[:-2]
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in entries.items())
        text += f',\n "entries": {{\n{lines}\n }},\n'
        rows = ",\n".join(f"  {json.dumps(n)}" for n in networks)
        return f'{text} "networks": [\n{rows}\n ]\n}}\n'

    @staticmethod
    def from_json(text: str | bytes) -> LatencyTable:
        """The table of a JSON text.

        Raises:
            MeasurementError: the text is not JSON, or a field is missing, unknown or of the wrong
                type.
        """
        file: _TableFile = parse_json(_TableFile, text, MeasurementError)
        return file.table()

    @staticmethod
    def load(path: str | Path) -> LatencyTable:
        """Read a table; at most 64 MiB.

        Raises:
            MeasurementError: the file cannot be read, is too large or not a latency table.
        """
        text = read_bytes(path, MAX_FILE_BYTES, MeasurementError)
        try:
            return LatencyTable.from_json(text)
        except MeasurementError as error:
            raise MeasurementError(f"{path} is not a latency table: {error}") from None


def differing(
    device: Mapping[str, object], other: Mapping[str, object], names: Sequence[str]
) -> Iterator[tuple[str, object, object]]:
    """The names whose values two devices differ in, with both values."""
    for name in names:
        if device.get(name) != other.get(name):
            yield name, device.get(name), other.get(name)


def _both(first: Mapping[str, Column], second: Mapping[str, Column]) -> dict[str, Column]:
    """The columns that two tables have, merged; the first table's value where both have one.

    Raises:
        MeasurementError: they are in different units.
    """
    merged = {}
    for name in first.keys() & second.keys():
        one, other = first[name], second[name]
        if one.unit != other.unit:
            raise MeasurementError(
                f"tables with {name} in {one.unit} and in {other.unit} cannot be merged"
            )
        have = [(n.space, dict(n.choices)) for n in one.networks]
        new = [n for n in other.networks if (n.space, dict(n.choices)) not in have]
        entries = {**other.entries, **one.entries}
        merged[name] = Column(unit=one.unit, entries=entries, networks=(*one.networks, *new))
    return merged


def _refuse(message: str, force: bool) -> None:
    if not force:
        raise MeasurementError(message)
    warnings.warn(message, stacklevel=3)


@checked(MeasurementError)
@dataclass(frozen=True, kw_only=True)
class _TableFile:
    schema: Literal[1]
    complete: bool
    device: dict[str, Scalar]
    validation: dict[str, Any] | None
    environments: tuple[dict[str, Scalar], ...]
    entries: dict[str, Samples]
    networks: tuple[NetworkRow, ...]
    columns: dict[str, Column] = field(default_factory=dict)

    def table(self) -> LatencyTable:
        places = self.environments
        return LatencyTable(
            device=self.device,
            entries={key: row.measurement(places) for key, row in self.entries.items()},
            networks=tuple(row.entry(places) for row in self.networks),
            validation=self.validation,
            complete=self.complete,
            columns=self.columns,
        )
