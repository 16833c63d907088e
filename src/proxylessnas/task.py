"""What is learned: a batch, a model's answer, and how wrong it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .errors import DataError, UserError
from .seeds import derive_seed

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


@dataclass(frozen=True)
class Task:
    """The user's loss, and what else is known of the outputs.

    loss: (output, target) -> scalar, of architecture steps and of evaluation.
    train_loss: the same for weight steps (label smoothing); default: `loss`.
    correct: (output, target) -> how many of the batch are right; None where that has no meaning.
    """

    loss: Callable[[Any, Any], Tensor]
    train_loss: Callable[[Any, Any], Tensor] | None = None
    correct: Callable[[Any, Any], Tensor] | None = None

    @staticmethod
    def classification(label_smoothing: float = 0.0) -> Task:
        """Cross entropy and top-1 over logits [batch, classes] and labels [batch]."""
        return Task(
            loss=nn.functional.cross_entropy,
            train_loss=nn.CrossEntropyLoss(label_smoothing=label_smoothing),
            correct=lambda output, target: (output.argmax(1) == target).sum(),
        )


def call(model: nn.Module, inputs: Any) -> Any:
    """A tuple or list of inputs is spread over the arguments, a dict over the keywords."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def scalar(loss: Any) -> Tensor:
    """What a loss function returned, if that is one number.

    Raises:
        UserError: it is not.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"the loss must return a tensor of one number, as .mean() does, not {what}")
    return loss.reshape(())


def split(batch: Any) -> tuple[Any, Any]:
    """(inputs, target) of a batch.

    Raises:
        DataError: the batch is not a pair.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError(
            f"a batch must be a pair (inputs, target); the loader gave {type(batch).__name__}"
            + (f" of {len(batch)}" if isinstance(batch, Sequence) else "")
        )
    return batch[0], batch[1]


def batch_size(target: Any) -> int:
    """Examples in a batch, by its target's first tensor."""
    leaves = [leaf for leaf in pytree.tree_leaves(target) if isinstance(leaf, Tensor)]
    return len(leaves[0]) if leaves and leaves[0].dim() else 1


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
