"""Batches: the same in any process, batch size, order of resuming."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from image_folders import load, make_folder, mixed_size, same_batches, whole_part


def test_a_batch_larger_than_the_part() -> None:
    data = load("digits", limit=40)
    assert len(data.batches("train", 64)) == 1
    with pytest.raises(ValueError, match="one of train, search, valid, test"):
        data.batches("validation", 4)
    with pytest.raises(ValueError, match="an epoch has 1 batches"):
        data.batches("train", 64).epoch(0, start=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photos"), count=16, size=mixed_size)


@pytest.mark.parametrize("words", ["crop+flip+cutout4", "crop+randaugment", "trivialaugment"])
def test_the_number_of_workers_changes_nothing(photos: Path, words: str) -> None:
    state = torch.random.get_rng_state()
    made = []
    for workers in (0, 2):
        data = load(str(photos), image_size=16, workers=workers, augment=words)
        stream = data.batches("train", 5, augment=True, shuffle=True, seed=3)
        made.append(list(stream.epoch(2)))
        assert same_batches(made[-1][3:], list(stream.epoch(2, start=3)))
    assert same_batches(*made)
    assert torch.equal(state, torch.random.get_rng_state())  # the global stream is untouched


@pytest.mark.parametrize("words", ["crop+flip+cutout2", "shift+randaugment", "trivialaugment"])
def test_resuming_gives_the_tail_of_the_epoch(words: str) -> None:
    data = load("digits", limit=100, augment=words)
    stream = data.batches("search", 16, augment=True, shuffle=True, seed=5)
    whole = list(stream.epoch(4))
    assert len(whole) == len(stream) == 6
    for start in range(7):
        assert same_batches(whole[start:], list(stream.epoch(4, start)))
    torch.manual_seed(99)
    again = load("digits", limit=100, augment=words)
    other = again.batches("search", 16, augment=True, shuffle=True, seed=5)
    assert same_batches(whole, list(other.epoch(4)))
    assert not same_batches(whole, list(stream.epoch(5)))


def test_a_sample_is_augmented_alike_in_any_batch_size() -> None:
    data = load("digits", limit=60)
    a = torch.cat([x for x, _ in data.batches("train", 7, augment=True).epoch(1)])
    b = torch.cat([x for x, _ in data.batches("train", 60, augment=True).epoch(1)])
    assert torch.equal(a, b)
    plain = torch.cat([x for x, _ in data.batches("train", 60).epoch(1)])
    assert not torch.equal(a, plain)


def test_a_shuffle_is_a_permutation_and_leaves_labels_with_their_images() -> None:
    data = load("digits", limit=60)
    images, labels = whole_part(data, "train")
    mixed_images, mixed_labels = whole_part(data, "train", shuffle=True)
    assert not torch.equal(labels, mixed_labels)
    where = [(images == image).flatten(1).all(1).nonzero()[0, 0] for image in mixed_images]
    assert sorted(int(i) for i in where) == list(range(60))
    assert torch.equal(labels[torch.stack(where)], mixed_labels)


def test_an_abandoned_iterator_leaves_nothing_behind(photos: Path) -> None:
    data = load(str(photos), image_size=16, workers=2)
    iterator = data.batches("train", 4).epoch(0)
    next(iterator)
    started = time.monotonic()
    del iterator
    assert time.monotonic() - started < 5
