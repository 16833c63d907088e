"""All images looked at once: their sizes, which are damaged, mean and deviation, pixels in memory.

A data set says of itself how its images become inputs: images of one small size keep that size
and stay in memory, decoded; all others are photos, which are cropped to 224 x 224 anew whenever
they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxylessnas.architecture import InputInfo
from proxylessnas.data.decode import DamagedImage, ImageShape, Pixels, decode, opened, shape_of
from proxylessnas.data.source import ImageReader, Indices, Source
from proxylessnas.errors import DataError
from proxylessnas.io.process import usable_cpus

ProgressCallback = Callable[[int, int], None]
T = TypeVar("T")

DEFAULT_SIZE = 224  # pixels; of images of mixed size, and of larger ones
MEMORY_BYTES = 2**30  # sets up to this size, decoded, are kept in memory
SAMPLE = 4096  # images whose headers and pixels are looked at, where not all are
PHOTO_SHARE = 0.875  # of a photo's shorter side is seen in evaluation
_BLOCK = 128  # images that a thread decodes at a time


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What looking at the images of a data set tells.

    info: how images become inputs; mean and deviation of (a sample of) the training images.
    file_shapes: the distinct shapes of (a sample of) the image files.
    examined: the number of images that were decoded, or could not be.
    damaged: the images that cannot be decoded, each with the reason.
    numbers: all other images, in the source's numbering; rows: part -> its positions therein.
    pixels: uint8 [numbers, C, H, W] of a set in memory; else None.
    """

    info: InputInfo
    file_shapes: frozenset[ImageShape]
    examined: int
    damaged: tuple[str, ...]
    numbers: Indices
    rows: Mapping[str, Indices]
    pixels: Tensor | None


def survey_images(
    source: Source,
    parts: Mapping[str, Indices],
    image_size: int | None,
    accept: Callable[[InputInfo], object],
    progress: ProgressCallback | None,
) -> Survey:
    """Decode every image of a set in memory or of a small set, of others a training sample.

    accept: called before anything is decoded, for its errors; mean and std are still empty.
    """
    numbers = np.concatenate(list(parts.values()))
    file_shapes, sample = sample_shapes(source.reader, numbers), evenly(parts["train"], SAMPLE)
    while True:
        info, only_size = choose_format(file_shapes, len(numbers), image_size)
        info = replace(info, classes=source.classes)
        accept(info)
        examined = numbers if only_size or len(numbers) <= SAMPLE else sample
        try:
            pixels, damaged, counts = _decode_all(
                source.reader, info, only_size, examined, frozenset(sample.tolist()), progress
            )
            break
        except UnexpectedShape as unexpected:  # not all files are as the sample promised
            file_shapes |= set(unexpected.args)
    mean, std = mean_and_std(counts)
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
    )


def sample_shapes(reader: ImageReader, numbers: Indices) -> frozenset[ImageShape]:
    """The distinct shapes of a sample, from headers alone; DataError if no image has one."""
    sample = evenly(numbers, SAMPLE).tolist()

    def read(block: range) -> list[ImageShape | DamagedImage]:
        return [_header(reader, number) for number in sample[block.start : block.stop]]

    headers = [header for block in _in_blocks(len(sample), read, None) for header in block]
    shapes = frozenset(header for header in headers if isinstance(header, ImageShape))
    if not shapes:
        raise DataError(f"no image can be opened: {headers[0]}")
    return shapes


def _header(reader: ImageReader, number: int) -> ImageShape | DamagedImage:
    try:
        with opened(reader, number) as image:
            return shape_of(image)
    except DamagedImage as damage:
        return damage


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


class UnexpectedShape(Exception):
    """An image, of the ImageShape in `args`, is not like those that the format was chosen for."""


def _decode_all(
    reader: ImageReader,
    info: InputInfo,
    only_size: tuple[int, int] | None,
    examined: Indices,
    counted: Container[int],
    progress: ProgressCallback | None,
) -> tuple[NDArray[np.uint8], dict[int, str], NDArray[np.int64]]:
    """Decode the examined images, in threads.

    Returns their pixels, where they stay in memory, with damaged rows zero; the damaged images,
    number -> name and reason; and over the images `counted` how often each value of a pixel
    occurs, [channels, 256].
    """
    pixels = np.zeros((len(examined) if only_size else 0, *info.shape), np.uint8)

    def decode_block(block: range) -> tuple[dict[int, str], NDArray[np.int64]]:
        damaged: dict[int, str] = {}
        counts = np.zeros((info.shape[0], 256), np.int64)
        for row in block:
            number = int(examined[row])
            try:
                image = _decode_expected(reader, number, info, only_size)
            except DamagedImage as damage:
                damaged[number] = str(damage)
                continue
            if only_size:
                pixels[row] = image
            if number in counted:
                counts += np.stack([np.bincount(c.ravel(), minlength=256) for c in image])
        return damaged, counts

    blocks = _in_blocks(len(examined), decode_block, progress)
    damaged = {number: damage for block, _ in blocks for number, damage in block.items()}
    return pixels, damaged, np.sum([counts for _, counts in blocks], axis=0)


def _decode_expected(
    reader: ImageReader, number: int, info: InputInfo, only_size: tuple[int, int] | None
) -> Pixels:
    with opened(reader, number) as image:
        shape = shape_of(image)
        if only_size not in (None, (shape.height, shape.width)) or shape.channels > info.shape[0]:
            raise UnexpectedShape(shape)
        return decode(image, ImageShape(*info.shape), central_share=info.central_share)


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


def evenly(numbers: Indices, count: int) -> Indices:
    """At most `count` of the numbers, evenly spaced."""
    if len(numbers) <= count:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, count).round().astype(np.int64)]


def _in_blocks(
    count: int, work: Callable[[range], T], progress: ProgressCallback | None
) -> list[T]:
    """`work` over 0..count-1 in blocks and threads; results in order of the blocks."""
    blocks = [range(at, min(at + _BLOCK, count)) for at in range(0, count, _BLOCK)]
    results = []
    with ThreadPoolExecutor(min(usable_cpus(), 8)) as pool:
        for block, result in zip(blocks, pool.map(work, blocks), strict=True):
            results.append(result)
            if progress is not None:
                progress(block.stop, count)
    return results
