"""A CSV file of file names and labels, with the images in its folder or under it."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from proxylessnas.config import DataSettings
from proxylessnas.data.formats import IMAGE_SUFFIXES
from proxylessnas.data.labels import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    choose_column,
    class_numbers,
    not_used,
    one_hot_columns,
)
from proxylessnas.data.parts import part_of
from proxylessnas.data.source import ImageFiles, Source, SplitPart, assemble, digest
from proxylessnas.data.tree import Scan, Stamp, read_folder
from proxylessnas.data.watching import Progress, silent, watched
from proxylessnas.errors import DataError
from proxylessnas.io.files import read_bytes

TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
MAX_BYTES = 1 << 30
MISSING_SHARE = 0.01  # of the rows; more files than this must not be missing
_DELIMITERS = (",", ";", "\t", "|", " ")
PART_COLUMNS = ("split", "subset", "partition", "usage")
_FLAGS = ({"0", "1"}, {"false", "true"}, {"no", "yes"})
_SAMPLE = 50  # rows that tell which column holds files


def table_source(
    path: Path, settings: DataSettings | None = None, progress: Progress = silent
) -> Source:
    """One row an image: its file, its label and, if there is such a column, its part.

    A file is named by its path from the table's folder, or by a name (with or without its
    extension) that only one file under that folder has.

    Raises:
        DataError: no such columns, more than 1 % of the files missing, or a file with two labels.
    """
    settings = settings or DataSettings()
    scan = Scan(str(path.parent), progress)
    tree = watched(lambda: read_folder(path.parent, scan), scan.tell)
    files = _Files(str(path.parent), tree.all_images())
    table = _columns(path, _rows(path), files)
    image, label, names, part, notes = _roles(str(path), table, files, settings)
    rows = _Rows(str(path), files)
    for cell, text, role in zip(image, label, part or ["train"] * len(image), strict=True):
        rows.add(role, cell, text)
    rows.check()
    classes, labels = class_numbers(str(path), rows.labels, names)
    parts = {
        role: SplitPart(labels[role], ImageFiles(tuple(files.full(p) for p in images)))
        for role, images in rows.images.items()
    }
    listed = {p for images in rows.images.values() for p in images}
    unlisted = len(files.stamps.keys() - listed)
    return assemble(
        str(path),
        classes,
        parts,
        {
            "row of a file that is missing": len(rows.missing),
            "row that stands there twice": rows.repeated,
            "image that is not in the table": unlisted,
        },
        notes=notes,
        digests={
            role: digest({p: files.stamp(p) for p in images})
            for role, images in rows.images.items()
        },
    )


def _rows(path: Path) -> list[list[str]]:
    """The cells of every row; DataError where rows are not of one length."""
    data = read_bytes(path, MAX_BYTES, DataError)
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in _DELIMITERS if mark in first.strip()), ",")
    try:
        reader = csv.reader(io.StringIO(text, ""), delimiter=delimiter, skipinitialspace=True)
        rows = [[cell.strip() for cell in row] for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataError(f"{path} is no table: {error}") from error
    if not rows:
        raise DataError(f"{path} is empty; expected rows of a file name and a label")
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise DataError(
                f"{path}: row {number} has {len(row)} cells, the first has {len(rows[0])}"
            )
    return rows


@dataclass
class _Files:
    """The images under a table's folder, found by path, by name, or by name without extension."""

    root: str
    stamps: Mapping[str, Stamp]
    by_name: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.stamps:
            name = os.path.basename(path)
            for key in (name, os.path.splitext(name)[0]):
                self.by_name.setdefault(key, []).append(path)

    def full(self, path: str) -> str:
        return os.path.join(self.root, path)

    def stamp(self, path: str) -> Stamp:
        if path in self.stamps:
            return self.stamps[path]
        status = os.stat(self.full(path))
        return status.st_size, status.st_mtime_ns

    def find(self, cell: str) -> str | None:
        """The path of the file that a cell names; None where there is none.

        Raises:
            DataError: several files have that name.
        """
        path = os.path.normpath(cell.replace("\\", "/"))
        if path in self.stamps:
            return path
        if path.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(self.full(path)):
            return path  # elsewhere: ../images/1.png
        paths = self.by_name.get(os.path.basename(path), [])
        if len(paths) > 1:
            raise DataError(f"the name {cell!r} is of several files: {paths[0]}, {paths[1]}")
        return paths[0] if paths else None

    def sample(self, cells: Sequence[str]) -> tuple[str | None, ...]:
        """The files of some of the cells; None where a cell names none."""
        sample = [cell for cell in cells[:: max(1, len(cells) // _SAMPLE)] if cell]
        return tuple(self._found(cell) for cell in sample)

    def _found(self, cell: str) -> str | None:
        try:
            return self.find(cell)
        except (DataError, ValueError):  # several, or a zero byte: what to say is decided later
            return cell


def _columns(path: Path, rows: list[list[str]], files: _Files) -> dict[str, list[str]]:
    """Name -> cells; without a header, which holds no name of a file, names are numbers."""
    words = [cell for cell in rows[0] if _key(cell) not in (*IMAGE_COLUMNS, *LABEL_COLUMNS)]
    headless = any(files.sample(words))
    names = [str(i + 1) for i in range(len(rows[0]))] if headless else rows[0]
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(
            f"{path}: expected columns of file names and of labels, each with a name of its own; "
            f"its columns: {', '.join(names)}"
        )
    body = rows if headless else rows[1:]
    if not body:
        raise DataError(f"{path} has a header and no rows")
    return {name: [row[i] for row in body] for i, name in enumerate(names)}


def _roles(
    name: str, table: dict[str, list[str]], files: _Files, settings: DataSettings
) -> tuple[list[str], list[str], list[str] | None, list[str] | None, list[str]]:
    """The cells of files and of labels, the classes where columns are classes, each row's part
    (None: all train), and what is said of them."""
    named = [column for column in table if _key(column) in IMAGE_COLUMNS]
    holding: dict[tuple[str | None, ...], str] = {}  # of two names of the same file, the first
    for column in [*named, *(c for c in table if _key(c) not in LABEL_COLUMNS)]:
        sample = files.sample(table[column])
        if 2 * sum(path is not None for path in sample) > len(sample):
            holding.setdefault(sample, column)
    likely = list(holding.values()) or named[:1]
    image, image_said = choose_column(name, "image", table, likely, settings.image_column)
    roles = {column: _parts_of_rows(name, column, table[column]) for column in table}
    parts = next((column for column in table if roles[column]), None)
    rest = [column for column in table if column not in (image, parts)]
    likely = [column for column in rest if _key(column) in LABEL_COLUMNS]
    if not likely and len(rest) == 1:
        likely = rest
    notes = [image_said, *([f"parts from column {parts}"] if parts else [])]
    hot = None
    if not likely and settings.label_column is None:
        hot = one_hot_columns(name, {column: table[column] for column in rest})
    if hot is not None:
        classes, labels = hot
        notes += [f"a column a class: {', '.join(classes[:8])}{', ...' * (len(classes) > 8)}"]
        notes += not_used(table, (image, parts, *classes))
        return table[image], labels, classes, roles[parts] if parts else None, notes
    label, label_said = choose_column(name, "label", table, likely, settings.label_column)
    notes[1:1] = [label_said]
    notes += not_used(table, (image, label, parts))
    return table[image], _whole(table[label]), None, roles[parts] if parts else None, notes


def _whole(cells: list[str]) -> list[str]:
    """`3` for `3.0`, as tables with empty cells are written, where all are such numbers."""
    if all(re.fullmatch(r"\d+\.0+|nan|", cell, re.IGNORECASE) for cell in cells):
        return [cell.partition(".")[0] for cell in cells]
    return cells


def _key(column: str) -> str:
    return re.sub(r"[\s_-]+", "_", column.lower())


def _parts_of_rows(name: str, column: str, cells: Sequence[str]) -> list[str] | None:
    """The part of each row, where a column says it; None where it says something else.

    Raises:
        DataError: it is called like a column of parts, and its cells are no parts.
    """
    key, values = _key(column), sorted(set(cells)) if len(set(cells)) < 9 else []
    meanings = {value: part_of(value) for value in values}
    named = key in PART_COLUMNS
    parts = {v: m[0] for v, m in meanings.items() if m is not None and (named or not m[1])}
    flag = part_of(key[3:]) if key.startswith("is_") else None
    if flag is not None and {value.lower() for value in values} in _FLAGS:
        other = "test" if flag[0] == "train" else "train"
        parts = {v: flag[0] if v.lower() in ("1", "true", "yes") else other for v in values}
    if values and len(parts) == len(values) and "train" in parts.values():
        return [parts[cell] for cell in cells] if len(values) > 1 else None
    if named:
        raise DataError(
            f"{name}: the column {column} is called like one of parts, and holds "
            f"{', '.join(values[:4]) or 'many values'}: call the parts train, val and test, or the "
            "column by what it says"
        )
    return None


@dataclass
class _Rows:
    """The rows as they are read: each file once, with one label."""

    name: str
    files: _Files
    images: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    known: dict[str, tuple[str, str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    repeated: int = 0

    def add(self, part: str, cell: str, label: str) -> None:
        path = self.files.find(cell) if cell and "\0" not in cell else None
        if path is None:
            self.missing.append(cell)
        elif path not in self.known:
            self.known[path] = (part, label)
            self.images.setdefault(part, []).append(path)
            self.labels.setdefault(part, []).append(label)
        elif self.known[path] == (part, label):
            self.repeated += 1
        else:
            (before, old), now = self.known[path], (part, label)
            raise DataError(
                f"{self.name}: {path} stands there twice, as {old!r} in {before} and as "
                f"{now[1]!r} in {now[0]}; one label and one part an image are expected"
            )

    def check(self) -> None:
        """DataError where too many files are missing."""
        count = len(self.missing) + self.repeated + len(self.known)
        if len(self.missing) > MISSING_SHARE * count:
            raise DataError(
                f"{self.name}: {len(self.missing)} of {count} rows name no image file under "
                f"{self.files.root}, such as {self.missing[0]!r:.100}; file names are relative to "
                "the table's folder (another column: --loading.image-column)"
            )
        if "train" not in self.images:
            raise DataError(f"{self.name} has no row of a training image")
