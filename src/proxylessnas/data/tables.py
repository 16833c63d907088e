"""A CSV file of file names and labels, with the images in its folder or under it."""

from __future__ import annotations

import csv
import io
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from proxylessnas.config import DataSettings
from proxylessnas.data.archives import read_archive, read_file, reader_of, stamp_of
from proxylessnas.data.columns import RowLabels, key_of, row_labels
from proxylessnas.data.formats import IMAGE_SUFFIXES
from proxylessnas.data.labels import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    choose_column,
    class_numbers,
)
from proxylessnas.data.pixel_tables import (
    LEAST_PIXELS,
    is_number,
    named_pixels,
    pixel_columns,
    source_of_pixels,
)
from proxylessnas.data.source import (
    ImageFiles,
    ImageReader,
    Source,
    SplitPart,
    assemble,
    digest,
)
from proxylessnas.data.tree import Scan, Stamp, read_folder
from proxylessnas.data.watching import Progress, silent, watched
from proxylessnas.errors import DataError
from proxylessnas.io.files import read_bytes

TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
MAX_BYTES = 1 << 30
MISSING_SHARE = 0.01  # of the rows; more files than this must not be missing
_DELIMITERS = (",", ";", "\t", "|", " ")
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
    scan = Scan(str(path.parent), progress)
    tree = watched(lambda: read_folder(path.parent, scan), scan.tell)
    files = _Files(str(path.parent), tree.all_images())
    return _table_source(path, read_bytes(path, MAX_BYTES, DataError), files, settings)


def archived_table_source(
    archive: Path, name: str, settings: DataSettings | None = None, progress: Progress = silent
) -> Source:
    """A table within a zip or tar file, as `table_source`: of images in its folder there."""
    scan = Scan(str(archive), progress)
    tree = watched(lambda: read_archive(archive, scan), scan.tell)
    folder = os.path.dirname(name.replace("\\", "/"))
    files = _ArchivedFiles.under(folder, archive, tree.all_images())
    return _table_source(archive / name, read_file(archive, name), files, settings)


def _table_source(path: Path, data: bytes, files: _Files, settings: DataSettings | None) -> Source:
    settings = settings or DataSettings()
    table = _columns(path, _rows(path, data), files)
    # A number may well be the name of a file, such as 0.png, where there are images beside it.
    of_files = len(named_pixels(table)) < LEAST_PIXELS and files.hold(table)
    pixels = None if of_files else pixel_columns(str(path), table, settings)
    if pixels is not None:
        columns, images = pixels
        said = f"pixels from {len(columns)} column{'s' * (len(columns) > 1)}, as {columns[0]}"
        labelled = row_labels(str(path), table, columns, said, settings)
        return source_of_pixels(
            str(path), images, labelled, {path.name: (len(data), zlib.crc32(data))}
        )
    image, labelled = _roles(str(path), table, files, settings)
    rows = _Rows(str(path), files)
    for cell, text, role in zip(image, labelled.cells, labelled.parts, strict=True):
        rows.add(role, cell, text)
    rows.check()
    classes, labels = class_numbers(str(path), rows.labels, labelled.names)
    parts = {
        role: SplitPart(labels[role], files.reader(images)) for role, images in rows.images.items()
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
        notes=labelled.notes,
        digests={
            role: digest({p: files.stamp(p) for p in images})
            for role, images in rows.images.items()
        },
    )


def _rows(path: Path, data: bytes) -> list[list[str]]:
    """The cells of every row; DataError where rows are not of one length."""
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

    def reader(self, paths: Sequence[str]) -> ImageReader:
        return ImageFiles(tuple(os.path.join(self.root, path) for path in paths))

    def stamp(self, path: str) -> Stamp:
        return self.stamps.get(path) or stamp_of(os.path.join(self.root, path))

    def elsewhere(self, path: str) -> bool:
        """Whether a path that leads out of the folder is a file: ../images/1.png."""
        return os.path.isfile(os.path.join(self.root, path))

    def find(self, cell: str) -> str | None:
        """The path of the file that a cell names; None where there is none.

        Raises:
            DataError: several files have that name.
        """
        path = os.path.normpath(cell.replace("\\", "/"))
        if path in self.stamps:
            return path
        if path.lower().endswith(IMAGE_SUFFIXES) and self.elsewhere(path):
            return path
        paths = self.by_name.get(os.path.basename(path), [])
        if len(paths) > 1:
            raise DataError(f"the name {cell!r} is of several files: {paths[0]}, {paths[1]}")
        return paths[0] if paths else None

    def sample(self, cells: Sequence[str]) -> tuple[str | None, ...]:
        """The files of some of the cells; None where a cell names none."""
        sample = [cell for cell in cells[:: max(1, len(cells) // _SAMPLE)] if cell]
        return tuple(self._found(cell) for cell in sample)

    def hold(self, table: Mapping[str, Sequence[str]]) -> bool:
        """Whether most cells of a column name files."""
        samples = map(self.sample, table.values())
        return any(2 * sum(p is not None for p in paths) > len(paths) for paths in samples if paths)

    def _found(self, cell: str) -> str | None:
        try:
            return self.find(cell)
        except (DataError, ValueError):  # several, or a zero byte: what to say is decided later
            return cell


@dataclass
class _ArchivedFiles(_Files):
    """The images in an archive, by their paths from the table's folder there.

    names: path -> as the archive writes it.
    """

    names: dict[str, str] = field(default_factory=dict)

    @classmethod
    def under(cls, folder: str, archive: Path, images: Mapping[str, Stamp]) -> _ArchivedFiles:
        names = {os.path.relpath(n.replace("\\", "/"), folder or "."): n for n in images}
        stamps = {path: images[name] for path, name in names.items()}
        return cls(str(archive), stamps, names=names)

    def reader(self, paths: Sequence[str]) -> ImageReader:
        return reader_of(self.root)(tuple(self.names[path] for path in paths))

    def elsewhere(self, path: str) -> bool:
        return False


def _columns(path: Path, rows: list[list[str]], files: _Files) -> dict[str, list[str]]:
    """Name -> cells; without a header, which holds no name of a file, names are numbers."""
    words = [cell for cell in rows[0] if key_of(cell) not in (*IMAGE_COLUMNS, *LABEL_COLUMNS)]
    headless = any(files.sample(words)) or (
        len(words) > LEAST_PIXELS and all(map(is_number, words))
    )
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
) -> tuple[list[str], RowLabels]:
    """The cells of files, and the labels."""
    named = [column for column in table if key_of(column) in IMAGE_COLUMNS]
    holding: dict[tuple[str | None, ...], str] = {}  # of two names of the same file, the first
    for column in [*named, *(c for c in table if key_of(c) not in LABEL_COLUMNS)]:
        sample = files.sample(table[column])
        if 2 * sum(path is not None for path in sample) > len(sample):
            holding.setdefault(sample, column)
    likely = list(holding.values()) or named[:1]
    full = [c for c in likely if all(map(_is_file_name, table[c][:_SAMPLE]))]
    if len(full) == 1:  # the numbers of another column are names of files by accident
        likely = full
    image, said = choose_column(name, "image", table, likely, settings.image_column)
    return table[image], row_labels(name, table, [image], said, settings)


def _is_file_name(cell: str) -> bool:
    return cell.lower().endswith(IMAGE_SUFFIXES)


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
