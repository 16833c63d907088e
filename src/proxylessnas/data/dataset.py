"""`ImageData`: a data set that was read and split, and a summary of what was read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from proxylessnas.architecture import InputInfo
from proxylessnas.data.augment import NONE, Augmentation
from proxylessnas.data.batches import Batches
from proxylessnas.data.decode import ImageShape
from proxylessnas.data.image_batches import ImageBatches
from proxylessnas.data.source import Indices
from proxylessnas.data.stores import ImageStore

MOST_NAMED = 20  # classes that a line holds


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """Counts of everything that was read; `str` gives lines for people.

    source: the data spec or folder.
    parts: images of "train", which is "search" and "valid" together, and of "test".
    classes: name -> images of the class, all parts together; in the order of the labels.
    file_shapes: the distinct shapes of (a sample of) the image files.
    shape: (channels, height, width) that images are brought to.
    damaged: images that cannot be decoded, each with the reason.
    left_out: reason -> files or images that are in no part, the damaged ones included.
    notes: how the data set was meant, and what was seen of its images.
    """

    source: str
    parts: Mapping[str, int]
    classes: Mapping[str, int]
    file_shapes: frozenset[ImageShape]
    shape: tuple[int, ...]
    damaged: tuple[str, ...]
    left_out: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        images = {part: f"{count:,} {part}" for part, count in self.parts.items()}
        heights = _interval(shape.height for shape in self.file_shapes)
        widths = _interval(shape.width for shape in self.file_shapes)
        colors = " and ".join(_color(c) for c in sorted({s.channels for s in self.file_shapes}))
        channels, height, width = self.shape
        lines = [
            f"{images['train']} images ({images['search']}, {images['valid']}), {images['test']}",
            f"{len(self.classes)} classes: {named(self.classes)}",
            f"files of {heights} x {widths} pixels, {colors}; read as {height} x {width} "
            f"{_color(channels)}",
            *(["; ".join(self.notes)] if self.notes else []),
        ]
        if self.left_out:
            reasons = (f"{count:,} ({reason})" for reason, count in self.left_out.items())
            lines.append(f"left out: {', '.join(reasons)}")
        return "\n".join(lines)


def _color(channels: int) -> str:
    return "gray" if channels == 1 else "RGB"


def named(classes: Mapping[str, int]) -> str:
    """Each class with its images; of many the smallest and the largest."""
    if len(classes) <= MOST_NAMED:
        return ", ".join(f"{name:.60} {count:,}" for name, count in classes.items())
    ordered = sorted(classes.items(), key=lambda item: item[1])
    ends = " ... ".join(f"{name:.60} {count:,}" for name, count in (ordered[0], ordered[-1]))
    return f"{_interval(classes.values())} images each, {ends}"


def _interval(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    low, high = ordered[0], ordered[-1]
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


@dataclass(frozen=True, kw_only=True)
class Images(ABC):
    """Images of classes in fixed parts, wherever they are: train = search + valid, and test.

    info: the shape of an input, mean, deviation and classes.
    augmentation: of the training images, in `batches(augment=True)`.
    digests: part as it was stored -> (images, digest of names, sizes and labels, of times); files
        have them.
    """

    info: InputInfo
    augmentation: Augmentation
    digests: Mapping[str, tuple[int, str, str]] = field(default_factory=dict)

    @abstractmethod
    def size(self, part: str) -> int:
        """The number of images of "train", "search", "valid" or "test"."""

    @abstractmethod
    def class_counts(self, part: str) -> list[int]:
        """The number of a part's images of every class."""

    @abstractmethod
    def batches(
        self,
        part: str,
        batch_size: int,
        *,
        augment: bool | str = False,
        shuffle: bool = False,
        seed: int = 0,
    ) -> Batches:
        """The batches of a part, see `ImageData.batches`."""


@dataclass(frozen=True, kw_only=True)
class ImageData(Images):
    """A data set with fixed parts: train = search + valid, and test; made by `load_data`.

    store: the images of all parts; rows: part -> its images in the store.
    """

    summary: DataSummary
    store: ImageStore
    rows: Mapping[str, Indices]

    def size(self, part: str) -> int:
        return len(self._rows(part))

    def class_counts(self, part: str) -> list[int]:
        labels = np.asarray(self.store.labels)[self._rows(part)]
        counts: list[int] = np.bincount(labels, minlength=len(self.info.classes)).tolist()
        return counts

    def batches(
        self,
        part: str,
        batch_size: int,
        *,
        augment: bool | str = False,
        shuffle: bool = False,
        seed: int = 0,
    ) -> ImageBatches:
        """The batches of a part; order and augmentation depend on `seed`, part and epoch.

        part: "train" all training images, "search" those without "valid", "valid" the held-out
            ones, "test".
        augment: True: as the data were loaded for; or another augmentation in words.

        Raises:
            ValueError: there is no such part, or the batch size is not positive.
            DataError: the augmentation is not understood.
        """
        rows = self._rows(part)
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: at least 1")
        if isinstance(augment, str):
            augmentation = Augmentation.parse(augment, self.info)
        else:
            augmentation = self.augmentation if augment else NONE
        return ImageBatches(
            store=self.store,
            rows=torch.from_numpy(rows),
            info=self.info,
            part=part,
            batch_size=batch_size,
            augmentation=augmentation,
            shuffle=shuffle,
            seed=seed,
        )

    def _rows(self, part: str) -> Indices:
        if part not in self.rows:
            raise ValueError(f"part {part!r}: one of {', '.join(self.rows)}")
        return self.rows[part]
