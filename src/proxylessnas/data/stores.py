"""Where the pixels of a batch come from: memory, or workers that decode image files.

In memory a batch is a gather, a strided cut, a flip and a normalisation of whole tensors (some
hundred microseconds for 64 images of 32 x 32: not worth a thread). Larger sets stream through
the workers of a DataLoader, which only decode and crop boxes that were drawn beforehand.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from proxylessnas.architecture import InputInfo
from proxylessnas.data import augment
from proxylessnas.data.augment import Augmentation
from proxylessnas.data.decode import (
    DamagedImage,
    Pixels,
    allow_pixels,
    decode,
    opened,
)
from proxylessnas.data.source import ImageReader, Indices
from proxylessnas.errors import DataError
from proxylessnas.io.memory import give_back
from proxylessnas.io.workers import BROKEN, lost_worker

# Batches to load, with everything random about them: the images' rows in the store, int64 [B],
# and their uniform numbers, float32 [B, 10] of `augment.draw`, or [B, 0] where nothing is.
Requests = Sequence[tuple[Tensor, Tensor]]

# uint8 [B, C, H, W], int64 [B], and the images that cannot be decoded, each with the reason.
_DecodedBatch = tuple[Tensor, Tensor, list[str]]


@dataclass(frozen=True)
class PixelsInMemory:
    """All images decoded: uint8 [N, C, H, W], and their labels, int64 [N]."""

    pixels: Tensor
    labels: Tensor

    def load(
        self, requests: Requests, augmentation: Augmentation
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 images [B, C, H, W], moved, and int64 labels [B] of each request."""
        for rows, uniforms in requests:
            images = self.pixels.index_select(0, rows)
            yield augment.moved(images, augmentation, uniforms), self.labels[rows]


def _by_itself(worker: int) -> None:
    """A worker in a process group of its own: signals to the group are for whoever waits for it.

    It would die of them before its parent has saved what it computes.
    """
    os.setpgid(0, 0)


def _alive(loader: Iterable[_DecodedBatch]) -> Iterator[_DecodedBatch]:
    """The loader's batches; DataError where one of its workers was killed."""
    iterator = iter(loader)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except (RuntimeError, *BROKEN) as error:
            if not (lost := lost_worker(error)):
                raise
            raise DataError(
                f"a process that decodes images was killed ({lost}), as the kernel does "
                "where memory is short: go on with --resume and --loading.workers 1"
            ) from None
        yield batch


@dataclass(frozen=True, kw_only=True)
class StreamedImages:
    """A set too large for memory: its batches come decoded and cropped from workers.

    numbers: of the images, in the reader's numbering; labels: theirs. info: what they become.
    max_pixels: the setting, for workers that begin without this process's state.
    damaged: images that turned out damaged while streaming, each with the reason.
    """

    reader: ImageReader
    numbers: Indices
    labels: Indices
    info: InputInfo
    workers: int
    max_pixels: int | None = None
    damaged: list[str] = field(default_factory=list)

    def load(
        self, requests: Requests, augmentation: Augmentation
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 images, cropped, and labels in the order of the requests, whatever workers do."""
        if self.workers:
            give_back()  # or a worker would keep a copy of all activations of the step before
        loader = DataLoader(
            _BatchDecoder(self, augmentation),
            batch_size=None,  # an item is a batch already
            sampler=[(rows.numpy(), uniforms.numpy()) for rows, uniforms in requests],
            num_workers=self.workers,
            generator=torch.Generator(),  # else the loader draws from the global one
            worker_init_fn=_by_itself,
        )
        for images, labels, damaged in _alive(loader):
            self._note(damaged)
            if not len(images):
                raise DataError(f"no image of a batch can be decoded, beginning with {damaged[0]}")
            yield images, labels

    def _note(self, damaged: list[str]) -> None:
        """Warns of each damaged image once."""
        for image in damaged:
            if image not in self.damaged:
                self.damaged.append(image)
                warnings.warn(f"image cannot be decoded and is left out: {image}", stacklevel=2)


@dataclass(frozen=True)
class _BatchDecoder(Dataset[_DecodedBatch]):
    """Decodes whole batches in a worker; holds no random state."""

    store: StreamedImages
    augmentation: Augmentation

    def __getitem__(self, request: tuple[Indices, NDArray[np.float32]]) -> _DecodedBatch:
        rows, uniforms = request
        images: dict[int, Pixels] = {}  # place in the batch -> pixels
        damaged = []
        for place, row in enumerate(rows.tolist()):
            try:
                images[place] = self._decode(row, uniforms[place])
            except DamagedImage as damage:
                damaged.append(str(damage))
        if not images:
            return torch.empty(0), torch.empty(0), damaged
        # In place of an image damaged since the survey, or not part of it, another image of the
        # same batch is taken, so that the batch keeps its size.
        first = next(iter(images))
        places = [place if place in images else first for place in range(len(rows))]
        pixels = np.stack([images[place] for place in places])
        labels = self.store.labels[rows[places]]
        return torch.from_numpy(pixels), torch.from_numpy(labels), damaged

    def _decode(self, row: int, uniforms: NDArray[np.float32]) -> Pixels:
        moved, info = self.augmentation.move != "none", self.store.info
        allow_pixels(self.store.max_pixels)
        with opened(self.store.reader, int(self.store.numbers[row])) as image:
            return decode(
                image,
                info,
                uniforms=uniforms[augment.BOX_COLUMNS] if moved else None,
                smallest_area=self.augmentation.smallest_area,
            )


ImageStore = PixelsInMemory | StreamedImages
