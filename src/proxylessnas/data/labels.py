"""The columns of a table, and its labels to class numbers; of CSV files and of Hugging Face."""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from proxylessnas.data.source import Indices
from proxylessnas.errors import DataError, did_you_mean

IMAGE_COLUMNS = (
    *("image", "img", "images", "picture", "photo", "pixels", "pixel_values", "file", "filename"),
    *("file_name", "filepath", "file_path", "path", "image_path", "image_id", "id"),
)
LABEL_COLUMNS = (
    *("label", "labels", "class", "classes", "target", "category", "fine_label", "class_name"),
    *("class_id", "label_name", "y", "species", "breed"),
)
LEAST_TAGGED = 6  # classes, of which combinations of words are told
_PLAIN = {"image": ("image", "img"), "label": ("label", "labels")}  # preferred to all others


def choose_column(
    name: str, meaning: str, columns: Collection[str], candidates: Sequence[str], asked: str | None
) -> tuple[str, str]:
    """The column of the images or of the labels, and what is said of it.

    meaning: "image" or "label". candidates: the columns that look like one.
    asked: the setting `loading.image_column` or `loading.label_column`.

    Raises:
        DataError: there is none, several, or not the one that was asked for.
    """
    option = f"--loading.{meaning}-column"
    if asked is not None:
        if asked not in columns:
            raise DataError(f"{name} has no column {asked!r}; {did_you_mean(asked, columns)}")
        return asked, f"{meaning} column {asked}"
    if not candidates:
        first = [*columns][:20]
        more = f" and {len(columns) - len(first)} more" if len(columns) > len(first) else ""
        raise DataError(
            f"{name} has no {meaning} column (expected: {meaning}, or {option}); its columns: "
            f"{', '.join(first)}{more}"
        )
    plain = [column for column in candidates if column.lower() in _PLAIN[meaning]]
    if len(candidates) > 1 and len(plain) != 1:
        raise DataError(
            f"{name} has {len(candidates)} {meaning} columns: {', '.join(candidates)}; choose with "
            f"{option} {candidates[0]}"
        )
    chosen = plain[0] if plain else candidates[0]
    return chosen, f"{meaning} column {chosen}"


def one_hot_columns(
    name: str, columns: Mapping[str, Sequence[Any]]
) -> tuple[list[str], list[str]] | None:
    """Columns that are a class each, 1 in one of them and 0 in the others, and each row's class.

    None where there are no two columns of 0 and 1.

    Raises:
        DataError: a row has another number of 1 than one.
    """
    bits = {column: [_bit(value) for value in values] for column, values in columns.items()}
    hot = [column for column, values in bits.items() if None not in values]
    if len(hot) < 2:
        return None
    rows = list(zip(*(bits[column] for column in hot), strict=True))
    for number, row in enumerate(rows, 1):
        if sum(filter(None, row)) != 1:
            raise DataError(
                f"{name} has no label column, and its columns of 0 and 1 ({', '.join(hot[:6])}) "
                f"are no classes: row {number} has {row.count(1)} of 1, and an image has one class;"
                " choose a column with --loading.label-column, or leave out what is no class"
            )
    return hot, [hot[row.index(1)] for row in rows]


def _bit(value: Any) -> int | None:
    try:
        return {0.0: 0, 1.0: 1}.get(float(value))
    except (TypeError, ValueError):
        return None


def not_used(columns: Iterable[str], used: Collection[str | None]) -> list[str]:
    """What is said of the columns that are of no use here, split and fold numbers among them."""
    names = [column for column in columns if column not in used]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    shown = ", ".join(column or "(without a name)" for column in names[:8])
    return [f"columns not used: {shown}{more}"] if names else []


