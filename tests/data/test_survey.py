"""Images looked at once: the format they get, mean and deviation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from image_folders import load, make_folder, mixed_size, picture, whole_part
from PIL import Image

from proxylessnas.data import survey
from proxylessnas.data.content import Header
from proxylessnas.data.decode import ImageShape
from proxylessnas.data.stores import PixelsInMemory, StreamedImages


def test_images_of_mixed_size_are_photos(tmp_path: Path) -> None:
    data = load(str(make_folder(tmp_path, size=mixed_size)), workers=0)
    assert data.info.shape == (3, 224, 224) and data.info.central_share == 0.875
    assert isinstance(data.store, StreamedImages)
    assert load(str(tmp_path), image_size=16, workers=0).info.shape == (3, 16, 16)


def test_large_images_of_one_size_are_photos(tmp_path: Path) -> None:
    make_folder(tmp_path, count=4, size=lambda i: (300, 250))
    assert load(str(tmp_path), workers=0).info.shape == (3, 224, 224)


def test_a_set_that_does_not_fit_in_memory_streams_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = load(str(make_folder(tmp_path, size=lambda i: (12, 10))))
    monkeypatch.setattr(survey, "MEMORY_BYTES", 1000)
    streamed = load(str(tmp_path), workers=0)
    assert isinstance(kept.store, PixelsInMemory)
    assert isinstance(streamed.store, StreamedImages)
    assert kept.info == streamed.info and kept.info.shape == (3, 10, 12)
    for part in ("search", "valid", "test"):
        a, b = whole_part(kept, part), whole_part(streamed, part)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3), ("RGB", 3)]
)
def test_modes(tmp_path: Path, mode: str, channels: int) -> None:
    data = load(str(make_folder(tmp_path, count=3, mode=mode)))
    assert data.info.shape[0] == channels
    assert data.augmentation.text == ("shift" if channels == 1 else "crop+flip")


def test_one_colour_image_among_gray_ones_makes_all_rgb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path, mode="L")
    picture(5).save(tmp_path / "cat" / "00005.png")
    assert load(str(tmp_path)).info.shape[0] == 3
    monkeypatch.setattr(survey, "SAMPLE", 4)  # not among those looked at: found while decoding
    assert load(str(tmp_path)).info.shape[0] == 3
    picture(6, (13, 12)).save(tmp_path / "cat" / "00006.png")
    data = load(str(tmp_path), image_size=8, workers=0)
    assert isinstance(data.store, StreamedImages)


def test_mean_and_std_are_those_of_the_training_part(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", size=mixed_size, count=8)
    for c in ("cat", "dog"):  # white test images must not count
        (tmp_path / "test" / c).mkdir(parents=True)
        Image.new("RGB", (25, 25), "white").save(tmp_path / "test" / c / "a.png")
    for size in (None, 12):
        data = load(str(tmp_path), image_size=size, workers=0)
        images, _ = whole_part(data, "train")
        assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
        assert torch.allclose(images.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)


def test_a_constant_channel_is_not_divided_by_zero(tmp_path: Path) -> None:
    for c in ("a", "b"):
        (tmp_path / c).mkdir()
        for i in range(4):
            Image.new("RGB", (8, 8), (255, 0, i * 9)).save(tmp_path / c / f"{i}.png")
    assert torch.isfinite(whole_part(load(str(tmp_path)), "train")[0]).all()


def test_a_colour_image_that_no_sample_promised_makes_streamed_images_rgb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path, mode="L", size=mixed_size)
    picture(5, (20, 30)).save(tmp_path / "cat" / "00005.png")
    gray = [Header(ImageShape(1, side, 20), False, False, 1) for side in (29, 30)]
    monkeypatch.setattr(survey, "read_headers", lambda reader, numbers, progress: gray)
    assert load(tmp_path, image_size=8, workers=0).info.shape == (3, 8, 8)
