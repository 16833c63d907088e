"""All images looked at once: their sizes, which are damaged, mean and deviation, pixels in memory.

A data set says of itself how its images become inputs: images of one small size keep that size
and stay in memory, decoded; all others are photos, which are cropped to 224 x 224 anew whenever
they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxylessnas.data.decode import DamagedImage, ImageShape, Pixels, decode, opened, shape_of
from proxylessnas.data.source import ImageReader, Indices
from proxylessnas.errors import DataError
from proxylessnas.io.process import usable_cpus

ProgressCallback = Callable[[int, int], None]
Counts = NDArray[np.int64]  # [channels, 256], how often each value of a pixel occurs
T = TypeVar("T")

DEFAULT_SIZE = 224  # pixels; of images of mixed size, and of larger ones
MEMORY_BYTES = 2**30  # sets up to this size, decoded, are kept in memory
SAMPLE = 4096  # images whose headers and pixels are looked at, where not all are
PHOTO_SHARE = 0.875  # of a photo's shorter side is seen in evaluation
_BLOCK = 128  # images that a thread decodes at a time


@dataclass(frozen=True)
class InputFormat:
    """How the images of a set become inputs of one shape.

    central_share: the share of an image's shorter side that evaluation sees, centred.
    in_memory: whether all images are decoded once, or each whenever it is needed.
    """

    shape: ImageShape
    central_share: float
    in_memory: bool


class UnexpectedShape(Exception):
    """An image is not like those that the input format was chosen for."""

    def __init__(self, shape: ImageShape) -> None:
        super().__init__(str(shape))
        self.shape = shape


@dataclass(frozen=True)
class Survey:
    """What the images turned out to be.

    format, shapes: what the images become, and what is known of their files.
    examined: the numbers of the images that were decoded.
    damaged: number -> reason.
    counts: of pixel values, over (a sample of) the training images.
    pixels: uint8 [examined, C, H, W] of a set in memory, damaged rows zero; else None.
    """

    format: InputFormat
    shapes: frozenset[ImageShape]
    examined: Indices
    damaged: dict[int, str]
    counts: Counts
    pixels: Tensor | None


def sample_shapes(reader: ImageReader, numbers: Indices) -> frozenset[ImageShape]:
    """The distinct shapes of a sample, from headers alone; DataError if no image has one."""
    sample = evenly(numbers, SAMPLE).tolist()
    damaged: dict[int, str] = {}

    def read(block: range) -> set[ImageShape]:
        shapes = set()
        for number in sample[block.start : block.stop]:
            try:
                with opened(reader, number) as image:
                    shapes.add(shape_of(image))
            except DamagedImage as damage:
                damaged[number] = str(damage)
        return shapes

    shapes = frozenset().union(*_in_blocks(len(sample), read, None))
    if not shapes:
        first = min(damaged)
        raise DataError(f"no image can be opened: {reader.describe(first)} ({damaged[first]})")
    return shapes


def choose_format(
    shapes: Collection[ImageShape], images: int, image_size: int | None
) -> InputFormat:
    """Images of one small size keep it and stay in memory if they fit; others are 224 x 224."""
    channels = max(shape.channels for shape in shapes)
    sizes = {(shape.height, shape.width) for shape in shapes}
    height, width = next(iter(sizes))
    small = len(sizes) == 1 and max(height, width) <= DEFAULT_SIZE
    if image_size is not None:
        shape = ImageShape(channels, image_size, image_size)
    elif small:
        shape = ImageShape(channels, height, width)
    else:
        shape = ImageShape(channels, DEFAULT_SIZE, DEFAULT_SIZE)
    pixels = max(height * width, shape.height * shape.width)
    return InputFormat(
        shape=shape,
        central_share=1.0 if small else PHOTO_SHARE,
        in_memory=small and images * channels * pixels <= MEMORY_BYTES,
    )


def survey_images(
    reader: ImageReader,
    numbers: Indices,
    training: Indices,
    chosen: InputFormat,
    shapes: frozenset[ImageShape],
    progress: ProgressCallback | None,
) -> Survey:
    """Decode every image of a set in memory or of a small set, of others a training sample.

    Raises:
        UnexpectedShape: an image is of more channels than chosen, or of another size than
            `shapes` in a set that was taken to be of one size.
    """
    sample = evenly(training, SAMPLE)
    examined = numbers if chosen.in_memory or len(numbers) <= SAMPLE else sample
    decoder = _Decoder(
        reader,
        examined,
        counted=frozenset(sample.tolist()),
        chosen=chosen,
        sizes=frozenset((shape.height, shape.width) for shape in shapes),
        pixels=np.zeros((len(examined), *chosen.shape), np.uint8) if chosen.in_memory else None,
    )
    parts = _in_blocks(len(examined), decoder.decode_block, progress)
    return Survey(
        format=chosen,
        shapes=shapes,
        examined=examined,
        damaged={number: reason for damaged, _ in parts for number, reason in damaged.items()},
        counts=np.sum([counts for _, counts in parts], axis=0),
        pixels=None if decoder.pixels is None else torch.from_numpy(decoder.pixels),
    )


@dataclass(frozen=True)
class _Decoder:
    """Decodes blocks of images in threads, each into its rows of `pixels`."""

    reader: ImageReader
    examined: Indices
    counted: frozenset[int]
    chosen: InputFormat
    sizes: frozenset[tuple[int, int]]
    pixels: NDArray[np.uint8] | None  # [examined, C, H, W]

    def decode_block(self, block: range) -> tuple[dict[int, str], Counts]:
        """The damaged images of a block, and the counts of its training images."""
        damaged: dict[int, str] = {}
        counts = np.zeros((self.chosen.shape.channels, 256), np.int64)
        for row in block:
            number = int(self.examined[row])
            try:
                pixels = self._decode(number)
            except DamagedImage as damage:
                damaged[number] = str(damage)
                continue
            if self.pixels is not None:
                self.pixels[row] = pixels
            if number in self.counted:
                counts += np.stack([np.bincount(c.ravel(), minlength=256) for c in pixels])
        return damaged, counts

    def _decode(self, number: int) -> Pixels:
        with opened(self.reader, number) as image:
            shape = shape_of(image)
            resized = self.chosen.in_memory and (shape.height, shape.width) not in self.sizes
            if resized or shape.channels > self.chosen.shape.channels:
                raise UnexpectedShape(shape)
            return decode(image, self.chosen.shape, central_share=self.chosen.central_share)


def mean_and_std(counts: Counts) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, of pixels in [0, 1]; the deviation of a constant channel is 1/255."""
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
    done = 0
    with ThreadPoolExecutor(min(usable_cpus(), 8)) as pool:
        futures = {pool.submit(work, block): block for block in blocks}
        try:
            for future in as_completed(futures):
                future.result()
                done += len(futures[future])
                if progress is not None:
                    progress(done, count)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]
