"""Folders of images: their layouts, and what is said of wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from image_folders import load, make_folder, picture, pixels_of, whole_part

from proxylessnas.data.stores import PixelsInMemory
from proxylessnas.errors import DataError


def test_folder_without_a_split(tmp_path: Path) -> None:
    data = load(str(make_folder(tmp_path, count=25)))
    assert data.info.shape == (3, 12, 12)
    assert data.info.classes == ("cat", "dog")
    assert (
        isinstance(data.store, PixelsInMemory)
        and data.augmentation.text == "crop+flip"
        and not data.summary.damaged
    )
    assert [data.size(part) for part in ("train", "search", "valid", "test")] == [40, 36, 4, 10]
    for part in ("train", "test", "valid"):
        counts = whole_part(data, part)[1].bincount()
        assert counts[0] == counts[1]
    assert pixels_of(data, "search") | pixels_of(data, "valid") == pixels_of(data, "train")
    assert not pixels_of(data, "search") & pixels_of(data, "valid")
    assert not pixels_of(data, "train") & pixels_of(data, "test")
    assert len(pixels_of(data, "train") | pixels_of(data, "test")) == 50


def test_folder_with_its_own_parts(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", count=6)
    make_folder(tmp_path / "val", count=3, first=100)
    only_val = load(str(tmp_path))
    assert [only_val.size(p) for p in ("train", "search", "valid", "test")] == [12, 10, 2, 6]
    make_folder(tmp_path / "test", count=2, first=200)
    data = load(str(tmp_path))
    assert [data.size(p) for p in ("train", "search", "valid", "test")] == [18, 12, 6, 4]
    assert pixels_of(data, "valid") == pixels_of(only_val, "test")
    assert pixels_of(data, "search") == pixels_of(only_val, "train")


def test_folder_with_train_alone_or_a_class_of_that_name(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "Train", count=10)
    assert load(str(tmp_path / "a")).size("test") == 4
    make_folder(tmp_path / "b", classes=("bus", "train"))
    assert load(str(tmp_path / "b")).info.classes == ("bus", "train")


def test_links_are_followed_once(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", count=8)
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data" / "cat")
    (tmp_path / "data" / "cat" / "up").symlink_to(tmp_path / "data" / "cat" / "up")
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    data = load(str(tmp_path / "linked"))
    assert data.size("train") + data.size("test") == 16


def empty(root: Path) -> None:
    root.mkdir(exist_ok=True)


def loose_images(root: Path) -> None:
    picture(0).save(root / "a.png")


def empty_class(root: Path) -> None:
    make_folder(root)
    (root / "cow").mkdir()
    (root / "cow" / "notes.txt").write_text("later")


def one_class(root: Path) -> None:
    make_folder(root, classes=("cat",))


def one_folder_too_high(root: Path) -> None:
    make_folder(root / "pets")


def unknown_test_class(root: Path) -> None:
    make_folder(root / "train")
    make_folder(root / "test", classes=("cat", "wolf"))


def two_validation_folders(root: Path) -> None:
    for name in ("train", "val", "valid"):
        make_folder(root / name)


def too_few(root: Path) -> None:
    make_folder(root)
    make_folder(root, classes=("rare",), count=2)


def one_damaged_of_few(root: Path) -> None:
    make_folder(root)
    (root / "dog" / "broken.jpg").write_bytes(b"this is no image")


def all_damaged(root: Path) -> None:
    for name in ("a", "b"):
        (root / name).mkdir()
        for i in range(5):
            (root / name / f"{i}.jpg").write_bytes(b"")


def dead_link(root: Path) -> None:
    root.rmdir()
    root.symlink_to(root.parent / "gone")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty, "holds no images; expected one folder of images a class"),
        (loose_images, "holds images but no folders; expected one folder"),
        (empty_class, "cow holds no image"),
        (one_class, "holds 1 class (cat), at least 2 are needed; one folder a class"),
        (one_folder_too_high, "did you mean"),
        (unknown_test_class, "wolf is not a class of the training part"),
        (two_validation_folders, "two folders for one part"),
        (too_few, "class 'rare' has 2 training images; at least 3 are needed"),
        (one_damaged_of_few, "dog/broken.jpg (cannot identify image file"),
        (all_damaged, "no image can be opened"),
        (dead_link, "is a link that leads nowhere"),
    ],
)
def test_bad_folders(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    with pytest.raises(DataError) as error:
        load(str(root))
    assert message in str(error.value) and "\n" not in str(error.value)
