"""CSV tables whose rows are images: a list of numbers in one column, or a column a pixel."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from proxylessnas.config import DataSettings
from proxylessnas.data.columns import RowLabels, key_of
from proxylessnas.data.labels import class_numbers
from proxylessnas.data.pixels import PixelRows, are_bytes
from proxylessnas.data.source import Source, SplitPart, assemble, digest
from proxylessnas.errors import DataError

LEAST_PIXELS = 64  # as scikit-learn's digits have
SAMPLE = 50  # rows that tell what a column holds


def pixel_columns(
    name: str, table: dict[str, list[str]], settings: DataSettings
) -> tuple[list[str], PixelRows] | None:
    """The columns that hold pixels, and the images; None where a table has none.

    They are one column of lists of numbers, or many of one number, as `pixel0` or `28x28`.

    Raises:
        DataError: the lists are no numbers.
    """
    columns = named_pixels(table)
    rows: list[list[str]]
    if all(map(str.isdigit, table)) and len(table) > LEAST_PIXELS:  # without a header
        if settings.label_column is None:
            raise DataError(
                f"{name} has {len(table)} columns of numbers and no header: say which holds the "
                f"labels, --loading.label-column 1 (the first) or {len(table)} (the last)"
            )
        columns = [c for c in table if c != settings.label_column]
    if len(columns) >= LEAST_PIXELS:
        rows = [list(row) for row in zip(*(table[c] for c in columns), strict=True)]
    else:
        lists = [c for c in table if all(map(_is_list, table[c][:SAMPLE]))]
        if not lists or settings.image_column not in (None, lists[0]):
            return None
        columns, rows = lists[:1], [_numbers(cell) for cell in table[lists[0]]]
    try:
        values = np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{name}: the pixels are not all numbers, as many a row: {error}") from None
    whole = np.isfinite(values).all() and (values == np.round(values)).all()
    values = values.astype(np.int64) if whole else values
    return columns, PixelRows(name, values, not are_bytes(values))


def named_pixels(columns: Iterable[str]) -> list[str]:
    """The columns that are called like a pixel each."""
    return [c for c in columns if re.fullmatch(r"(pixels?|pix|px)_?\d+|\d+x\d+", key_of(c))]


def source_of_pixels(
    name: str, images: PixelRows, labels: RowLabels, stamps: Mapping[str, tuple[int, int]]
) -> Source:
    """Rows that are images themselves."""
    rows = {role: np.flatnonzero(np.array(labels.parts) == role) for role in set(labels.parts)}
    cells = {role: [labels.cells[row] for row in numbers] for role, numbers in rows.items()}
    classes, numbers = class_numbers(name, cells, labels.names)
    parts: dict[str, SplitPart] = {
        role: SplitPart(
            numbers[role], replace(images, name=f"{name} {role}", values=images.values[rows[role]])
        )
        for role in ("train", "valid", "test")
        if role in rows
    }
    return assemble(
        name, classes, parts, notes=labels.notes, digests=dict.fromkeys(parts, digest(stamps))
    )


def _numbers(cell: str) -> list[str]:
    return re.split(r"[\s,;]+", cell.strip("[](){} \n"))


def _is_list(cell: str) -> bool:
    numbers = _numbers(cell)
    return len(numbers) >= LEAST_PIXELS and all(map(is_number, numbers))


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
