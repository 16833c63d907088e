"""What loaders tell without an epoch: sizes, labels, whether they begin again or share examples."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)
from torch.utils.data import SubsetRandomSampler as SubsetSampler

from proxylessnas.data import Batches, ImageBatches, LoaderBatches
from proxylessnas.data.arguments import as_pair, in_words
from proxylessnas.errors import DataError, UserError, one_line
from proxylessnas.seeds import undisturbed_generators
from proxylessnas.session.store import CONFIG, Store
from proxylessnas.training.faults import first_examples
from proxylessnas.training.task import is_integer, split

MOST_UNLIKE = 3  # batches of other shapes that are tried


def counts(batches: Batches) -> tuple[int, ...]:
    """Batches an epoch; and examples, where the loader tells."""
    loader = batches.loader if isinstance(batches, LoaderBatches) else None
    sampler = getattr(_batch_sampler(loader), "sampler", None)
    source = sampler if isinstance(sampler, Sized) else getattr(loader, "dataset", None)
    return (len(batches), len(source)) if isinstance(source, Sized) else (len(batches),)


def _batch_sampler(loader: Any) -> BatchSampler | None:
    """What says how a `DataLoader` makes batches of examples."""
    sampler = getattr(loader, "batch_sampler", None)
    return sampler if isinstance(sampler, BatchSampler) else None


def single_example(batches: Batches, first: Any, size: int) -> Any:
    """A batch of one example, where the batches of an epoch have one; else None.

    first: a batch of `size` examples, of which one is taken where only the number is known.
    """
    if isinstance(batches, ImageBatches):
        examples, each = len(batches.rows), batches.batch_size
    elif not isinstance(batches, LoaderBatches):
        return None
    else:
        sampler = _batch_sampler(batches.loader)
        if sampler is None or sampler.drop_last:
            return None
        examples, each = counts(batches)[-1], sampler.batch_size
    return first_examples(1, first) if examples % each == 1 < size else None


def unlike_the_first(batches: Batches, most: int, said: list[str]) -> Iterator[tuple[str, Any]]:
    """A few batches of other shapes or types than the first one, and their names.

    Of a list all are looked at. Of another loader `most` batches are drawn, and the whole epoch
    where it has no more, which shows whether its length is true. said: takes what is to be said.
    """
    loader = batches.loader if isinstance(batches, LoaderBatches) else None
    if not isinstance(batches, LoaderBatches) or isinstance(loader, Iterator):
        return
    most = len(batches) if isinstance(loader, list | tuple) else max(most, _least(loader))
    known, before = {batches.first}, None
    with blamed([batches]):
        for number, batch in enumerate(islice(batches.epoch(0), most)):
            words = in_words(batches.latest.batch)
            if len(known) <= MOST_UNLIKE and words not in known:
                known.add(words)
                yield f"batch {number} of {{name}}", batch
            if number == 1 and _least(loader) == 2 and _same(before, batch):
                said.append(
                    f"batches 0 and 1 of {batches.name} are the same: each worker gives all "
                    "examples of the IterableDataset, so that an epoch is one part of them several "
                    "times; let every worker give its own (torch.utils.data.get_worker_info)"
                )
            before = batch
    if most >= len(batches) and _goes_on(loader, len(batches)):
        said.append(
            f"{batches.name} gives more than the {len(batches)} batches that its length says: all "
            "that come after them are never read; let both agree"
        )


def _least(loader: Any) -> int:
    """Batches that are drawn early however short the search is.

    Two of a stream that several workers read, which may give the same; one of what may give more
    than its length says.
    """
    if not isinstance(loader, DataLoader):
        return 1
    return 2 if isinstance(loader.dataset, IterableDataset) and loader.num_workers > 1 else 0


def _goes_on(loader: Any, length: int) -> bool:
    """Whether a loader gives more batches than its length; not asked of torch's own."""
    if isinstance(loader, list | tuple | DataLoader):
        return False
    with undisturbed_generators():
        return any(True for _ in islice(iter(loader), length, length + 1))


def try_examples(name: str, batches: Batches) -> None:
    """Load the first and the last example of a data set behind a `DataLoader`.

    A length that is too large, and files that were not copied to the end, fail there, and else
    some way into the search.

    Raises:
        DataError: one cannot be loaded.
    """
    loader = batches.loader if isinstance(batches, LoaderBatches) else None
    if not isinstance(loader, DataLoader) or type(loader.batch_sampler) is not BatchSampler:
        return
    data, rows = loader.dataset, _own_rows(loader)
    for row in sorted({min(rows), max(rows)}) if rows else ():
        with undisturbed_generators():
            try:
                data[row]
            except UserError:
                raise
            except Exception as error:  # whatever the user's own data set raises
                raise DataError(
                    f"example {row} of {name}, whose length says {len(data):,}, "  # type: ignore[arg-type]
                    f"cannot be loaded: {last_line(error)}"
                ) from error


@contextmanager
def nothing_lost(store: Store) -> Iterator[None]:
    """Data that fail after something was done: one line says that it is kept, and how to go on."""
    try:
        yield
    except DataError as error:
        if store.path is None or not store.has(CONFIG):
            raise
        raise DataError(
            f"{error}; what was done is kept in {store.path}: mend the data and give the same call "
            "again (with accept_changed_data=True where their length is another one now)"
        ) from error


