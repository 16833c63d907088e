"""What the columns of a CSV table say: the labels of its rows, and their parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from proxylessnas.config import DataSettings
from proxylessnas.data.labels import LABEL_COLUMNS, choose_column, not_used, one_hot_columns
from proxylessnas.data.parts import part_of
from proxylessnas.errors import DataError

PART_COLUMNS = ("split", "subset", "partition", "usage")
_FLAGS = ({"0", "1"}, {"false", "true"}, {"no", "yes"})


@dataclass(frozen=True)
class RowLabels:
    """cells: a label a row. names: of the classes, where columns are classes. parts: of the rows,
    by the words of `Source.parts`. notes: what is said of the columns."""

    cells: list[str]
    names: list[str] | None
    parts: list[str]
    notes: list[str]


def row_labels(
    name: str, table: dict[str, list[str]], images: Sequence[str], said: str, settings: DataSettings
) -> RowLabels:
    """What columns say of labels and parts. images: the columns of the images; said: of these."""
    others = [column for column in table if column not in images]
    roles = {column: _parts_of_rows(name, column, table[column]) for column in others}
    parts = next((column for column in others if roles[column]), None)
    rest = [column for column in others if column != parts]
    likely = [column for column in rest if key_of(column) in LABEL_COLUMNS]
    if not likely and len(rest) == 1:
        likely = rest
    of_parts = [f"parts from column {parts}"] if parts else []
    of_rows = (roles[parts] if parts else None) or ["train"] * len(table[images[0]])
    if not likely and settings.label_column is None:
        hot = one_hot_columns(name, {column: table[column] for column in rest})
        if hot is not None:
            classes, cells = hot
            shown = f"a column a class: {', '.join(classes[:8])}{', ...' * (len(classes) > 8)}"
            notes = [said, *of_parts, shown, *not_used(others, (parts, *classes))]
            return RowLabels(cells, classes, of_rows, notes)
    label, label_said = choose_column(name, "label", rest, likely, settings.label_column)
    notes = [said, label_said, *of_parts, *not_used(others, (label, parts))]
    return RowLabels(_whole(table[label]), None, of_rows, notes)


def _whole(cells: list[str]) -> list[str]:
    """`3` for `3.0`, as tables with empty cells are written, where all are such numbers."""
    if all(re.fullmatch(r"\d+\.0+|nan|", cell, re.IGNORECASE) for cell in cells):
        return [cell.partition(".")[0] for cell in cells]
    return cells


def key_of(column: str) -> str:
    return re.sub(r"[\s_-]+", "_", column.lower())


def _parts_of_rows(name: str, column: str, cells: Sequence[str]) -> list[str] | None:
    """The part of each row, where a column says it; None where it says something else.

    Raises:
        DataError: it is called like a column of parts, and its cells are no parts.
    """
    key, values = key_of(column), sorted(set(cells)) if len(set(cells)) < 9 else []
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
