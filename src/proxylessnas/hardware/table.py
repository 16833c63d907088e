"""The latency table: every candidate's measurement on one device, and some whole networks'.

A JSON file with the raw samples. Nothing in it is trusted on reading, and nothing that is
missing has a default.
"""

from __future__ import annotations

import difflib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from proxylessnas.errors import MeasurementError, MissingEntry, one_line
from proxylessnas.hardware.timing import Environment, Measurement
from proxylessnas.io.files import write_atomic

SCHEMA = 1
MAX_FILE_BYTES = 64 << 20
MAX_SAMPLES = 100_000
SAME = ("runtime", "precision", "threads", "device")  # what makes another device of it
ALIKE = (*SAME, "version", "batch")  # what samples of one table must share

Role = Literal["fit", "validation", "canary"]
Scalar = str | int | float
Identity = tuple[str, tuple[tuple[str, str], ...]]  # a network's space and choices


@dataclass(frozen=True, kw_only=True)
class NetworkEntry:
    """A whole network that was measured in the same rounds as the blocks.

    choices: choice -> candidate. role: fit (the cost model is fitted to it),
    validation (it is predicted), canary (also fitted; measured again later to show drift).
    space: which supernet and input shape, `costs.space_id`. macs: multiply-adds.
    repeat: the same network, built and loaded again, measured in the same rounds.
    """

    choices: Mapping[str, str]
    role: Role
    space: str
    macs: int
    measurement: Measurement
    repeat: Measurement | None = None

    @property
    def identity(self) -> Identity:
        """Which network it is: a table has one entry of each."""
        return self.space, tuple(self.choices.items())


