"""Folders as people bring them: read as they are meant, with counts, or refused in one line."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import pytest
from image_folders import load, make_folder, picture, sizes
from PIL import Image

from proxylessnas.data import formats
from proxylessnas.data.parts import part_of, parts_among
from proxylessnas.errors import DataError


def refusal(spec: Path) -> str:
    """The one line that a data set is refused with."""
    with pytest.raises(DataError) as error:
        load(spec, workers=0)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- parts ---


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("TRAIN", "Test"),
        ("training_set", "test_set"),
        ("train_data", "eval"),
        ("TrainSet", "TestSet"),
        ("Train Images", "Test Images"),
        ("train2017", "test2017"),
        ("seg_train", "seg_test"),
        ("birds-train", "birds-testing"),
        ("train_birds", "test_birds"),
    ],
)
def test_parts_by_their_usual_names(tmp_path: Path, train: str, test: str) -> None:
    make_folder(tmp_path / train, count=10)
    make_folder(tmp_path / test, count=3, first=100)
    data = load(tmp_path)
    assert data.info.classes == ("cat", "dog") and sizes(data) == [20, 18, 2, 6]
    assert f"train from {train}" in str(data.summary)
    assert f"test from {test}" in str(data.summary)


def test_train_and_dev(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", count=10)
    make_folder(tmp_path / "dev", count=3, first=100)
    data = load(tmp_path)
    assert sizes(data) == [20, 18, 2, 6]
    assert "valid from dev" in str(data.summary)
    assert "the validation part is the test part" in str(data.summary)


def test_parts_that_repeat_their_own_name(tmp_path: Path) -> None:
    """seg_train/seg_train/CLASS, with a folder of images to predict beside."""
    make_folder(tmp_path / "seg_train" / "seg_train", count=10)
    make_folder(tmp_path / "seg_test" / "seg_test", count=3, first=100)
    make_folder(tmp_path / "seg_pred", classes=("seg_pred",), count=4)
    data = load(tmp_path)
    assert data.info.classes == ("cat", "dog") and sizes(data) == [20, 18, 2, 6]
    assert data.summary.left_out == {"image of no part (seg_pred)": 4}


def test_names_of_parts() -> None:
    assert part_of("Validation-Set") == ("valid", "") and part_of("holdout") == ("test", "")
    assert part_of("latest") is None and part_of("evaluate_me") is None and part_of("") is None
    assert parts_among(["bullet_train", "car"]) == {}
    assert parts_among(["x_train", "y_test"]) == {}
    assert parts_among(["x_train", "x_val"]) == {"train": ["x_train"], "valid": ["x_val"]}


def test_classes_that_are_called_like_parts(tmp_path: Path) -> None:
    make_folder(tmp_path / "a", classes=("bus", "train"))
    assert load(tmp_path / "a").info.classes == ("bus", "train")
    make_folder(tmp_path / "b", classes=("bullet_train", "car"))
    assert load(tmp_path / "b").info.classes == ("bullet_train", "car")


def test_parts_of_unknown_names_are_no_classes(tmp_path: Path) -> None:
    for name in ("lernen", "pruefen"):
        make_folder(tmp_path / name)
    assert "lernen, pruefen hold the same folders (cat, dog)" in refusal(tmp_path)


def test_classes_above_parts(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        make_folder(tmp_path / name, classes=("train", "test"))
    assert "cat, dog hold the same folders (test, train)" in refusal(tmp_path)


def test_parts_of_unknown_names_with_other_classes_each(tmp_path: Path) -> None:
    make_folder(tmp_path / "2020", count=5)
    make_folder(tmp_path / "2021", count=5, first=60)
    make_folder(tmp_path / "2022", classes=("cat",), count=5, first=90)
    picture(1).save(tmp_path / "2020" / "stray.png")
    assert "2020, 2021, 2022 hold the same folders (cat, dog)" in refusal(tmp_path)


def test_a_test_folder_beside_classes_is_no_class(tmp_path: Path) -> None:
    make_folder(tmp_path / "a", classes=("cat", "dog", "test"))
    assert "holds test, which is called like a part, beside class folders" in (
        refusal(tmp_path / "a")
    )
    make_folder(tmp_path / "b", classes=("control", "test"))
    assert load(tmp_path / "b").info.classes == ("control", "test")


def test_a_part_that_is_a_link_to_another(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", count=10)
    make_folder(tmp_path / "val", count=3, first=100)
    (tmp_path / "test").symlink_to(tmp_path / "val")
    assert sizes(load(tmp_path)) == [26, 20, 6, 6]


def test_folders_within_classes_are_read(tmp_path: Path) -> None:
    make_folder(tmp_path / "cat", classes=("2020", "2021"))
    make_folder(tmp_path / "dog", classes=("2022",), first=500)
    assert load(tmp_path).summary.classes == {"cat": 20, "dog": 10}


def test_parts_without_classes(tmp_path: Path) -> None:
    make_folder(tmp_path, classes=("train", "test"))
    assert "train holds images but no folders" in refusal(tmp_path)


def test_parts_without_a_training_part(tmp_path: Path) -> None:
    for name in ("val", "test"):
        make_folder(tmp_path / name)
    assert "no training part" in refusal(tmp_path)


def test_train_beside_folders_of_unknown_meaning(tmp_path: Path) -> None:
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "more")
    assert "called like a part, beside more" in refusal(tmp_path)


def test_a_competitions_test_part_has_no_labels(tmp_path: Path) -> None:
    make_folder(tmp_path / "train")
    make_folder(tmp_path, classes=("test",), count=7)
    data = load(tmp_path)
    assert sizes(data) == [16, 14, 2, 4]  # held out of train
    assert data.summary.left_out == {"test image without a class folder": 7}


def test_a_test_class_that_is_spelt_otherwise(tmp_path: Path) -> None:
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "test", classes=("Cat", "dog"))
    assert "test/Cat is not a class of the training part; did you mean cat?" in refusal(tmp_path)


def test_class_names_that_differ_only_in_unicode_form_are_one(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    make_folder(tmp_path / "train", classes=(composed, "dog"))
    make_folder(tmp_path / "train", classes=(decomposed,), count=3, first=500)
    make_folder(tmp_path / "test", classes=(decomposed, "dog"), count=2, first=900)
    data = load(tmp_path)
    assert data.summary.classes == {composed: 15, "dog": 12} and data.size("test") == 4


# --- files ---


def test_thumbnails_and_hidden_files_are_left_out_and_counted(tmp_path: Path) -> None:
    make_folder(tmp_path)
    make_folder(tmp_path / "cat" / "@eaDir", classes=("a.jpg",), count=3)
    make_folder(tmp_path / "__MACOSX", count=3)
    make_folder(tmp_path / ".cache", count=3)
    (tmp_path / "dog" / "._00000.png").write_bytes(b"resource fork")
    (tmp_path / "dog" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "README").write_text("photos")
    picture(7).save(tmp_path / "loose.png")
    data = load(tmp_path)
    assert data.summary.classes == {"cat": 10, "dog": 10}
    assert data.summary.left_out == {
        "folder @eaDir of the system": 1,
        "folder __MACOSX of the system": 1,
        "hidden folder": 1,
        "hidden file": 1,
        ".db file": 1,
        "file without an extension": 1,
        "image in no class folder": 1,
    }


def test_a_class_whose_name_begins_with_underscores_is_read(tmp_path: Path) -> None:
    make_folder(tmp_path, classes=("__other__", "$5", "#1"))
    assert load(tmp_path).info.classes == ("#1", "$5", "__other__")


def test_images_of_kinds_that_cannot_be_read(tmp_path: Path) -> None:
    make_folder(tmp_path, count=60)
    (tmp_path / "cat" / "a.DNG").write_bytes(b"")
    assert load(tmp_path).summary.left_out == {".dng, which cannot be read": 1}
    (tmp_path / "dog" / "b.cr2").write_bytes(b"")
    assert "2 of 122 images in" in (line := refusal(tmp_path))
    assert ".cr2, .dng, which cannot be read: convert them" in line


def test_photos_of_a_phone_are_read_where_their_package_is(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    make_folder(tmp_path)
    photo = Image.new("RGB", (40, 30), (200, 30, 40))
    photo.save(tmp_path / "cat" / "IMG_0001.HEIC", "HEIF", quality=95)
    data = load(tmp_path)
    assert not data.summary.left_out and data.info.classes == ("cat", "dog")
    assert "pip install pillow-heif" in formats.remedy({".heic"})
    assert "pip" not in formats.remedy({".heic", ".cr2"})


def test_images_whose_names_do_not_say_so(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for path in (tmp_path / "cat").iterdir():
        path.rename(path.with_suffix(""))
    for path in (tmp_path / "dog").iterdir():
        path.rename(path.with_suffix(".png_large"))
    (tmp_path / "dog" / "LICENSE").write_text("free")
    summary = load(tmp_path).summary
    assert summary.classes == {"cat": 10, "dog": 10}
    assert summary.left_out == {"file without an extension": 1}
    archive = shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path)
    assert load(archive).summary.classes == summary.classes


def test_jfif_and_avif_are_images(tmp_path: Path) -> None:
    make_folder(tmp_path)
    picture(1).save(tmp_path / "cat" / "a.jfif", "jpeg")
    picture(2).save(tmp_path / "dog" / "b.AVIF", "avif")
    assert load(tmp_path).summary.classes == {"cat": 11, "dog": 11}


def test_what_was_read_is_said(tmp_path: Path) -> None:
    make_folder(tmp_path, classes=("cat",), count=12, size=lambda i: (20, 10 + i), mode="L")
    make_folder(tmp_path, classes=("dog",), count=9, size=lambda i: (30, 10))
    assert str(load(tmp_path, image_size=8, workers=0).summary).splitlines() == [
        "17 train images (15 search, 2 valid), 4 test",
        "2 classes: cat 12, dog 9",
        "files of 10-21 x 20-30 pixels, gray and RGB; read as 8 x 8 RGB",
    ]


def test_many_classes_are_said_in_short(tmp_path: Path) -> None:
    make_folder(tmp_path, classes=tuple(f"c{i:02}" for i in range(30)), count=3)
    make_folder(tmp_path, classes=("c05",), count=8, first=9000)
    assert "30 classes: 3-11 images each, c00 3 ... c05 11" in str(load(tmp_path).summary)


# --- what is there twice, or means something else ---


def test_parts_below_folders_that_hold_nothing_else(tmp_path: Path) -> None:
    make_folder(tmp_path / "pets" / "archive" / "train", count=10)
    make_folder(tmp_path / "pets" / "archive" / "test", count=3, first=100)
    data = load(tmp_path)
    assert sizes(data) == [20, 18, 2, 6] and "test from pets/archive/test" in str(data.summary)


def test_classes_below_one_folder_may_be_parts_of_a_class(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "cat", classes=("2020", "2021"))
    assert f"holds 1 class (a), at least 2 are needed; did you mean {tmp_path}/a" in refusal(
        tmp_path
    )


@pytest.mark.parametrize("names", [("images", "masks"), ("Images", "labels"), ("img", "gt")])
def test_layouts_of_other_tasks(tmp_path: Path, names: tuple[str, str]) -> None:
    make_folder(tmp_path / "train", classes=(names[0],))
    (tmp_path / "train" / names[1]).mkdir()
    assert "as for detection or segmentation" in refusal(tmp_path)


def test_folders_within_classes_are_said(tmp_path: Path) -> None:
    make_folder(tmp_path / "animal", classes=("cat", "dog"))
    make_folder(tmp_path, classes=("car",))
    data = load(tmp_path)
    assert data.summary.classes == {"animal": 20, "car": 10}
    words = "folders within classes are read as part of them: animal/cat, animal/dog"
    assert words in str(data.summary)


def test_the_table_beside_one_folder_of_images_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path, classes=("images",))
    (tmp_path / "labels.csv").write_text("")
    assert f"did you mean {tmp_path}/labels.csv?" in refusal(tmp_path)


def test_images_that_are_there_twice_are_said(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", count=10)
    make_folder(tmp_path / "test", count=4, first=100)
    assert "pixel for pixel" not in str(load(tmp_path).summary)
    shutil.copy(tmp_path / "train/cat/00001.png", tmp_path / "test/cat/again.png")
    shutil.copy(tmp_path / "train/cat/00002.png", tmp_path / "test/dog/again.png")
    said = str(load(tmp_path).summary)
    assert "2 of 10 test images are in the training part as well, pixel for pixel" in said
    assert "1 test images have another label in the training part" in said


# --- zip files ---


@pytest.mark.parametrize("inside", ["", "pets", "a/b"])
def test_a_zip_of_a_folder(tmp_path: Path, inside: str) -> None:
    make_folder(tmp_path / "x" / inside / "train", count=10)
    make_folder(tmp_path / "x" / inside / "test", count=3, first=100)
    archive = Path(shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path / "x"))
    zipped, folder = load(archive), load(tmp_path / "x" / inside)
    assert zipped.info == folder.info and sizes(zipped) == sizes(folder) == [20, 18, 2, 6]


def test_a_zip_is_read_by_workers(tmp_path: Path) -> None:
    make_folder(tmp_path / "x", size=lambda i: (20 + i, 30))
    archive = Path(shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path / "x"))
    images = [
        [images for images, _ in load(spec, image_size=8, workers=2).batches("test", 8).epoch(0)]
        for spec in (archive, tmp_path / "x")
    ]
    assert images[0][0].equal(images[1][0])


def test_a_zip_that_is_cut_off(tmp_path: Path) -> None:
    make_folder(tmp_path / "x")
    archive = Path(shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path / "x"))
    archive.write_bytes(archive.read_bytes()[:3000])
    assert "is no whole zip file" in refusal(archive)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mp4").write_bytes(b"")
    assert "is a file; --data takes" in refusal(tmp_path / "data.mp4")


@pytest.mark.parametrize("name", ["augmented", "results", "Cat_old"])
def test_a_folder_beside_the_classes_that_holds_the_classes_again(
    tmp_path: Path, name: str
) -> None:
    """Copies of the classes would be a class of their own, and test images learned by heart."""
    make_folder(tmp_path)
    make_folder(tmp_path / name, first=5000)
    line = refusal(tmp_path)
    assert (
        f"the folder {name} beside the classes holds folders of the same names (cat, dog)" in line
    )


def test_a_class_folder_within_a_folder_of_its_own_name(tmp_path: Path) -> None:
    """As some tools unpack: cat/cat/1.png."""
    for name in ("cat", "dog"):
        make_folder(tmp_path / name, classes=(name,))
    assert load(tmp_path).summary.classes == {"cat": 10, "dog": 10}
