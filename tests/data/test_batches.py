"""A user's own loader as batches, and the stream that goes on epoch after epoch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from proxylessnas.data import BatchStream, LoaderBatches
from proxylessnas.errors import DataError


def test_a_shuffling_loader_repeats_each_epoch_and_skips() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(12), torch.arange(12))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    batches = LoaderBatches(loader, name="train", seed=3)
    first = [x.tolist() for x, _ in batches.epoch(0)]
    torch.rand(5)
    assert [x.tolist() for x, _ in batches.epoch(0)] == first
    assert [x.tolist() for x, _ in batches.epoch(0, start=2)] == first[2:]
    assert [x.tolist() for x, _ in batches.epoch(1)] != first
    other = LoaderBatches(loader, name="train", seed=4)
    assert [x.tolist() for x, _ in other.epoch(0)] != first


def test_drawing_batches_leaves_the_global_generator_alone() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(12), torch.arange(12))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(LoaderBatches(loader, name="train").epoch(0))
    assert torch.equal(torch.rand(3), expected)


def test_a_stream_goes_on_where_it_was() -> None:
    batches = LoaderBatches(list(enumerate("abc")), name="train")
    whole = BatchStream(batches)
    taken = [whole.draw() for _ in range(8)]
    assert [i for i, _ in taken] == [0, 1, 2, 0, 1, 2, 0, 1]
    for start in range(8):
        assert BatchStream(batches, start).draw() == taken[start]


@pytest.mark.parametrize(
    ("loader", "message"),
    [([], "is empty"), (iter([1]), "has no length")],
)
def test_unusable_loaders_are_named(loader: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"train loader {message}"):
        LoaderBatches(loader, name="train")


def test_data_that_end_early_are_named() -> None:
    class Short:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Any:
            return iter([(1, 2)])

    stream = BatchStream(LoaderBatches(Short(), name="train"))
    stream.draw()
    with pytest.raises(DataError, match="train ended after 1 of the 3 batches"):
        stream.draw()


class Countdown:
    """An iterator as PyTorch's own: its length is what is left, or cannot be asked for."""

    def __init__(self, left: int, ask: bool) -> None:
        self.left, self.ask = left, ask

    def __len__(self) -> int:
        if not self.ask:
            raise RuntimeError("the length of this iterator cannot be asked for")
        return 0

    def __iter__(self) -> Countdown:
        return Countdown(self.left, self.ask)

    def __next__(self) -> int:
        if not self.left:
            raise StopIteration
        self.left -= 1
        return self.left


class Loader(Countdown):
    def __len__(self) -> int:
        return self.left


@pytest.mark.parametrize("ask", [True, False])
def test_the_truth_of_a_loaders_iterator_is_never_asked_for(ask: bool) -> None:
    assert list(LoaderBatches(Loader(4, ask), name="train").epoch(0)) == [3, 2, 1, 0]


def test_a_batch_may_be_none() -> None:
    assert list(LoaderBatches([None, 1, None], name="train").epoch(0)) == [None, 1, None]
