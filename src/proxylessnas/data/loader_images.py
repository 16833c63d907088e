"""Images of a user's own loaders, in the place of a data set that is read here.

How images are read, normalised and augmented, and how many a batch holds, is the loaders' part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from proxylessnas.architecture import InputInfo
from proxylessnas.data.augment import NONE
from proxylessnas.data.batches import WHOLE, Batches, Share
from proxylessnas.data.dataset import Images
from proxylessnas.errors import DataError

# A stand-in for each part that may be left out.
STAND_INS = {"calibration": "search", "train": "search", "scoring": "valid", "test": "valid"}
NAMES = {"search": "train"}  # as the arguments are called
MOST_CLASSES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class LoaderImages(Images):
    """Loaders of (images, labels): of the parts "search" and "valid", and of others if given.

    counts: part -> images of each class.
    bounds: the lowest and the highest number of the validation images.
    """

    loaders: Mapping[str, Batches]
    counts: Mapping[str, tuple[int, ...]]
    bounds: tuple[float, float]

    def size(self, part: str) -> int:
        return sum(self.class_counts(part))

    def class_counts(self, part: str) -> list[int]:
        return list(self.counts[_present(part, self.counts)])

    def batches(
        self,
        part: str,
        batch_size: int,
        *,
        augment: bool | str = False,
        shuffle: bool = False,
        seed: int = 0,
    ) -> Batches:
        """The loader's batches as they come; images as the network will see them, where that is
        asked for and such were given (`calibration`, `scoring`)."""
        plain = {"search": "calibration", "valid": "scoring"}.get(part, part)
        return self.loaders[_present(part if augment else plain, self.loaders)]

    def resized(self, side: int | None) -> LoaderImages:
        """The same images at another size."""
        channels, height, width = self.info.shape
        if side is None or (side, side) == (height, width):
            return self
        loaders = {part: _Resized(batches, side) for part, batches in self.loaders.items()}
        return replace(self, info=replace(self.info, shape=(channels, side, side)), loaders=loaders)

    def check_normalised(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Refuse images that were normalised otherwise, as far as their numbers tell.

        Raises:
            DataError: they are beyond what pixels become, or none is below 0.
        """
        (low, high), pairs = self.bounds, list(zip(mean, std, strict=True))
        least = min(-m / s for m, s in pairs)
        most = max((1 - m) / s for m, s in pairs)
        slack = (most - least) / 4  # interpolation may go beyond a little
        if low >= 0 or low < least - slack or high > most + slack:
            raise DataError(
                f"the images of the loaders are not normalised as the weights want: their numbers "
                f"are from {low:.3g} to {high:.3g}; scale pixels to [0, 1], then Normalize(mean="
                f"{_rounded(mean)}, std={_rounded(std)})"
            )

    def __str__(self) -> str:
        sizes = ", ".join(
            f"{sum(counts):,} {NAMES.get(part, part)}" for part, counts in self.counts.items()
        )
        shape = " x ".join(map(str, self.info.shape))
        return f"{sizes} images of {len(self.info.classes)} classes; {shape} numbers an image"


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]


def _present(part: str, parts: Mapping[str, object]) -> str:
    """The part, or what stands in for it."""
    while part not in parts:
        part = STAND_INS[part]
    return part


@dataclass(frozen=True)
class _Resized:
    """Batches whose images are resized, as photos are when they are decoded smaller."""

    batches: Batches
    side: int

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(
        self, epoch: int, start: int = 0, *, step: int = 1, share: Share = WHOLE
    ) -> Iterator[Any]:
        size = (self.side, self.side)
        for images, labels in self.batches.epoch(epoch, start, step=step, share=share):
            yield functional.interpolate(images, size, mode="bilinear", antialias=True), labels


# --- one look at everything ---


def look_at(
    loaders: Mapping[str, Batches],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LoaderImages:
    """The loaders' images, after an epoch of each.

    loaders: part -> batches; "search" and "valid" at least.

    Raises:
        DataError: a batch is not images [batch, channels, height, width] of one shape with labels
            [batch], or a class has no training image.
    """
    total, done = sum(map(len, loaders.values())), 0
    shape: tuple[int, ...] = ()
    counts: dict[str, Tensor] = {}
    for part, batches in loaders.items():
        name, low, high = NAMES.get(part, part), float("inf"), -float("inf")
        counts[part] = torch.zeros(MOST_CLASSES, dtype=torch.long)
        for batch in batches.epoch(0):
            images, labels = _checked(batch, name)
            shape = shape or tuple(images.shape[1:])
            if tuple(images.shape[1:]) != shape:
                raise DataError(
                    f"the {name} loader has images {list(images.shape[1:])} beside images "
                    f"{list(shape)}: bring all to one size"
                )
            counts[part] += torch.bincount(labels.cpu(), minlength=MOST_CLASSES)
            low, high = min(low, float(images.min())), max(high, float(images.max()))
            done += 1
            progress(done, total)
        if part == "valid":
            bounds = low, high
    classes = _classes(counts, loaders["search"])
    return LoaderImages(
        info=InputInfo(shape=shape, classes=classes),
        augmentation=NONE,
        loaders=loaders,
        counts={part: tuple(count[: len(classes)].tolist()) for part, count in counts.items()},
        bounds=bounds,
    )


def _checked(batch: Any, name: str) -> tuple[Tensor, Tensor]:
    """The images and labels of a batch."""
    pair = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (None, None)
    images, labels = (x if isinstance(x, Tensor) else torch.empty(0, 0) for x in pair)
    if images.dim() != 4 or labels.dim() != 1 or len(images) != len(labels):
        raise DataError(
            f"a batch of the {name} loader is {_words(batch)}; with pretrained it must be a pair: "
            "images [batch, channels, height, width] and labels [batch]"
        )
    if not images.is_floating_point() or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"the {name} loader gives images of {images.dtype} and labels of {labels.dtype}; "
            "images must be float32, normalised, and labels int64 class numbers"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < MOST_CLASSES:
        raise DataError(
            f"the {name} loader has labels from {int(labels.min())} to {int(labels.max())}; they "
            f"must be class numbers from 0 on, below {MOST_CLASSES:,}"
        )
    return images, labels


def _words(batch: Any) -> str:
    """What a batch is, for a message."""
    parts = batch if isinstance(batch, tuple | list) else [batch]
    kinds = (str(list(p.shape)) if isinstance(p, Tensor) else type(p).__name__ for p in parts[:3])
    return f"{type(batch).__name__} of {', '.join(kinds)}"


def _classes(counts: Mapping[str, Tensor], train: Batches) -> tuple[str, ...]:
    """Names of the classes: those of the loader's data set if it has as many, else numbers."""
    trained = counts["search"] > 0
    for part, count in counts.items():
        untrained = ((count > 0) & ~trained).nonzero()[:, 0].tolist()
        if untrained:
            raise DataError(
                f"the {NAMES.get(part, part)} loader has the label {untrained[0]}, of which the "
                "train loader has no image"
            )
    number = int(trained.nonzero().max()) + 1
    missing = (~trained[:number]).nonzero()[:, 0].tolist()
    if missing:
        raise DataError(
            f"the train loader has labels up to {number - 1}, but no image of {missing[0]}: number "
            "the classes from 0 on without gaps"
        )
    if number < 2:
        raise DataError("the train loader has images of 1 class; at least 2 are needed")
    data_set = getattr(getattr(train, "loader", None), "dataset", None)
    names = tuple(map(str, getattr(data_set, "classes", None) or ()))
    return names if len(names) == number else tuple(map(str, range(number)))
