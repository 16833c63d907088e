"""All images looked at once: their sizes, which are damaged, mean and deviation, pixels in memory.

A data set says of itself how its images become inputs: images of one small size keep that size
and stay in memory, decoded; all others are photos, which are cropped to 224 x 224 anew whenever
they are needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxylessnas.architecture import InputInfo
from proxylessnas.data.content import (
    Blank,
    Header,
    Statistics,
    mean_and_std,
    nothing_to_see,
    of_content,
    of_depth,
    of_twins,
)
from proxylessnas.data.decode import (
    DamagedImage,
    ImageShape,
    Pixels,
    decode,
    deep_range,
    is_deep,
    opened,
    shape_of,
)
from proxylessnas.data.source import ImageReader, Indices, Source
from proxylessnas.data.watching import EVERY, Progress
from proxylessnas.errors import DataError
from proxylessnas.io.process import usable_cpus

T = TypeVar("T")

DEFAULT_SIZE = 224  # pixels; of images of mixed size, and of larger ones
MEMORY_BYTES = 2**30  # sets up to this size, decoded, are kept in memory
SAMPLE = 4096  # images whose headers and pixels are looked at, where not all are
PHOTO_SHARE = 0.875  # of a photo's shorter side is seen in evaluation
DEEP_SAMPLE = 512  # images of more than 8 bits that tell the range of their values
BLANK = 3  # of 255: an image is of one colour if no channel has a greater range
_BLOCK = 16  # images that a thread decodes at a time; a slow disk soon shows a count


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What looking at the images of a data set tells.

    info: how images become inputs; mean and deviation of (a sample of) the training images.
    file_shapes: the distinct shapes of (a sample of) the image files.
    examined: the number of images that were decoded, or could not be.
    damaged: the images that cannot be decoded, each with the reason.
    numbers: all other images, in the source's numbering; rows: part -> its positions therein.
    pixels: uint8 [numbers, C, H, W] of a set in memory; else None.
    notes: what is to be said of the images' content.
    """

    info: InputInfo
    file_shapes: frozenset[ImageShape]
    examined: int
    damaged: tuple[str, ...]
    numbers: Indices
    rows: Mapping[str, Indices]
    pixels: Tensor | None
    notes: Sequence[str]


def survey_images(
    source: Source,
    parts: Mapping[str, Indices],
    image_size: int | None,
    accept: Callable[[InputInfo], object],
    progress: Progress,
) -> Survey:
    """Decode every image of a set in memory or of a small set, of others a training sample.

    accept: called before anything is decoded, for its errors; mean and std are still empty.

    Raises:
        DataError: no image can be opened, or the images are practically constant.
    """
    numbers = np.concatenate(list(parts.values()))
    headers, sample = read_headers(source.reader, numbers, progress), evenly(parts["train"], SAMPLE)
    file_shapes = frozenset(header.shape for header in headers)
    has_deep, background = any(header.is_deep for header in headers), InputInfo.background
    while True:
        info, only_size = choose_format(file_shapes, len(numbers), image_size)
        examined = numbers if only_size or len(numbers) <= SAMPLE else sample
        values = _deep_range(source.reader, sample, examined) if has_deep else None
        info = replace(info, classes=source.classes, value_range=values, background=background)
        accept(info)
        survey = _Survey(source.reader, info, only_size, has_deep)
        try:
            pixels, damaged, statistics = survey.decode_all(
                examined, frozenset(sample.tolist()), progress
            )
            nothing = nothing_to_see(source, statistics)
            if not nothing:
                break
            if background == "black" or not any(header.is_transparent for header in headers):
                raise DataError(nothing)
            background = "black"  # a drawing in white
        except UnexpectedShape as unexpected:  # not all files are as the sample promised
            file_shapes |= set(unexpected.args)
        except UnexpectedDepth:
            has_deep = True
    mean, std = mean_and_std(statistics.counts)
    intact = ~np.isin(numbers, list(damaged))
    roles = np.repeat(list(parts), [len(part) for part in parts.values()])[intact]
    return Survey(
        info=replace(info, mean=mean, std=std),
        file_shapes=file_shapes,
        examined=len(examined),
        damaged=tuple(damaged[number] for number in sorted(damaged)),
        numbers=numbers[intact],
        rows={part: np.flatnonzero(roles == part).astype(np.int64) for part in parts},
        pixels=torch.from_numpy(pixels[intact] if damaged else pixels) if only_size else None,
        notes=[
            *of_depth(info),
            *of_content(headers, len(headers) == SAMPLE, statistics),
            *of_twins(source, parts, statistics.hashes),
        ],
    )


def read_headers(reader: ImageReader, numbers: Indices, progress: Progress) -> list[Header]:
    """Those of a sample, nothing decoded; DataError if no image has one."""
    sample = evenly(numbers, SAMPLE).tolist()

    def read(block: range) -> list[Header | DamagedImage]:
        return [_header(reader, number) for number in sample[block.start : block.stop]]

    blocks = _in_blocks(len(sample), read, progress, "headers")
    found = [header for block in blocks for header in block]
    headers = [header for header in found if isinstance(header, Header)]
    if not headers:
        raise DataError(f"no image can be opened: {found[0]}")
    return headers


def _header(reader: ImageReader, number: int) -> Header | DamagedImage:
    try:
        with opened(reader, number) as image:
            # A photo's further frame is its preview.
            frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
            is_transparent = image.has_transparency_data
            return Header(shape_of(image), is_deep(image), is_transparent, frames)
    except DamagedImage as damage:
        return damage


