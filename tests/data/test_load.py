"""Loading: settings, damaged images, and the summary of what was read."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from image_folders import Sizes, load, make_folder, mixed_size, whole_part
from PIL import Image

from proxylessnas.architecture import Architecture
from proxylessnas.errors import DataError, UserError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"valid_fraction": 1.0}, "valid_fraction"),
        ({"test_fraction": 0.0}, "test_fraction"),
        ({"image_size": 4}, "image size 4 is too small"),
        ({"workers": -1}, "workers"),
        ({"limit": 5}, "limit 5 is too small for 10 classes; at least 20"),
        ({"augment": "crop+spin"}, "unknown augmentation 'crop+spin'"),
        ({"augment": "crop+shift"}, "unknown augmentation 'crop+shift'"),
        ({"augment": "cutout9"}, "cutout9 is larger than the image (8 pixels high)"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        load("digits", **settings)  # type: ignore[arg-type]
    assert message in str(error.value)


@pytest.mark.parametrize("size", [lambda i: (12, 12), mixed_size])
def test_few_damaged_images_are_skipped_and_named(tmp_path: Path, size: Sizes) -> None:
    make_folder(tmp_path, count=60, size=size)
    truncated = tmp_path / "cat" / "00007.png"
    truncated.write_bytes(truncated.read_bytes()[:200])
    with pytest.warns(UserWarning, match=r"1 of 120 images .* skipped: .*00007\.png \("):
        data = load(str(tmp_path), image_size=12, workers=0)
    assert len(data.summary.damaged) == 1 and "00007.png" in data.summary.damaged[0]
    assert data.size("train") + data.size("test") == 119
    _, labels = whole_part(data, "train")
    assert len(labels) == data.size("train")


def test_a_decompression_bomb_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    Image.new("L", (20, 15)).save(tmp_path / "cat" / "bomb.png")
    with warnings.catch_warnings(action="ignore"), pytest.raises(DataError, match=r"bomb\.png \("):
        load(str(tmp_path))


def test_what_is_known_of_the_images_round_trips_with_an_architecture() -> None:
    info = load("digits", limit=20).info
    architecture = Architecture(space="x", choices={}, input=info)
    assert Architecture.from_json(architecture.to_json()).input == info
