"""Loading: settings, damaged images, and the summary of what was read."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from image_folders import Sizes, load, make_folder, mixed_size, picture, whole_part
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


def test_what_was_read_is_said(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", count=70, size=mixed_size)
    make_folder(tmp_path / "test", count=40, size=mixed_size, first=500)
    make_folder(tmp_path / "more", count=1)
    picture(1).save(tmp_path / "train" / "loose.png")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("later")
    (tmp_path / "test" / "dog" / "00000.png").write_bytes(b"gone")
    with pytest.warns(UserWarning, match="cannot be decoded and are skipped"):
        data = load(tmp_path, image_size=16, workers=0, limit=100)
    summary = data.summary
    assert summary.parts == {"train": 100, "search": 90, "valid": 10, "test": 80}
    assert summary.classes == {"cat": 90, "dog": 90} and summary.shape == (3, 16, 16)
    assert sorted(summary.file_shapes)[0] == (3, 26, 20) and len(summary.file_shapes) == 35
    assert summary.left_out == {
        ".txt file": 1,
        "image of no part (more)": 2,
        "image in no class folder": 1,
        "over loading.limit": 40,
        "cannot be decoded": 1,
    }
    assert len(summary.damaged) == 1 and "test/dog/00000.png (" in summary.damaged[0]
    assert str(summary).splitlines() == [
        "100 train images (90 search, 10 valid), 80 test",
        "2 classes: cat 90, dog 90",
        "files of 26-30 x 20-26 pixels, RGB; read as 16 x 16 RGB",
        "test from test; train from train",
        "left out: 1 (.txt file), 2 (image of no part (more)), 1 (image in no class folder), "
        "40 (over loading.limit), 1 (cannot be decoded)",
    ]


def test_nothing_left_out_is_not_mentioned() -> None:
    summary = load("digits").summary
    assert not summary.left_out and "left out" not in str(summary)
    assert sum(summary.classes.values()) == 1797
