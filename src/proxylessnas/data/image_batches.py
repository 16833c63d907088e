"""Batches: a deterministic stream that can be entered anywhere.

In memory, a batch is a gather, a strided cut, a flip and a normalisation of whole tensors (some
hundred microseconds for 64 images of 32x32: not worth a thread). Large sets stream through the
workers of a DataLoader, which only decode and crop boxes that were drawn here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from proxylessnas.data import augment
from proxylessnas.data.batches import WHOLE, Share, portion
from proxylessnas.data.images import DAMAGED, Frame, cropped, header, reason
from proxylessnas.data.info import ImageInfo
from proxylessnas.data.source import Indices, Reader
from proxylessnas.errors import DataError
from proxylessnas.seeds import derive_seed


class Loaded(NamedTuple):
    """A batch from a worker: uint8 [B, C, H, W], int64 [B], what could not be decoded."""

    images: Tensor
    labels: Tensor
    damaged: list[str]


class Request(NamedTuple):
    """A batch to decode: rows of the kept images [B]; uniforms [B, 4] for random boxes."""

    rows: Indices
    boxes: NDArray[np.float32] | None
    smallest_area: float


@dataclass(frozen=True)
class _Decoder(Dataset[Loaded]):
    """Decodes whole batches in a worker; holds no random state."""

    reader: Reader
    numbers: Indices  # of the images kept, in the reader's numbering
    labels: Indices  # of the images kept
    frame: Frame
    share: float

    def __getitem__(self, request: Request) -> Loaded:
        images: list[NDArray[np.uint8] | None] = []
        damaged = []
        for place, row in enumerate(request.rows.tolist()):
            uniforms = None if request.boxes is None else request.boxes[place]
            try:
                with self.reader.open(int(self.numbers[row])) as image:
                    header(image)
                    images.append(
                        cropped(
                            image,
                            self.frame,
                            share=self.share,
                            uniforms=uniforms,
                            smallest=request.smallest_area,
                        )
                    )
            except DAMAGED as error:
                images.append(None)
                damaged.append(f"{self.reader.where(int(self.numbers[row]))} ({reason(error)})")
        good = [place for place, image in enumerate(images) if image is not None]
        if not good:
            return Loaded(torch.empty(0), torch.empty(0), damaged)
        # A damaged image that the check at the start did not meet: another of the same batch
        # stands in for it, so that the batch keeps its size.
        places = [place if images[place] is not None else good[0] for place in range(len(images))]
        stacked = np.stack([array for p in places if (array := images[p]) is not None])
        labels = self.labels[request.rows[places]]
        return Loaded(torch.from_numpy(stacked), torch.from_numpy(labels), damaged)


def _as_loaded(batch: list[Loaded]) -> Loaded:
    return batch[0]


class Stream:
    """A set too large for memory: its batches come decoded and cropped from workers."""

    def __init__(
        self,
        reader: Reader,
        numbers: Indices,
        labels: Indices,
        frame: Frame,
        *,
        share: float,
        workers: int,
        on_damaged: Callable[[str], None],
    ) -> None:
        self._decoder = _Decoder(reader, numbers, labels, frame, share)
        self._workers = workers
        self._on_damaged = on_damaged

    def batches(self, requests: list[Request]) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 images and labels in the order of the requests, whatever the workers do."""
        loader = DataLoader(
            self._decoder,
            batch_size=1,
            sampler=requests,
            num_workers=self._workers,
            collate_fn=_as_loaded,
            generator=torch.Generator(),  # else the loader draws from the global one
        )
        for images, labels, damaged in loader:
            for name in damaged:
                self._on_damaged(name)
            if not len(images):
                raise DataError(f"no image of a batch can be decoded, beginning with {damaged[0]}")
            yield images, labels


class Batches:
    """The batches of one part of a data set; made by `ImageData.batches`."""

    def __init__(
        self,
        store: Tensor | Stream,
        *,
        rows: Indices,
        labels: Indices,
        info: ImageInfo,
        part: str,
        batch_size: int,
        policy: augment.Policy | None,
        shuffle: bool,
        seed: int,
        drop_last: bool,
    ) -> None:
        self._store = store
        self._rows = torch.from_numpy(rows)
        self._labels = torch.from_numpy(labels)
        self._info = info
        self._part = part
        self._batch_size = batch_size
        self._policy = policy
        self._shuffle = shuffle
        self._seed = seed
        self._drop_last = drop_last

    def __len__(self) -> int:
        """Batches an epoch."""
        whole, rest = divmod(len(self._rows), self._batch_size)
        return whole + (rest > 0 and not self._drop_last)

    def epoch(
        self, epoch: int, start: int = 0, *, step: int = 1, share: Share = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised float32 images [B, C, H, W] and int64 labels [B] of one epoch.

        Every `step`-th batch from `start`, or a slice of each: what is left out is not computed,
        and the rest is bit-identical to the same images of the whole epoch. The iterator may be
        abandoned at any point.
        """
        if epoch < 0 or start < 0 or (start > len(self) and step == 1):
            raise ValueError(f"epoch {epoch}, start {start}: an epoch has {len(self)} batches")
        return self._epoch(epoch, range(start, len(self), step), share)

    def _epoch(self, epoch: int, batches: range, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        samples = len(self._rows)
        order = torch.arange(samples)
        if self._shuffle:
            seed = derive_seed(self._seed, "order", self._part, epoch)
            order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
        policy = self._policy
        table = augment.draw(samples, self._seed, self._part, epoch) if policy else None
        size = self._batch_size
        steps = [order[at * size : (at + 1) * size] for at in batches]
        steps = [step[portion(len(step), share)] for step in steps]
        for step, (images, labels) in zip(steps, self._load(steps, table), strict=True):
            if policy is not None and table is not None:
                images = augment.flipped(images, policy, table[step])
                images = augment.jittered(images, policy, table[step])
            images = augment.normalised(images, self._info.mean, self._info.std)
            if policy is not None and table is not None:
                images = augment.cut_out_(images, policy, table[step])
            yield images, labels

    def _load(self, steps: list[Tensor], table: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 images, moved or cropped, and labels, for each step's places in the part."""
        policy = self._policy
        if isinstance(self._store, Tensor):
            for step in steps:
                images = self._store.index_select(0, self._rows[step])
                if policy is not None and table is not None:
                    images = augment.moved(images, policy, table[step])
                yield images, self._labels[step]
        else:
            random = policy is not None and policy.move != "none" and table is not None
            yield from self._store.batches(
                [
                    Request(
                        self._rows[step].numpy(),
                        augment.boxes(table[step]).numpy()
                        if random and table is not None
                        else None,
                        policy.smallest_area if policy else 1.0,
                    )
                    for step in steps
                ]
            )