def class_numbers(
    name: str, values: Mapping[str, Sequence[Any]], names: Sequence[str] | None
) -> tuple[list[str], dict[str, Indices]]:
    """Class names, and the labels of each part as their numbers, -1 where there is none.

    values: part -> a number, a name, a list of one of them, or a one-hot list an image.
    names: of the numbers where the schema has them; else the classes are the training labels.

    Raises:
        DataError: a label is none of these, or not one of the training part.
    """
    plain = {part: _plain_labels(name, labels, names) for part, labels in values.items()}
    if not names:
        _refuse_what_is_no_class(name, plain["train"])
    ordered: Sequence[Any] = names or _ordered(set(plain["train"]))
    written = [_composed(str(label)) for label in ordered]
    classes = list(dict.fromkeys(written))  # names that Unicode writes in two ways are one class
    place = {text: number for number, text in enumerate(classes)}
    places = [place[text] for text in written]
    numbers: dict[Any, int] = dict(
        zip(range(len(names)) if names else ordered, places, strict=True)
    )
    if names:  # a part may have names where another has numbers
        numbers |= dict(zip(written, places, strict=True))
    numbers = {None: -1, -1: -1} | numbers
    for part, labels in plain.items():
        for label in labels:
            if label not in numbers:
                raise DataError(f"{name}: {part} has the label {label!r}, train has not")
    return classes, {
        part: np.array([numbers[label] for label in labels], dtype=np.int64)
        for part, labels in plain.items()
    }


def _refuse_what_is_no_class(name: str, labels: Sequence[int | str | None]) -> None:
    """DataError where labels are numbers to predict, names of images, or several in one text."""
    values = {label for label in labels if label is not None}
    if len(values) > max(2, len(labels) / 2):
        some = ", ".join(map(str, list(dict.fromkeys(labels))[:3]))
        raise DataError(
            f"{name} has {len(values):,} different labels for {len(labels):,} training images "
            f"({some}, ...): these are no classes, but numbers to predict or names of images; "
            "choose a column with --loading.label-column"
        )
    for label in values:
        text = label if isinstance(label, str) else ""
        pieces = re.split(r"[|;]", text)
        several = len(pieces) > 1 and any(piece.strip() in values for piece in pieces)
        words = re.split(r"[\s,]+", text)  # a name may have a comma or a space, too
        if several or (len({*words}) > 1 and values.issuperset(words)):
            raise DataError(
                f"{name}: one label an image is expected, not several ({label!r:.80}); choose a "
                "column with --loading.label-column"
            )
    _warn_of_tags(name, {label for label in values if isinstance(label, str)})


def _warn_of_tags(name: str, labels: set[str]) -> None:
    """Labels that are made of fewer words than there are labels: probably several to an image."""
    words = [set(re.findall(r"\w+", label)) for label in labels]
    vocabulary = set().union(*words)
    if len(labels) >= LEAST_TAGGED and len(vocabulary) < len(labels) <= 2 * sum(
        len(of_one) > 1 for of_one in words
    ):
        some = " and ".join(map(repr, sorted(labels)[:2]))
        warnings.warn(
            f"{name}: {len(labels)} classes are made of {len(vocabulary)} words, such as {some}: "
            "if these are several labels of an image, each combination is now a class of its own",
            stacklevel=2,
        )


def _ordered(labels: set[Any]) -> list[Any]:
    """Numbers in their order, names in theirs; -1 is no class where there are two others."""
    labels = labels - ({None, -1} if len(labels - {None, -1}) > 1 else {None})
    if all(isinstance(label, int) or re.fullmatch(r"\d{1,18}", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), str(label)))
    return sorted(labels, key=str)


def _plain_labels(
    name: str, labels: Sequence[Any], names: Sequence[str] | None
) -> list[int | str | None]:
    """Each label as a number or a name, None where there is none."""
    lists = [label for label in labels if _is_list(label)]
    several = next((label for label in lists if len(label) != 1), None)
    if several is None:
        return [_plain(name, label) for label in labels]
    if names or not _one_hot(lists):
        raise DataError(
            f"{name}: one label an image is expected, not several ({several!r:.80}); choose a "
            "column with --loading.label-column"
        )
    return [_plain(name, label.index(1) if _is_list(label) else label) for label in labels]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _one_hot(lists: Sequence[Sequence[Any]]) -> bool:
    """Whether all lists are as long as one another, and have one 1 among zeros."""
    numbers = all(isinstance(value, int | float) for label in lists for value in label)
    return (
        numbers
        and len({len(label) for label in lists}) == 1
        and all(sorted(label) == [0] * (len(label) - 1) + [1] for label in lists)
    )


def _plain(name: str, value: Any) -> int | str | None:
    if _is_list(value) and len(value) == 1:
        return _plain(name, value[0])
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return None if value.strip().lower() == "nan" else _composed(value) or None
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, int):
        return value
    raise DataError(f"{name}: a label is one number or name an image, not {value!r:.80}")


def _composed(text: str) -> str:
    """Without spaces around it, and in the composed form of Unicode."""
    return unicodedata.normalize("NFC", text.strip())
