"""`Source`: what every kind of data set becomes before any image is decoded."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from proxylessnas.errors import DataError

Indices = NDArray[np.int64]


class ImageReader(Protocol):
    """Opens the images of a data set by number."""

    def open(self, index: int) -> Image.Image:
        """The image, not yet decoded; a damaged one raises one of `decode.DAMAGED`."""
        ...

    def describe(self, index: int) -> str:
        """What a message calls the image: its path, or its split and row."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Reads images from files."""

    paths: tuple[str, ...]

    def open(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])

    def describe(self, index: int) -> str:
        return self.paths[index]


@dataclass(frozen=True)
class SplitPart:
    """One part of a data set as it was stored; labels are -1 where an image has none."""

    labels: Indices  # [images of the part]
    reader: ImageReader


@dataclass(frozen=True)
class Source:
    """All images of a data set, numbered across its parts.

    name: the data spec or folder.
    classes: names in the order of the labels.
    labels: [images], the class number of each; -1 where an image has none.
    parts: "train", mostly "test" and sometimes "valid" -> disjoint numbers of labelled images.
    left_out: reason -> files or images of the data set that are in no part, or 0.
    notes: how the data set was meant, where there was a choice: folders, splits, columns.
    digests: part -> (of names, sizes and labels; of times): others where the data have changed.
    """

    name: str
    classes: tuple[str, ...]
    labels: Indices
    reader: ImageReader
    parts: Mapping[str, Indices]
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    digests: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def assemble(
    name: str,
    classes: Sequence[str],
    parts: Mapping[str, SplitPart],
    left_out: Mapping[str, int] | None = None,
    *,
    notes: Sequence[str] = (),
    digests: Mapping[str, tuple[str, str]] | None = None,
) -> Source:
    """One numbering over the parts, without the images that have no label.

    digests: part -> (of names and sizes, of times).

    A part without any label, such as the test split of a competition, does not count as a part;
    where there is no test part, a validation part is the test part.

    Raises:
        DataError: no labelled training image, fewer than 2 classes, or labels without a class.
    """
    labels = np.concatenate([part.labels for part in parts.values()]).astype(np.int64)
    starts = np.cumsum([0, *(len(part.labels) for part in parts.values())]).tolist()
    numbers: dict[str, Indices] = {}
    unused = dict(left_out or {})
    for (role, part), start in zip(parts.items(), starts, strict=False):
        labelled = np.flatnonzero(part.labels >= 0).astype(np.int64)
        if len(labelled):
            numbers[role] = labelled + start
        unused[f"{role} image without a label"] = len(part.labels) - len(labelled)
    if "test" not in numbers and "valid" in numbers:
        numbers["test"] = numbers.pop("valid")
        notes = [*notes, "the validation part is the test part"]
    alike = _alike(classes)
    if alike:
        notes = [*notes, f"classes whose names differ in case alone: {', '.join(alike[:6])}"]
    if "train" not in numbers:
        raise DataError(f"{name} has no labelled training images (its parts: {sorted(parts)})")
    _check_classes(name, classes, {role: labels[chosen] for role, chosen in numbers.items()})
    return Source(
        name=name,
        classes=tuple(classes),
        labels=labels,
        reader=joined([part.reader for part in parts.values()], starts),
        parts=numbers,
        left_out=unused,
        notes=tuple(notes),
        digests={
            role: (_with_labels(names, parts[role].labels), times)
            for role, (names, times) in (digests or {}).items()
            if role in parts
        },
    )


def _alike(classes: Sequence[str]) -> list[str]:
    """Words that are the same but for their case; letters and signs are classes of their own."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(name.casefold(), []).append(name)
    return [n for names in groups.values() if len(names) > 1 for n in names if len(n) > 1]


def _with_labels(names: str, labels: Indices) -> str:
    """The digest of a part's names and labels."""
    return hashlib.sha256(names.encode() + labels.tobytes()).hexdigest()[:32]


def digest(images: Mapping[str, tuple[int, int]]) -> tuple[str, str]:
    """Of a part's images, name -> (size, time): the digest of names and sizes, and of times."""
    names, times = hashlib.sha256(), hashlib.sha256()
    for name, (size, time) in images.items():
        names.update(f"{size} {name}\0".encode("utf-8", "surrogateescape"))
        times.update(f"{time} ".encode())
    return names.hexdigest()[:32], times.hexdigest()[:32]


def _check_classes(name: str, classes: Sequence[str], labels: Mapping[str, Indices]) -> None:
    """Every label has a class name, and every class of any part occurs in training."""
    largest = max(int(part.max()) for part in labels.values())
    if largest >= len(classes):
        raise DataError(f"{name} has a label {largest} but only {len(classes)} class names")
    trained = np.unique(labels["train"])
    if len(trained) < 2:
        raise DataError(
            f"{name} has training images of {len(trained)} class ({classes[trained[0]]}); "
            "at least 2 are needed"
        )
    for role, part in labels.items():
        untrained = np.setdiff1d(part, trained)
        if len(untrained):
            raise DataError(
                f"{name}: class {classes[untrained[0]]!r} has no training image, only {role}"
            )


def joined(readers: Sequence[ImageReader], starts: Sequence[int]) -> ImageReader:
    """Readers as one; `starts` are the numbers of their first images, in one numbering."""
    return readers[0] if len(readers) == 1 else _JoinedReaders(tuple(readers), tuple(starts))


@dataclass(frozen=True)
class _JoinedReaders:
    """Readers one after the other; `starts` are the numbers of their first images."""

    readers: tuple[ImageReader, ...]
    starts: tuple[int, ...]

    def open(self, index: int) -> Image.Image:
        reader, local = self._locate(index)
        return reader.open(local)

    def describe(self, index: int) -> str:
        reader, local = self._locate(index)
        return reader.describe(local)

    def _locate(self, index: int) -> tuple[ImageReader, int]:
        position = bisect.bisect_right(self.starts, index) - 1
        return self.readers[position], index - self.starts[position]
