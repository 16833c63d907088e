"""What is to be said of the content of images: practically none, of one colour, seen before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxylessnas.architecture import InputInfo
from proxylessnas.data.decode import ImageShape
from proxylessnas.data.source import Indices, Source

FAINT = 5  # of 255: a set is practically constant if no channel has a greater deviation
ALIKE = 8  # of 255: images of one colour are of the same one if they differ by no more


class Header(NamedTuple):
    """What the header of an image file says."""

    shape: ImageShape
    is_deep: bool
    is_transparent: bool
    frames: int


class Blank(NamedTuple):
    """An image of one colour: its number, and the mean of each channel."""

    number: int
    means: tuple[float, ...]


@dataclass(frozen=True)
class Statistics:
    """Over the training images that were counted: how often each value of a pixel occurs, int64
    [channels, 256]; how many images there are; and those of one colour. Over all that were decoded:
    number -> a hash of the pixels, but for images of one colour."""

    counts: NDArray[np.int64]
    images: int
    blanks: tuple[Blank, ...]
    hashes: Mapping[int, bytes]


def of_depth(info: InputInfo) -> list[str]:
    notes = []
    if info.value_range is not None:
        low, high = info.value_range
        notes += [f"images of more than 8 bits: values from {low:g} to {high:g} become 0 to 255"]
    if info.background == "black":
        notes += ["transparent pixels are put on black: on white there is nothing to see"]
    return notes


def nothing_to_see(source: Source, statistics: Statistics) -> str:
    """Why the images have practically no content; empty where they have."""
    counts, blanks = statistics.counts, statistics.blanks
    remedy = "look at the files: is their content in another range, channel or frame?"
    if statistics.images and max(mean_and_std(counts)[1]) * 255 < FAINT:
        used = np.flatnonzero(counts.sum(0))
        return (
            f"the images of {source.name} are practically constant: their pixels are from "
            f"{used[0]} to {used[-1]} of 0 to 255, with a deviation under {FAINT}; {remedy}"
        )
    same = bool(blanks) and np.ptp([blank.means for blank in blanks], axis=0).max() <= ALIKE
    if same and 2 * len(blanks) > statistics.images:
        return (
            f"{len(blanks):,} of {statistics.images:,} images of {source.name} are of one and the "
            f"same colour, such as {source.reader.describe(blanks[0].number)}; {remedy}"
        )
    return ""


def of_content(headers: Sequence[Header], sampled: bool, statistics: Statistics) -> list[str]:
    """What is to be said of it. sampled: whether there are more images than headers."""
    blanks = statistics.blanks
    moving = sum(header.frames > 1 for header in headers)
    of_sample = f" of {len(headers):,} looked at" if sampled else ""
    notes = [f"{len(blanks):,} training images of one colour"] if blanks else []
    if moving:
        notes.append(f"{moving:,}{of_sample} animated or of several pages: the first is read")
    return notes


def of_twins(
    source: Source, parts: Mapping[str, Indices], hashes: Mapping[int, bytes]
) -> list[str]:
    """What is to be said of images that are there more than once, as far as all were looked at."""
    notes, first = [], {hashes[n]: n for n in parts["train"].tolist() if n in hashes}
    for role, numbers in ((role, part.tolist()) for role, part in parts.items()):
        twins = [(n, first[hashes[n]]) for n in numbers if hashes.get(n) in first]
        if role != "train" and twins:
            notes.append(
                f"{len(twins):,} of {len(numbers):,} {role} images are in the training part as "
                "well, pixel for pixel: what they score is learned by heart"
            )
        unlike = [pair for pair in twins if source.labels[pair[0]] != source.labels[pair[1]]]
        if unlike:
            one, other = map(source.reader.describe, unlike[0])
            notes.append(
                f"{len(unlike):,} {role} images have another label in the training part, such as "
                f"{one} and {other}"
            )
    return notes


def mean_and_std(counts: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, of pixels in [0, 1]; the deviation of a constant channel is 1/255.

    counts: [channels, 256], how often each value of a pixel occurs.
    """
    values = np.arange(256) / 255
    total = counts.sum(axis=1)
    mean = counts @ values / total
    variance = (counts * (values[None] - mean[:, None]) ** 2).sum(axis=1) / total
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())
