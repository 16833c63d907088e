"""How batches are drawn: a deterministic stream that can be entered anywhere and shared.

`ImageBatches` (image_batches.py) draws from a data set of images, `LoaderBatches` from whatever
loader a user brings; search and training see only `Batches`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset

from proxylessnas.data.arguments import as_pair, in_words
from proxylessnas.errors import DataError
from proxylessnas.seeds import derive_seed, seed_generators, undisturbed_generators

Share = tuple[int, int]  # which slice, of how many
WHOLE: Share = (0, 1)


class Batches(Protocol):
    """The same epoch always gives the same batches.

    Ranks share an epoch in two ways: every `step`-th batch from `start`, or a slice of each.
    """

    def __len__(self) -> int:
        """Batches an epoch."""
        ...

    def epoch(
        self, epoch: int, start: int = 0, *, step: int = 1, share: Share = WHOLE
    ) -> Iterator[Any]: ...


def portion(size: int, share: Share) -> slice:
    """One of several slices of a batch, all of one size, so that a mean of means is the mean.

    The remainder of the division is left out: less than an example a slice, of the last batch of
    an epoch. A batch with less than two examples a slice is not cut but handed out whole: a
    single example cannot be normalised.
    """
    index, slices = share
    each = size // slices
    whole = each < 2 or slices == 1
    return slice(0, size) if whole else slice(index * each, (index + 1) * each)


@dataclass(eq=False)
class Drawn:
    """The latest batch of a loader: which one, and itself; None where drawing it did not end.

    order: of all loaders, the latest is the highest.
    """

    name: str
    batch: Any
    order: int = field(default_factory=itertools.count().__next__)


class LoaderBatches:
    """Any sized iterable of (inputs, target), such as a DataLoader, as `Batches`.

    Each batch is drawn with the generators of torch, numpy and Python, and the loader's own,
    seeded by (seed, name, epoch, index), so shuffling and augmentation repeat; `start` skips
    batches by drawing them.

    example: the model's example inputs: how it takes a batch's, see `arguments.py`.

    first: the first batch in words. latest: the latest one, see `Drawn`.

    Raises:
        DataError: the loader has no length, is empty, or gives examples and not batches.
    """

    def __init__(
        self, loader: Any, *, name: str, seed: int = 0, example: tuple[Any, ...] | None = None
    ) -> None:
        if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
            raise DataError(
                f"{name} is a data set ({type(loader).__name__}), which gives one example at a "
                f"time: give its batches, as DataLoader({name}, batch_size=64)"
            )
        try:
            self._length = len(loader)
        except (TypeError, OverflowError):
            raise DataError(
                f"the {name} loader has no length: give a DataLoader over a sized data set, or "
                "a list of batches"
            ) from None
        if self._length == 0:
            raise DataError(f"the {name} loader is empty")
        self.loader, self.name, self.seed, self.example = loader, name, seed, example
        self.first, self.latest = "", Drawn("", None)

    def __len__(self) -> int:
        return self._length

    def epoch(
        self, epoch: int, start: int = 0, *, step: int = 1, share: Share = WHOLE
    ) -> Iterator[Any]:
        iterator: Iterator[Any] | None = None
        for index in range(self._length):
            # Samplers and augmentations draw from the global generators, some of them late.
            seed = derive_seed(self.seed, "loader", self.name, epoch, index)
            with undisturbed_generators():
                seed_generators(seed)
                if iterator is None:  # its truth would be the user's own `__len__`
                    for generator in self._generators():  # their state is how often they drew
                        generator.manual_seed(seed)
                    iterator = iter(self.loader)
                self.latest = Drawn(f"batch {index} of {self.name} (epoch {epoch})", None)
                try:
                    batch = next(iterator)
                except StopIteration:
                    if index == 0:  # who calls says what an iterator at its end means
                        return
                    raise DataError(
                        f"{self.name} ended after {index} of the {self._length} batches that its "
                        "length says: let both agree"
                    ) from None
                self.latest.batch = batch
                self.first = self.first or in_words(batch)
            if index >= start and (index - start) % step == 0:
                batch = as_pair(batch, self.example)
                yield batch if share == WHOLE else _cut(batch, share)

    def _generators(self) -> list[torch.Generator]:
        """The loader's own, and those of its samplers."""
        owners, loader = [self.loader], self.loader
        if isinstance(loader, DataLoader):
            owners += [loader.sampler, loader.batch_sampler]
            owners.append(getattr(loader.batch_sampler, "sampler", None))
        each = [getattr(owner, "generator", None) for owner in owners]
        return [generator for generator in each if isinstance(generator, torch.Generator)]


def _cut(batch: Any, share: Share) -> Any:
    """A slice of every tensor of a batch, along its first dimension."""

    def cut(tensor: Tensor) -> Tensor:
        return tensor[portion(len(tensor), share)] if tensor.dim() else tensor

    return pytree.tree_map_only(Tensor, cut, batch)


class BatchStream:
    """Batches, or a slice of each, epoch after epoch; the number `drawn` is all its state."""

    def __init__(self, batches: Batches, drawn: int = 0, share: Share = WHOLE) -> None:
        self.batches, self.drawn, self.share = batches, drawn, share
        self._iterator: Iterator[Any] | None = None

    @property
    def latest(self) -> str:
        """The number of the latest batch within its epoch, and the epoch's; both from 0."""
        epoch, index = divmod(max(0, self.drawn - 1), len(self.batches))
        return f"{index} of epoch {epoch}"

    def draw(self) -> Any:
        """The next batch; DataError where an epoch has fewer batches than its length."""
        epoch, start = divmod(self.drawn, len(self.batches))
        if self._iterator is None or start == 0:
            self._iterator = self.batches.epoch(epoch, start, share=self.share)
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise DataError(
                f"the data ended after {start} of {len(self.batches)} batches"
            ) from None
        self.drawn += 1
        return batch
