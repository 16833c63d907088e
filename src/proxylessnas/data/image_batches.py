"""The batches of one part of a data set of images: order, augmentation, normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from proxylessnas.architecture import InputInfo
from proxylessnas.data import augment
from proxylessnas.data.augment import Augmentation
from proxylessnas.data.batches import WHOLE, Share, portion
from proxylessnas.data.decode import normalised
from proxylessnas.data.stores import ImageStore, Requests
from proxylessnas.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class ImageBatches:
    """`Batches` of one part of a data set; made by `ImageData.batches`.

    store: where the pixels come from.
    rows: int64, the part's images in the store.
    info: mean and deviation that images are normalised with.
    part: names the random streams of order and augmentation, with `seed` and the epoch.
    """

    store: ImageStore
    rows: Tensor
    info: InputInfo
    part: str
    batch_size: int
    augmentation: Augmentation
    shuffle: bool
    seed: int

    def __len__(self) -> int:
        """Batches an epoch; the last may be smaller."""
        return -(-len(self.rows) // self.batch_size)

    def epoch(
        self, epoch: int, start: int = 0, *, step: int = 1, share: Share = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised float32 images [B, C, H, W] and int64 labels [B] of one epoch.

        Every `step`-th batch from `start`, or a slice of each: images that are left out are not
        computed, and the others are bit-identical to the same images of the whole epoch. The
        iterator may be abandoned at any point.
        """
        if epoch < 0 or start < 0 or (start > len(self) and step == 1):
            raise ValueError(f"epoch {epoch}, start {start}: an epoch has {len(self)} batches")
        return self._load(self._requests(epoch, range(start, len(self), step), share))

    def _requests(self, epoch: int, batches: range, share: Share) -> Requests:
        """Everything random is drawn before any image is loaded, so that workers have no state."""
        samples, size = len(self.rows), self.batch_size
        order = torch.arange(samples)
        if self.shuffle:
            seed = derive_seed(self.seed, "order", self.part, epoch)
            order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
        uniforms = torch.empty(samples, 0)
        if self.augmentation != augment.NONE:
            uniforms = augment.draw(samples, self.seed, self.part, epoch)
        requests = []
        for index in batches:
            positions = order[index * size : (index + 1) * size]
            positions = positions[portion(len(positions), share)]
            requests.append((self.rows[positions], uniforms[positions]))
        return requests

    def _load(self, requests: Requests) -> Iterator[tuple[Tensor, Tensor]]:
        augmentation, info = self.augmentation, self.info
        loaded = self.store.load(requests, augmentation)
        for (_, uniforms), (images, labels) in zip(requests, loaded, strict=True):
            images = augment.flipped(images, augmentation, uniforms)
            images = augment.transformed(images, augmentation, uniforms)
            images = augment.jittered(images, augmentation, uniforms)
            images = normalised(images, info.mean, info.std)
            yield augment.cut_out_(images, augmentation, uniforms), labels
