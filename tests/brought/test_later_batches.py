"""K7. A later batch than the one that was tried: tried early where it is at hand, else named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_search import CLASSES, Net, changed, images, refused, searched
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, get_worker_info

from proxylessnas import SearchSettings, specialise
from proxylessnas.errors import DataError, RunError
from proxylessnas.hardware.runtimes.fake import FakeRuntime

Change = Callable[[Tensor, Tensor], Any]


class Opaque:
    """A loader whose batches are known when they are drawn."""

    def __init__(self, batches: list[Any], says: int | None = None) -> None:
        self.batches, self.says = batches, len(batches) if says is None else says

    def __len__(self) -> int:
        return self.says

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def later(change: Change) -> list[Any]:
    """The batch of the number 1 is another one."""
    batches: list[Any] = images()
    batches[1] = change(*batches[1])
    return batches


KINDS: dict[str, tuple[Change, str]] = {
    "shape": (lambda x, y: (x[:, :, 0], y), r"float32\[8, 1, 6\]"),
    "dtype": (lambda x, y: (x.double(), y), r"float64\[8, 1, 6, 6\]"),
    "channels": (lambda x, y: (x.repeat(1, 3, 1, 1), y), r"float32\[8, 3, 6, 6\]"),
    "target": (lambda x, y: (x, y.float()), r"target float32\[8\]"),
    "lengths": (lambda x, y: (x, y[:4]), r"target int64\[4\]"),
    "one example": (lambda x, y: (x[:1], y[:1]), r"float32\[1, 1, 6, 6\]"),
}


HARMLESS = {("scoring", "one example"), ("calibration", "target"), ("calibration", "lengths")}


@pytest.mark.parametrize("part", ["train", "valid", "calibration", "scoring"])
@pytest.mark.parametrize("kind", KINDS)
def test_of_a_list_a_later_batch_is_tried_early(part: str, kind: str) -> None:
    change, words = KINDS[kind]
    if (part, kind) in HARMLESS:  # no normalisation by the batch there, or no look at targets
        assert searched(**{part: later(change)}).architecture.choices
        return
    message = refused(**{part: later(change)})
    assert f"batch 1 of {part} " in message and re.search(words, message)


def test_an_empty_batch_in_a_list() -> None:
    assert "batch 1 of train is empty" in refused(train=later(lambda x, y: (x[:0], y[:0])))


@pytest.mark.parametrize("part", ["train", "valid"])
@pytest.mark.parametrize("kind", KINDS)
def test_of_another_loader_the_line_names_the_batch_and_what_differs(part: str, kind: str) -> None:
    with pytest.raises(DataError, match=KINDS[kind][1]) as error:
        searched(**{part: Opaque(later(KINDS[kind][0]))})
    message = str(error.value)
    assert message.startswith(f"batch 1 of {part} (epoch 0) is of inputs ") and "\n" not in message
    assert "the first one was of inputs float32[8, 1, 6, 6], target int64[8]: " in message
    assert isinstance(error.value.__cause__, Exception)  # the traceback is to be had


def test_a_label_that_only_a_later_batch_of_another_loader_has() -> None:
    with pytest.raises(DataError, match=r"batch 1 of train \(epoch 0\) has labels from 7 to 7"):
        searched(train=Opaque(later(lambda x, y: (x, torch.full_like(y, 7)))))


class Broken(Dataset[Any]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        if index == 20:
            raise ValueError("no picture 20")
        return torch.zeros(1, 6, 6), index % CLASSES


@pytest.mark.parametrize("workers", [0, 1])
def test_an_example_that_cannot_be_loaded(workers: int) -> None:
    loader = DataLoader(Broken(), batch_size=8, num_workers=workers)
    line = r"^the loader fails on batch 2 of train \(epoch 0\): ValueError: no picture 20$"
    with pytest.raises(DataError, match=line):
        searched(train=loader)


def test_specialise_names_the_batch_as_well() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    loader = DataLoader(Broken(), batch_size=8)
    with pytest.raises(DataError, match=r"the loader fails on batch 2 of (train|valid) .*no pic"):
        specialise(
            model,
            train=loader,
            valid=loader,
            loss=cross_entropy,
            target_latency="1x",
            example_inputs=(torch.zeros(1, 1, 6, 6),),
            runtime=FakeRuntime(),
            quiet=True,
        )


def test_a_length_that_is_too_long() -> None:
    with pytest.raises(DataError, match="train ended after 3 of the 5 batches that its length"):
        searched(train=Opaque(images(), says=5))


class Failing(Net):
    """A bug in the user's own code, whatever the batch."""

    steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        if self.steps > 12:
            raise ZeroDivisionError
        return super().forward(x)


def test_an_error_that_the_data_do_not_cause_stays_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        searched(Failing(), train=Opaque(images()), valid=Opaque(images(seed=2)))


