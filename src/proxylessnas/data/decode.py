"""Looking at all images once: what size they have, which are damaged, their pixels in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxylessnas.data.images import DAMAGED, Frame, Header, cropped, header, reason
from proxylessnas.data.source import Indices, Reader
from proxylessnas.errors import DataError
from proxylessnas.io.process import usable_cpus

Progress = Callable[[int, int], None]
T = TypeVar("T")

DEFAULT_SIZE = 224  # pixels; of images of mixed size, and of larger ones
MEMORY_BYTES = 2**30  # sets up to this size, decoded, are kept in memory
SAMPLE = 4096  # images whose headers and pixels are looked at, where not all are
PHOTO_SHARE = 0.875  # of a photo's shorter side is seen in evaluation
_BLOCK = 128  # images a thread decodes at a time


@dataclass(frozen=True)
class Plan:
    """How the images of a set become inputs of one shape."""

    frame: Frame
    central_share: float  # of the shorter side, in evaluation
    in_memory: bool


class Surprise(Exception):
    """While decoding, an image that is not like those the plan was made for."""

    def __init__(self, found: Header) -> None:
        super().__init__(str(found))
        self.header = found


@dataclass
class Survey:
    """What decoding met: damaged images with the reason, and counts of pixel values."""

    damaged: dict[int, str] = field(default_factory=dict)
    counts: NDArray[np.int64] | int = 0  # [channels, 256]


def make_plan(headers: Collection[Header], images: int, image_size: int | None) -> Plan:
    """Images of one small size keep it and stay in memory if they fit; others are 224 x 224."""
    channels = max(found.channels for found in headers)
    sizes = {(found.height, found.width) for found in headers}
    height, width = next(iter(sizes))
    small = len(sizes) == 1 and max(height, width) <= DEFAULT_SIZE
    if image_size is not None:
        frame = Frame(channels, image_size, image_size)
    elif small:
        frame = Frame(channels, height, width)
    else:
        frame = Frame(channels, DEFAULT_SIZE, DEFAULT_SIZE)
    pixels = max(height * width, frame.height * frame.width)
    return Plan(
        frame=frame,
        central_share=1.0 if small else PHOTO_SHARE,
        in_memory=small and images * channels * pixels <= MEMORY_BYTES,
    )


def evenly(numbers: Indices, count: int) -> Indices:
    """At most `count` of the numbers, evenly spaced."""
    if len(numbers) <= count:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, count).round().astype(np.int64)]


def read_headers(reader: Reader, numbers: Indices) -> set[Header]:
    """The distinct headers of a sample; DataError if no image of it has one."""
    failed: dict[int, str] = {}

    def work(block: range) -> set[Header]:
        found = set()
        for number in sample[block.start : block.stop].tolist():
            try:
                with reader.open(number) as image:
                    found.add(header(image))
            except DAMAGED as error:
                failed[number] = reason(error)
        return found

    sample = evenly(numbers, SAMPLE)
    headers = set().union(*_in_blocks(len(sample), work, None))
    if not headers:
        first = min(failed)
        raise DataError(f"no image can be opened: {reader.where(first)} ({failed[first]})")
    return headers


def decode(
    reader: Reader,
    numbers: Indices,
    plan: Plan,
    native: set[Header],
    progress: Progress | None,
) -> tuple[Tensor, Survey]:
    """All images as uint8 [N, C, H, W]; the rows of damaged ones are zero.

    Raises Surprise at an image with another size than `native` or more channels than planned.
    """
    sizes = {(found.height, found.width) for found in native}
    out = torch.zeros(len(numbers), *plan.frame, dtype=torch.uint8)
    array = out.numpy()

    def work(block: range) -> dict[int, str]:
        damaged = {}
        for place in block:
            number = int(numbers[place])
            try:
                with reader.open(number) as image:
                    found = header(image)
                    if (found.height, found.width) not in sizes or (
                        found.channels > plan.frame.channels
                    ):
                        raise Surprise(found)
                    array[place] = cropped(image, plan.frame)
            except DAMAGED as error:
                damaged[number] = reason(error)
        return damaged

    survey = Survey()
    for damaged in _in_blocks(len(numbers), work, progress):
        survey.damaged.update(damaged)
    return out, survey


def look(
    reader: Reader,
    numbers: Indices,
    training: Indices,
    plan: Plan,
    progress: Progress | None,
) -> Survey:
    """Decodes images without keeping them: which are damaged, and the training ones' counts."""
    counted = set(training.tolist())

    def work(block: range) -> Survey:
        part = Survey()
        for number in numbers[block.start : block.stop].tolist():
            try:
                with reader.open(number) as image:
                    header(image)
                    array = cropped(image, plan.frame, share=plan.central_share)
            except DAMAGED as error:
                part.damaged[number] = reason(error)
                continue
            if number in counted:
                part.counts = part.counts + value_counts(torch.from_numpy(array)[None])
        return part

    survey = Survey()
    for part in _in_blocks(len(numbers), work, progress):
        survey.damaged.update(part.damaged)
        survey.counts = survey.counts + part.counts
    return survey


def value_counts(images: Tensor) -> NDArray[np.int64]:
    """How often each value 0..255 occurs, [C, 256], in uint8 images [N, C, H, W]."""
    channels = images.unbind(1)
    return np.stack([np.bincount(c.numpy().ravel(), minlength=256) for c in channels])


def mean_and_std(
    counts: NDArray[np.int64],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel in [0, 1] from counts of values; a constant channel's deviation is 1/255."""
    values = np.arange(256) / 255
    total = counts.sum(axis=1)
    mean = counts @ values / total
    variance = (counts * (values[None] - mean[:, None]) ** 2).sum(axis=1) / total
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def _in_blocks(count: int, work: Callable[[range], T], progress: Progress | None) -> list[T]:
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