@dataclass(frozen=True, kw_only=True)
class NetworkValue:
    """A column's value of a whole network; choices and space as in `NetworkEntry`."""

    choices: Mapping[str, str]
    space: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Column:
    """Another cost than the latency, such as energy in mJ, measured or computed by a user.

    entries: key (see `trace.Unit`) -> value. networks: whole networks, which tell the part that
    all networks share.
    """

    unit: str
    entries: Mapping[str, float]
    networks: tuple[NetworkValue, ...] = ()


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
        if key in self.entries:
            return self.entries[key]
        raise self._missing(
            "entry", key, self.entries, "(proxylessnas measure) at this input size and batch"
        )

    def value(self, column: str, key: str) -> float:
        """A column's value of a candidate.

        Raises:
            MissingEntry: the column does not have it; there is no default.
        """
        entries = self.columns[column].entries
        if key in entries:
            return entries[key]
        raise self._missing(column, key, entries, f"and add it to columns.{column}.entries")

    def _missing(
        self, sought: str, key: str, entries: Mapping[str, object], advice: str
    ) -> MissingEntry:
        near = difflib.get_close_matches(key, entries, n=3, cutoff=0.3)
        return MissingEntry(
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

    def is_of(self, description: Mapping[str, Scalar]) -> bool:
        """Whether it was measured on the device of a `Runtime.describe()`."""
        return all(self.device.get(name) == description.get(name) for name in SAME)

    def check(self, description: Mapping[str, Scalar], batch: int, *, force: bool = False) -> None:
        """Refuse to price with a table of something else.

        description: `Runtime.describe()`. force: warn instead.

        Raises:
            MeasurementError: another device, runtime, precision, number of threads or batch,
                or a table whose measurement was broken off.
        """
        wanted = {**{name: description.get(name) for name in SAME}, "batch": batch}
        for name, value in wanted.items():
            if self.device.get(name) != value:
                _refuse(
                    f"the latency table was measured with {name} {self.device.get(name)!r}, not "
                    f"{value!r}: measure again, or use --force",
                    force,
                )
        if not self.complete:
            _refuse("the latency table is not complete: measure on (the same command)", force)
        if self.device.get("version") != description.get("version"):
            warnings.warn(
                f"the latency table was measured with {self.device.get('runtime')} "
                f"{self.device.get('version')}, this is {description.get('version')}",
                stacklevel=2,
            )

    def merge(self, other: LatencyTable) -> LatencyTable:
        """Both tables' entries and networks; this one's where both have one.

        The validation is this table's, unless networks come to its spaces: the cost model is
        fitted to more then, and judged by others.

        Raises:
            MeasurementError: they are of different devices, or were made in another way.
        """
        for name in ALIKE:
            if self.device.get(name) != other.device.get(name):
                raise MeasurementError(
                    f"tables of different {name} cannot be merged: "
                    f"{self.device.get(name)!r} and {other.device.get(name)!r}"
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
            "schema": SCHEMA,
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
    def load(path: str | Path) -> LatencyTable:
        """Read a table; at most 64 MiB.

        Raises:
            MeasurementError: the file is missing, too large or not a latency table.
        """
        try:
            with Path(path).open("rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise MeasurementError(f"cannot read {path}: {error.strerror}") from None
        if len(raw) > MAX_FILE_BYTES:
            raise MeasurementError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB")
        try:
            return LatencyTable.from_dict(decode(raw))
        except MeasurementError as error:
            raise MeasurementError(f"{path} is not a latency table: {one_line(error)}") from None

    @staticmethod
    def from_dict(data: object) -> LatencyTable:
        """Check every field of a decoded JSON value.

        Raises:
            MeasurementError: a field is missing, unknown or of the wrong type.
        """
        names = (
            "schema",
            "complete",
            "device",
            "validation",
            "environments",
            "entries",
            "networks",
        )
        columns = object_of(data, "the table").get("columns", {})
        fields = object_of(data, "the table", (*names, *(("columns",) if columns else ())))
        if fields["schema"] != SCHEMA:
            raise MeasurementError(f"schema {fields['schema']!r}; this version reads {SCHEMA}")
        environments = [
            scalars_of(e, "an environment") for e in list_of(fields["environments"], "environments")
        ]
        entries = object_of(fields["entries"], "entries")
        if fields["validation"] is not None:
            object_of(fields["validation"], "validation")
        if not isinstance(fields["complete"], bool):
            raise MeasurementError(f"complete is {fields['complete']!r}, not true or false")
        return LatencyTable(
            device=scalars_of(fields["device"], "device"),
            entries={k: _measurement(v, k, environments) for k, v in entries.items()},
            networks=tuple(
                _network(n, environments) for n in list_of(fields["networks"], "networks")
            ),
            validation=fields["validation"],
            complete=fields["complete"],
            columns={k: _column(c, k) for k, c in object_of(columns, "columns").items()},
        )


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


def _column(data: object, name: str) -> Column:
    fields = {"networks": [], **object_of(data, f"the column {name}")}
    fields = object_of(fields, f"the column {name}", ("unit", "entries", "networks"))
    if not isinstance(fields["unit"], str):
        raise MeasurementError(f"the column {name} has the unit {fields['unit']!r}, not a word")
    entries = object_of(fields["entries"], f"the column {name}.entries")
    networks = []
    for row in list_of(fields["networks"], f"the column {name}.networks"):
        row = object_of(row, f"a network of the column {name}", ("choices", "space", "value"))
        choices = object_of(row["choices"], "a network's choices")
        if not all(isinstance(c, str) for c in (row["space"], *choices.values())):
            raise MeasurementError(f"a network of the column {name} has choices that are no names")
        value = _number(row["value"], f"a network of the column {name}")
        networks.append(NetworkValue(choices=choices, space=row["space"], value=value))
    return Column(
        unit=fields["unit"],
        entries={k: _number(v, f"the column {name}: {k}") for k, v in entries.items()},
        networks=tuple(networks),
    )


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise MeasurementError(f"{what} is {value!r}, not a number")
    return float(value)


def _refuse(message: str, force: bool) -> None:
    if not force:
        raise MeasurementError(message)
    warnings.warn(message, stacklevel=3)


def decode(raw: bytes) -> object:
    def constant(name: str) -> None:
        raise MeasurementError(f"it has the number {name}")

    try:
        return json.loads(raw.decode("utf-8"), parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise MeasurementError(f"it is not JSON: {error}") from None


def object_of(data: object, what: str, fields: tuple[str, ...] | None = None) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise MeasurementError(f"{what} is {type(data).__name__}, not an object")
    for name in fields or ():
        if name not in data:
            raise MeasurementError(f"{what} lacks the field {name!r}")
    for name in data:
        if fields is not None and name not in fields:
            raise MeasurementError(f"{what} has the unknown field {name!r}")
    return data


def list_of(data: object, what: str) -> list[Any]:
    if not isinstance(data, list):
        raise MeasurementError(f"{what} is {type(data).__name__}, not a list")
    return data


def scalars_of(data: object, what: str) -> dict[str, Scalar]:
    fields = object_of(data, what)
    for name, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise MeasurementError(f"{what}.{name} is neither a string nor a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise MeasurementError(f"{what}.{name} is {value}")
    return fields


def _measurement(data: object, what: str, environments: list[dict[str, Scalar]]) -> Measurement:
    fields = object_of(data, what, ("samples_ms", "environment"))
    samples, index = list_of(fields["samples_ms"], f"{what}: samples_ms"), fields["environment"]
    if not samples or len(samples) > MAX_SAMPLES:
        raise MeasurementError(f"{what} has {len(samples)} samples")
    for s in samples:
        if isinstance(s, bool) or not isinstance(s, int | float) or not 0 < s < 1e12:
            raise MeasurementError(f"{what} has the sample {s!r}, not a positive number of ms")
    if isinstance(index, bool) or not isinstance(index, int):
        raise MeasurementError(f"{what}: environment is {index!r}, not a number")
    if not 0 <= index < len(environments):
        raise MeasurementError(f"{what} has the environment {index} of {len(environments)}")
    return Measurement(samples_ms=tuple(float(s) for s in samples), environment=environments[index])


def _network(data: object, environments: list[dict[str, Scalar]]) -> NetworkEntry:
    names = ("role", "space", "macs", "choices", "samples_ms", "environment", "repeat")
    fields = object_of(data, "a network", names)
    choices, macs = object_of(fields["choices"], "a network's choices"), fields["macs"]
    if not all(isinstance(c, str) for c in choices.values()):
        raise MeasurementError("a network's choices are not all names")
    if fields["role"] not in get_args(Role):
        raise MeasurementError(f"a network has the role {fields['role']!r}")
    if not isinstance(fields["space"], str):
        raise MeasurementError("a network's space is not a string")
    if isinstance(macs, bool) or not isinstance(macs, int) or not 0 <= macs < 1 << 62:
        raise MeasurementError(f"a network has {macs!r} MACs")
    measured = {name: fields[name] for name in ("samples_ms", "environment")}
    repeat = fields["repeat"]
    return NetworkEntry(
        choices=choices,
        role=cast(Role, fields["role"]),
        space=fields["space"],
        macs=macs,
        measurement=_measurement(measured, "a network", environments),
        repeat=None if repeat is None else _measurement(repeat, "a repeat", environments),
    )