def test_batches_of_several_shapes_that_do_no_harm() -> None:
    """A network takes images of any size; the last batch is smaller."""
    batches = changed(images(), lambda x, y: (x[:5], y[:5]))
    assert searched(train=[*images(), *batches]).architecture.choices


# --- what can be tried early, and what is lost by nothing else ---


class Sized(Dataset[Any]):
    """A data set whose length is a guess."""

    def __init__(self, says: int, has: int) -> None:
        self.says, self.has = says, has

    def __len__(self) -> int:
        return self.says

    def __getitem__(self, index: int) -> Any:
        if index >= self.has:
            raise IndexError(f"no row {index}")
        return torch.randn(1, 6, 6), index % CLASSES


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_data_set_that_is_shorter_than_it_says(workers: int, shuffle: bool) -> None:
    loader = DataLoader(Sized(1000, 900), 8, num_workers=workers, shuffle=shuffle)
    line = refused(train=loader)
    assert line == (
        "example 999 of train, whose length says 1,000, cannot be loaded: IndexError: no row 999"
    )
    inside = Subset(Sized(1000, 900), range(100, 900))  # of which the loader reads what there is
    assert searched(train=DataLoader(inside, 80)).architecture.choices


LONG = SearchSettings(warmup_epochs=0, epochs=100, learning_rate=0.01)


def test_a_length_is_proven_where_an_epoch_is_a_hundredth_of_the_search() -> None:
    line = refused(train=Opaque(images(), says=4), settings=LONG)
    assert line.startswith("train ended after 3 of the 4 batches that its length says")
    assert "the loader fails on" in refused(train=DataLoader(Broken(), 8), settings=LONG)
    wide = Opaque(later(KINDS["channels"][0]))
    assert "batch 1 of valid" in refused(valid=wide, settings=LONG)


def test_nothing_is_lost_where_a_loader_fails_after_measuring(tmp_path: Path) -> None:
    """The table and the steps stay; with the mended loader the same call goes on."""
    first, second = FakeRuntime(), FakeRuntime()
    how: dict[str, Any] = {"out": tmp_path / "run", "target_latency": "1x"}
    with pytest.raises(DataError) as error:
        searched(train=Opaque(images(), says=5), runtime=first, **how)
    line = str(error.value)
    assert "train ended after 3 of the 5 batches" in line and "\n" not in line
    assert f"what was done is kept in {tmp_path / 'run'}: mend the data and give the same" in line
    assert first.timed_runs > 0
    with pytest.raises(RunError, match="accept_changed_data=True, or search in another `out`"):
        searched(train=Opaque(images()), runtime=second, **how)
    result = searched(train=Opaque(images()), runtime=second, accept_changed_data=True, **how)
    assert result.architecture.choices
    assert second.loaded < first.loaded  # the table was not measured again
    assert searched(train=Opaque(images()), runtime=second, **how).architecture.choices


def test_nothing_is_lost_where_a_broken_example_was_mended(tmp_path: Path) -> None:
    """To the bit what a search would have found that never failed."""

    class Mended(Broken):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index) if index != 20 else super().__getitem__(17)

    whole = searched(train=DataLoader(Mended(), 8), runtime=FakeRuntime())
    with pytest.raises(DataError, match=r"no picture 20; what was done is kept in"):
        searched(train=DataLoader(Broken(), 8), out=tmp_path / "run", runtime=FakeRuntime())
    again = searched(train=DataLoader(Mended(), 8), out=tmp_path / "run", runtime=FakeRuntime())
    alphas = [result.session.finished_search().supernet.alpha for result in (again, whole)]
    assert torch.equal(*alphas)


def test_a_loader_that_gives_more_than_its_length(recwarn: pytest.WarningsRecorder) -> None:
    """The batches after the last one that counts are never read, which nothing else would say."""
    line = "train gives more than the 1 batches that its length says"
    with pytest.warns(UserWarning, match=line):
        searched(train=Opaque(images(), says=1))
    with pytest.warns(UserWarning, match="valid gives more than the 2 batches"):
        searched(valid=Opaque(images(), says=2), settings=LONG)
    recwarn.clear()
    searched(train=Opaque(images()), settings=LONG)
    assert not any("gives more" in str(warning.message) for warning in recwarn)


class Stream(IterableDataset[Any]):
    """Every worker gives all examples, or its own."""

    def __init__(self, parted: bool) -> None:
        self.parted = parted

    def __len__(self) -> int:
        return 24

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        start, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        rows = range(start, 24, step) if self.parted else range(24)
        return iter([(torch.full((1, 6, 6), float(i)), i % CLASSES) for i in rows])


@pytest.mark.parametrize("parted", [False, True])
def test_a_stream_that_every_worker_gives_whole(
    parted: bool, recwarn: pytest.WarningsRecorder
) -> None:
    searched(train=DataLoader(Stream(parted), 4, num_workers=2))
    said = [
        str(w.message) for w in recwarn if "batches 0 and 1 of train are the same" in str(w.message)
    ]
    assert len(said) == (not parted)
