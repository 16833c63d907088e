"""All images looked at once: their sizes, which are damaged, mean and deviation, pixels in memory.

A data set says of itself how its images become inputs: images of one small size keep that size
and stay in memory, decoded; all others are photos, which are cropped to 224 x 224 anew whenever
they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
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
    """What the images of a data set turned out to be.

    info: how they become inputs; mean and deviation of (a sample of) the training images.
    file_shapes: of (a sample of) the image files.
    examined: how many were decoded; damaged: those that cannot be, each with the reason.
    numbers: of all other images, in the source's numbering; rows: each part's places therein.
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
    file_shapes = sample_shapes(source.reader, numbers)
    while True:
        info, only_size = choose_format(file_shapes, len(numbers), image_size)
        info = replace(info, classes=source.classes)
        accept(info)
        decoder = _Decoder.of(source.reader, info, only_size, numbers, parts["train"])
        try:
            damaged, counts = decoder.decode_all(progress)
            break
        except UnexpectedShape as unexpected:  # not all files are as the sample promised
            file_shapes |= {unexpected.shape}
    mean, std = mean_and_std(counts)
    intact = ~np.isin(numbers, list(damaged))
    roles = np.repeat(list(parts), [len(part) for part in parts.values()])[intact]
    pixels = decoder.pixels[intact] if damaged and only_size else decoder.pixels
    return Survey(
        info=replace(info, mean=mean, std=std),
        file_shapes=file_shapes,
        examined=len(decoder.examined),
        damaged=tuple(damaged[number] for number in sorted(damaged)),
        numbers=numbers[intact],
        rows={part: np.flatnonzero(roles == part).astype(np.int64) for part in parts},
        pixels=torch.from_numpy(pixels) if only_size else None,
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
    """An image is not like those that the input format was chosen for."""

    def __init__(self, shape: ImageShape) -> None:
        super().__init__(str(shape))
        self.shape = shape


@dataclass(frozen=True)
class _Decoder:
    """Decodes the examined images in threads, each into its row of `pixels`.

    counted: the training images among them that mean and deviation are taken of.
    pixels: uint8 [examined, C, H, W] of a set in memory, zero where damaged; else empty.
    """

    reader: ImageReader
    info: InputInfo
    only_size: tuple[int, int] | None
    examined: Indices
    counted: frozenset[int]
    pixels: NDArray[np.uint8]

    @classmethod
    def of(
        cls,
        reader: ImageReader,
        info: InputInfo,
        only_size: tuple[int, int] | None,
        numbers: Indices,
        training: Indices,
    ) -> _Decoder:
        sample = evenly(training, SAMPLE)
        everything = only_size is not None or len(numbers) <= SAMPLE
        pixels = np.zeros((len(numbers) if only_size else 0, *info.shape), np.uint8)
        examined = numbers if everything else sample
        return cls(reader, info, only_size, examined, frozenset(sample.tolist()), pixels)

    def decode_all(
        self, progress: ProgressCallback | None
    ) -> tuple[dict[int, str], NDArray[np.int64]]:
        """The damaged images, number -> name and reason; the counts of the training images.

        Raises:
            UnexpectedShape: an image does not fit the format.
        """
        blocks = _in_blocks(len(self.examined), self._decode_block, progress)
        damaged = {number: damage for block, _ in blocks for number, damage in block.items()}
        return damaged, np.sum([counts for _, counts in blocks], axis=0)

    def _decode_block(self, block: range) -> tuple[dict[int, str], NDArray[np.int64]]:
        damaged: dict[int, str] = {}
        counts = np.zeros((self.info.shape[0], 256), np.int64)
        for row in block:
            number = int(self.examined[row])
            try:
                image = self._decode(number)
            except DamagedImage as damage:
                damaged[number] = str(damage)
                continue
            if len(self.pixels):
                self.pixels[row] = image
            if number in self.counted:
                counts += np.stack([np.bincount(c.ravel(), minlength=256) for c in image])
        return damaged, counts

    def _decode(self, number: int) -> Pixels:
        wanted = ImageShape(*self.info.shape)
        with opened(self.reader, number) as image:
            shape = shape_of(image)
            fits = self.only_size in (None, (shape.height, shape.width))
            if not fits or shape.channels > wanted.channels:
                raise UnexpectedShape(shape)
            return decode(image, wanted, central_share=self.info.central_share)


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
