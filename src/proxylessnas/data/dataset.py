"""`ImageData`: a data set that was read and split, and a summary of what was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from proxylessnas.architecture import InputInfo
from proxylessnas.data.augment import NONE, Augmentation
from proxylessnas.data.image_batches import ImageBatches
from proxylessnas.data.source import Indices
from proxylessnas.data.stores import ImageStore, PixelsInMemory
from proxylessnas.errors import DataError


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What was read; `str` of it is a line for people.

    source: the data spec or folder.
    parts: images of "train", which is "search" and "valid" together, and of "test".
    classes: name -> images of the class, all parts together; in the order of the labels.
    heights, widths: (smallest, largest) of the image files whose headers were read, in pixels.
    shape: (channels, height, width) that images are brought to.
    damaged: images that cannot be decoded, each with the reason.
    left_out: reason -> files or images that are in no part, the damaged ones included.
    """

    source: str
    parts: Mapping[str, int]
    classes: Mapping[str, int]
    heights: tuple[int, int]
    widths: tuple[int, int]
    shape: tuple[int, ...]
    damaged: tuple[str, ...]
    left_out: Mapping[str, int]

    def __str__(self) -> str:
        counts = {part: f"{count:,} {part}" for part, count in self.parts.items()}
        each = _interval(min(self.classes.values()), max(self.classes.values()))
        channels, height, width = self.shape
        facts = [
            f"{counts['train']} images ({counts['search']}, {counts['valid']}), {counts['test']}",
            f"{len(self.classes)} classes of {each}",
            f"files of {_interval(*self.heights)} x {_interval(*self.widths)} pixels",
            f"read as {height} x {width} {'gray' if channels == 1 else 'RGB'}",
        ]
        if self.left_out:
            reasons = ", ".join(f"{count:,} ({why})" for why, count in self.left_out.items())
            facts.append(f"left out {reasons}")
        return "; ".join(facts)


def _interval(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set with fixed parts: train = search + valid, and test; made by `load_data`.

    info: the shape of an input, mean, deviation and classes.
    augmentation: what `batches(augment=True)` does.
    store: the images of all parts; rows: part -> its images in the store.
    """

    info: InputInfo
    summary: DataSummary
    augmentation: Augmentation
    store: ImageStore
    rows: Mapping[str, Indices]

    @property
    def in_memory(self) -> bool:
        """Whether the images are decoded already; else they stream through workers."""
        return isinstance(self.store, PixelsInMemory)

    def size(self, part: str) -> int:
        """The number of images of "train", "search", "valid" or "test"."""
        return len(self._rows(part))

    def batches(
        self,
        part: str,
        batch_size: int,
        *,
        augment: bool | str = False,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
    ) -> ImageBatches:
        """The batches of a part; order and augmentation depend on `seed`, part and epoch.

        part: "train" all training images, "search" those without "valid", "valid" the held-out
            ones, "test".
        augment: True: as the data were loaded for; or another augmentation in words.

        Raises:
            ValueError: there is no such part, or the batch size is not positive.
            DataError: `drop_last` would leave no batch at all.
        """
        rows = self._rows(part)
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: at least 1")
        if drop_last and batch_size > len(rows):
            raise DataError(
                f"a batch of {batch_size} is more than the {len(rows)} images of the {part} part "
                f"of {self.summary.source}; choose a smaller batch"
            )
        default = self.augmentation if augment else NONE
        return ImageBatches(
            store=self.store,
            rows=torch.from_numpy(rows),
            info=self.info,
            part=part,
            batch_size=batch_size,
            augmentation=self.parse(augment) if isinstance(augment, str) else default,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )

    def parse(self, augment: str) -> Augmentation:
        """The augmentation that `augment` says in words; DataError where it is not understood."""
        return Augmentation.parse(augment, shape=self.info.shape, classes=self.info.classes)

    def _rows(self, part: str) -> Indices:
        if part not in self.rows:
            raise ValueError(f"part {part!r}: one of {', '.join(self.rows)}")
        return self.rows[part]
