"""The demo's data set: the same crops everywhere, test crops from regions of their own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage", reason="the extra demo is not installed")

from proxylessnas.data import surfaces
from proxylessnas.errors import DataError


def test_crops_are_the_same_every_time() -> None:
    source = surfaces.surfaces()
    assert len(source.classes) == 9
    assert {part: len(numbers) for part, numbers in source.parts.items()} == {
        "train": 9 * surfaces.TRAIN,
        "test": 9 * surfaces.TEST,
    }
    crops = [np.asarray(source.reader.open(int(i))) for i in source.parts["test"]]
    assert {(crop.shape, crop.dtype) for crop in crops} == {((128, 128), np.dtype(np.uint8))}
    digest = hashlib.sha256(np.stack(crops).tobytes()).hexdigest()
    surfaces.surfaces.cache_clear()
    again = surfaces.surfaces()
    crops = [np.asarray(again.reader.open(int(i))) for i in again.parts["test"]]
    assert hashlib.sha256(np.stack(crops).tobytes()).hexdigest() == digest
    assert len({crop.tobytes() for crop in crops}) == len(crops)


def test_training_and_test_crops_are_cut_from_regions_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A photograph that is black on the left and white on the right of the split shows it."""
    pixels = np.zeros((200, 300), np.uint8)
    pixels[:, round(surfaces.SPLIT * 300) :] = 255
    image = Image.fromarray(pixels)

    def seen(region: surfaces.Region, rng: np.random.Generator) -> np.ndarray:
        values = np.asarray(region.image)[:, region.left : region.right]
        assert values.min() == values.max()
        return np.full((surfaces.SIDE, surfaces.SIDE), values[0, 0])

    monkeypatch.setattr(surfaces, "_photographs", lambda: {"a": image, "b": image})
    monkeypatch.setattr(surfaces, "_crop", seen)
    surfaces.surfaces.cache_clear()
    source = surfaces.surfaces()
    surfaces.surfaces.cache_clear()
    for part, value in (("train", 0), ("test", 255)):
        for number in source.parts[part]:
            assert np.asarray(source.reader.open(int(number))).max() == value


def test_a_crop_stays_in_its_region() -> None:
    """At every angle, scale and place: beyond the region all is white, inside all is black."""
    pixels = np.full((200, 400), 255, np.uint8)
    pixels[:, 100:250] = 0
    region = surfaces.Region(Image.fromarray(pixels), 100, 250)
    for seed in range(60):
        crop = surfaces._crop(region, np.random.default_rng(seed))
        assert crop.std() < 25, seed  # the noise alone: an edge would have more


def test_a_photograph_that_is_gone_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {**surfaces.PHOTOGRAPHS, "wood": ("wood.png", (0.0, 0.0, 1.0, 1.0))}
    monkeypatch.setattr(surfaces, "PHOTOGRAPHS", files)
    surfaces.surfaces.cache_clear()
    with pytest.raises(DataError, match=r"wood\.png is not there"):
        surfaces.surfaces()
