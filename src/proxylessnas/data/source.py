"""A source of images: what every kind of data set becomes before anything is decoded."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from proxylessnas.errors import DataError

Indices = NDArray[np.int64]

SPLIT_ROLES = {  # the names of folders and splits
    "train": "train",
    "training": "train",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "test": "test",
}


class Reader(Protocol):
    """Opens images by number; every one fails alone, with one of `images.DAMAGED`."""

    def open(self, index: int) -> Image.Image: ...

    def where(self, index: int) -> str:
        """What to call the image in a message: its path, or its split and row."""
        ...


@dataclass(frozen=True)
class Source:
    """All labelled images of a data set; `train`, `valid`, `test` are disjoint image numbers.

    `valid` and `test` are None where the data set has no such part of its own.
    """

    name: str
    classes: tuple[str, ...]
    labels: Indices  # [images], one class number each
    reader: Reader
    train: Indices
    valid: Indices | None
    test: Indices | None


@dataclass(frozen=True)
class Part:
    labels: Indices  # [images of the part]; -1 where unlabelled
    reader: Reader


def assemble(name: str, classes: Sequence[str], parts: dict[str, Part]) -> Source:
    """One numbering over the parts, without the unlabelled rows.

    A part without any label, such as a hub's test split, does not exist; where there is no test
    part, a validation part is the test part.
    """
    offset, labels, readers = 0, [], []
    roles: dict[str, Indices] = {}
    for role, part in parts.items():
        known = np.flatnonzero(part.labels >= 0).astype(np.int64)
        if len(known):
            roles[role] = known + offset
        offset += len(part.labels)
        labels.append(part.labels)
        readers.append(part.reader)
    if "train" not in roles:
        raise DataError(f"{name} has no labelled training images (parts found: {sorted(parts)})")
    if "test" not in roles and "valid" in roles:
        roles["test"] = roles.pop("valid")
    joined = np.concatenate(labels).astype(np.int64)
    if joined.max() >= len(classes):
        raise DataError(f"{name} has a label {joined.max()} but only {len(classes)} class names")
    present = np.unique(joined[roles["train"]])
    if len(present) < 2:
        raise DataError(
            f"{name} has training images of {len(present)} class ({classes[present[0]]}); "
            "at least 2 are needed"
        )
    for role in ("valid", "test"):
        if role in roles and not np.isin(joined[roles[role]], present).all():
            extra = np.setdiff1d(joined[roles[role]], present)[0]
            raise DataError(f"{name}: class {classes[extra]!r} has no training image, only {role}")
    ends = tuple(int(end) for end in np.cumsum([len(part.labels) for part in parts.values()]))
    reader = readers[0] if len(readers) == 1 else _Joined(tuple(readers), ends)
    return Source(
        name=name,
        classes=tuple(classes),
        labels=joined,
        reader=reader,
        train=roles["train"],
        valid=roles.get("valid"),
        test=roles.get("test"),
    )


@dataclass(frozen=True)
class _Joined:
    """Readers one after the other; `ends` are the cumulated lengths."""

    readers: tuple[Reader, ...]
    ends: tuple[int, ...]

    def _find(self, index: int) -> tuple[Reader, int]:
        place = bisect.bisect_right(self.ends, index)
        return self.readers[place], index - (self.ends[place - 1] if place else 0)

    def open(self, index: int) -> Image.Image:
        reader, local = self._find(index)
        return reader.open(local)

    def where(self, index: int) -> str:
        reader, local = self._find(index)
        return reader.where(local)