def _deep_range(
    reader: ImageReader, sample: Indices, examined: Indices
) -> tuple[float, float] | None:
    """The range of the values of the images of more than 8 bits; None where none is intact."""

    def read(numbers: Indices) -> list[tuple[float, float]]:
        ranges = []
        for number in numbers.tolist():
            try:
                with opened(reader, number) as image:
                    if is_deep(image):
                        ranges.append(deep_range(image))
            except DamagedImage:
                continue
        return ranges

    for numbers in (evenly(sample, DEEP_SAMPLE), sample, examined):
        ranges = read(numbers)
        if ranges:
            lows, highs = zip(*ranges, strict=True)
            return min(lows), max(highs)
    return None


def choose_format(
    file_shapes: Collection[ImageShape], images: int, image_size: int | None
) -> tuple[InputInfo, tuple[int, int] | None]:
    """Images of one small size keep it and stay in memory if they fit; others are 224 x 224.

    Returns the input, and (height, width) of all files of a set that is decoded into memory;
    None where they may have any size.
    """
    channels = max(shape.channels for shape in file_shapes)
    sizes = {(shape.height, shape.width) for shape in file_shapes}
    size = next(iter(sizes))
    small = len(sizes) == 1 and max(size) <= DEFAULT_SIZE
    side = DEFAULT_SIZE if image_size is None else image_size
    height, width = size if small and image_size is None else (side, side)
    decoded = images * channels * max(size[0] * size[1], height * width)
    share = 1.0 if small else PHOTO_SHARE
    info = InputInfo(shape=(channels, height, width), central_share=share)
    return info, size if small and decoded <= MEMORY_BYTES else None


def damaged_among(
    reader: ImageReader, numbers: Indices, info: InputInfo, progress: Progress
) -> dict[int, str]:
    """The images that cannot be made inputs of a network, number -> name and reason."""

    def read(block: range) -> list[tuple[int, str]]:
        damaged = []
        for number in numbers[block.start : block.stop].tolist():
            try:
                with opened(reader, number) as image:
                    decode(image, info)
            except DamagedImage as damage:
                damaged.append((number, str(damage)))
        return damaged

    return dict(
        pair for block in _in_blocks(len(numbers), read, progress, "images") for pair in block
    )


class UnexpectedShape(Exception):
    """An image, of the ImageShape in `args`, is not like those that the format was chosen for."""


class UnexpectedDepth(Exception):
    """An image has values of more than 8 bits, whose range is not known yet."""


@dataclass(frozen=True)
class _Survey:
    """Images looked at under one format. only_size: (height, width) that all files must have."""

    reader: ImageReader
    info: InputInfo
    only_size: tuple[int, int] | None
    has_deep: bool

    def decode_all(
        self, examined: Indices, counted: Container[int], progress: Progress
    ) -> tuple[NDArray[np.uint8], dict[int, str], Statistics]:
        """Decode the examined images, in threads.

        Returns their pixels, where they stay in memory, with damaged rows zero; the damaged images,
        number -> name and reason; and statistics over the images `counted`.
        """
        info, in_memory = self.info, self.only_size is not None
        pixels = np.zeros((len(examined) if in_memory else 0, *info.shape), np.uint8)

        def decode_block(block: range) -> tuple[dict[int, str], Statistics]:
            damaged: dict[int, str] = {}
            counts, blanks, images = np.zeros((info.shape[0], 256), np.int64), [], 0
            hashes: dict[int, bytes] = {}
            for row in block:
                number = int(examined[row])
                try:
                    image = self._decode(number)
                except DamagedImage as damage:
                    damaged[number] = str(damage)
                    continue
                if in_memory:
                    pixels[row] = image
                is_blank = max(int(c.max()) - int(c.min()) for c in image) <= BLANK
                if not is_blank:
                    hashes[number] = hashlib.blake2b(image.tobytes(), digest_size=12).digest()
                if number in counted:
                    images += 1
                    counts += np.stack([np.bincount(c.ravel(), minlength=256) for c in image])
                    if is_blank:
                        blanks.append(Blank(number, tuple(image.mean((1, 2)).tolist())))
            return damaged, Statistics(counts, images, tuple(blanks), hashes)

        blocks = _in_blocks(len(examined), decode_block, progress, "images")
        return (
            pixels,
            {number: damage for block, _ in blocks for number, damage in block.items()},
            Statistics(
                np.sum([block.counts for _, block in blocks], axis=0),
                sum(block.images for _, block in blocks),
                tuple(blank for _, block in blocks for blank in block.blanks),
                {n: pixels for _, block in blocks for n, pixels in block.hashes.items()},
            ),
        )

    def _decode(self, number: int) -> Pixels:
        info, channels = self.info, self.info.shape[0]
        with opened(self.reader, number) as image:
            shape = shape_of(image)
            size = (shape.height, shape.width)
            if self.only_size not in (None, size) or shape.channels > channels:
                raise UnexpectedShape(shape)
            if is_deep(image) and not self.has_deep:
                raise UnexpectedDepth
            return decode(image, info)


def evenly(numbers: Indices, count: int) -> Indices:
    """At most `count` of the numbers, evenly spaced."""
    if len(numbers) <= count:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, count).round().astype(np.int64)]


def _in_blocks(count: int, work: Callable[[range], T], progress: Progress, what: str) -> list[T]:
    """`work` over 0..count-1 in blocks and threads; results in order of the blocks."""
    blocks = [range(at, min(at + _BLOCK, count)) for at in range(0, count, _BLOCK)]
    pool = ThreadPoolExecutor(min(usable_cpus(), 8))
    try:
        futures = {pool.submit(work, block): block for block in blocks}
        pending, images = set(futures), 0
        while pending:
            finished, pending = wait(pending, EVERY, FIRST_EXCEPTION)
            for future in finished:
                future.result()
            images += sum(len(futures[future]) for future in finished)
            progress(images, count, what)
        return [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)
