"""Batches of examples: a deterministic, resumable stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from proxylessnas.errors import DataError
from proxylessnas.seeds import derive_seed

Share = tuple[int, int]  # which slice, of how many


WHOLE: Share = (0, 1)


class Batches(Protocol):
    """A deterministic, resumable stream: the same epoch gives the same batches.

    Two ways to share it: every `step`-th batch from `start`, or a slice of each batch.
    """

    def __len__(self) -> int: ...

    def epoch(
        self, epoch: int, start: int = 0, *, step: int = 1, share: Share = WHOLE
    ) -> Iterator[Any]: ...


def portion(size: int, share: Share) -> slice:
    """One of several slices of a batch, all of one size, so that a mean of means is the mean.

    What does not divide is left out: less than an example a slice, of the last batch of an
    epoch. A batch with less than two examples a slice is not cut but handed out whole: one
    example cannot be normalised.
    """
    index, of = share
    each = size // of
    return slice(0, size) if each < 2 or of == 1 else slice(index * each, (index + 1) * each)


class LoaderBatches:
    """Any sized iterable of (inputs, target), such as a DataLoader, as `Batches`.

    Each batch is drawn with torch's generator seeded by (seed, name, epoch, index), so
    shuffling and augmentation repeat; `start` skips batches by drawing them.
    """

    def __init__(self, loader: Any, *, name: str, seed: int = 0) -> None:
        try:
            self._length = len(loader)
        except TypeError:
            raise DataError(
                f"the {name} loader has no length: give a DataLoader over a sized data set, or "
                "a list of batches"
            ) from None
        if self._length == 0:
            raise DataError(f"the {name} loader is empty")
        self.loader, self.name, self.seed = loader, name, seed

    def __len__(self) -> int:
        return self._length

    def epoch(
        self, epoch: int, start: int = 0, *, step: int = 1, share: Share = WHOLE
    ) -> Iterator[Any]:
        iterator: Iterator[Any] | None = None
        for index in range(self._length):
            # Samplers and augmentations draw from the global generator, some of them late.
            with torch.random.fork_rng(devices=[]):
                seed = derive_seed(self.seed, "loader", self.name, epoch, index)
                torch.default_generator.manual_seed(seed)
                iterator = iterator or iter(self.loader)
                batch = next(iterator, None)
            if batch is None:
                return
            if index >= start and (index - start) % step == 0:
                yield batch if share == WHOLE else _cut(batch, share)


def _cut(batch: Any, share: Share) -> Any:
    """A slice of every tensor of a batch, along its first dimension."""

    def cut(tensor: Tensor) -> Tensor:
        return tensor[portion(len(tensor), share)] if tensor.dim() else tensor

    return pytree.tree_map_only(Tensor, cut, batch)


class Stream:
    """Batches epoch after epoch, or a slice of each; its state is how many were taken."""

    def __init__(self, batches: Batches, taken: int = 0, share: Share = WHOLE) -> None:
        self.batches, self.taken, self.share = batches, taken, share
        self._iterator: Iterator[Any] | None = None

    def take(self) -> Any:
        epoch, start = divmod(self.taken, len(self.batches))
        if self._iterator is None or start == 0:
            self._iterator = self.batches.epoch(epoch, start, share=self.share)
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise DataError(
                f"the data ended after {start} of {len(self.batches)} batches"
            ) from None
        self.taken += 1
        return batch