@contextmanager
def blamed(loaders: Iterable[Batches]) -> Iterator[None]:
    """What fails on a later batch than the one that was tried, as a line that names the batch.

    It does if the loader fails, or its batch is of other shapes, types or labels than its first
    one. Whatever else is raised is a bug, of the user's code or of ours, and stays as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        own = [loader for loader in loaders if isinstance(loader, LoaderBatches)]
        latest = max(own, key=lambda loader: loader.latest.order, default=None)
        words = "" if latest is None else _blame(latest, error)
        if not words:
            raise
        raise DataError(f"{words}: {last_line(error)}") from error


def _blame(loader: LoaderBatches, error: Exception) -> str:
    drawn = loader.latest
    if not drawn.name:
        return ""
    if drawn.batch is None:
        return f"the loader fails on {drawn.name}"
    now = in_words(drawn.batch)
    if now != loader.first:
        return f"{drawn.name} is of {now}, where the first one was of {loader.first}"
    pair = as_pair(drawn.batch)
    target = pair[1] if isinstance(pair, tuple) and len(pair) == 2 else None
    if not isinstance(error, IndexError) or not isinstance(target, Tensor):
        return ""
    if target.numel() and is_integer(target):
        return f"{drawn.name} has labels from {int(target.min())} to {int(target.max())}"
    return ""


def last_line(error: Exception) -> str:
    """An error in one line; of a worker's, which comes with its traceback, the last one."""
    text = str(error)
    if "Original Traceback" in text:
        return text.strip().splitlines()[-1]
    return f"{type(error).__name__}: {one_line(error)}"


def label_range(batches: Batches) -> tuple[int, int] | None:
    """The lowest and the highest label of a loader whose labels are at hand; else None."""
    loader = batches.loader if isinstance(batches, LoaderBatches) else None
    if isinstance(loader, list | tuple):
        targets = [split(as_pair(batch))[1] for batch in loader]
        labels = [t for t in targets if isinstance(t, Tensor) and t.dim() == 1 and t.numel()]
        whole = torch.cat([t.flatten() for t in labels]) if len(labels) == len(targets) else None
    else:
        whole = _labels(getattr(loader, "dataset", None))
    if whole is None or whole.dim() != 1 or not len(whole) or not is_integer(whole):
        return None
    return int(whole.min()), int(whole.max())


def _labels(data: Any) -> Tensor | None:
    """All labels of a data set in memory, as torchvision's call them."""
    if isinstance(data, Subset):
        whole = _labels(data.dataset)
        return None if whole is None else whole[torch.as_tensor(data.indices)]
    if isinstance(data, TensorDataset):
        return data.tensors[-1]
    labels = getattr(data, "targets", getattr(data, "labels", None))
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):  # none, words, lists of several lengths
        return None


def check_repeats(name: str, batches: Batches, first: Any) -> None:
    """Refuse an iterator that goes on where it was: an epoch later it has nothing left.

    first: the first batch of epoch 0, which this loader must give again.

    Raises:
        DataError: it does not.
    """
    loader = batches.loader if isinstance(batches, LoaderBatches) else None
    if isinstance(loader, Iterator) and not _same(first, next(batches.epoch(0), None)):
        raise DataError(
            f"{name} is an iterator ({type(loader).__name__}) that does not begin again with the "
            "same batch: a search goes through it epoch after epoch; give a DataLoader, a list of "
            "batches, or an object that makes a new iterator each time"
        )


def _same(one: Any, other: Any) -> bool:
    leaves = pytree.tree_leaves(one), pytree.tree_leaves(other)
    return len(leaves[0]) == len(leaves[1]) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else type(a) is type(b)
        for a, b in zip(*leaves, strict=True)
    )


def warn_of_sharing(loaders: Mapping[str, Batches]) -> None:
    """Say it where training and validation batches are of the same examples."""
    train, valid = (getattr(loaders.get(name), "loader", None) for name in ("train", "valid"))
    if "valid" not in loaders or (train is valid and train is not None):
        shared = "are the same loader"
    else:
        count = _shared(train, valid)
        shared = f"share {count} examples"
        if not count:
            return
    warnings.warn(
        f"train and valid {shared}: alpha prefers what fits examples that the weights have "
        "memorised; give valid examples that train has not",
        stacklevel=2,
    )


def _shared(one: Any, other: Any) -> int:
    """How many examples two `DataLoader`s have in common, as far as their samplers tell."""
    if not isinstance(one, DataLoader) or not isinstance(other, DataLoader):
        return 0
    (data, rows), (others, other_rows) = _rows(one), _rows(other)
    return len(rows & other_rows) if data is others else 0


def _own_rows(loader: DataLoader[Any]) -> Sequence[int]:
    """The numbers of the examples that a loader draws; none where its sampler does not tell."""
    sampler = loader.sampler
    if isinstance(sampler, SubsetSampler):
        return [int(i) for i in sampler.indices]
    if isinstance(sampler, RandomSampler | SequentialSampler):
        return range(len(loader.dataset))  # type: ignore[arg-type]
    return ()


def _rows(loader: DataLoader[Any]) -> tuple[Any, set[int]]:
    """The data set under all subsets, and the numbers of its examples that the loader draws."""
    data, rows = loader.dataset, _own_rows(loader)
    while isinstance(data, Subset):
        rows = [int(data.indices[i]) for i in rows]
        data = data.dataset
    return data, set(rows)
