"""Pixels that must keep their content: deep, transparent, printed, indexed and moving images."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import load, make_folder, picture, whole_part
from numpy.typing import NDArray
from PIL import Image

from proxylessnas.architecture import InputInfo
from proxylessnas.data import ImageData, read_image
from proxylessnas.data.decode import decode, deep_range, is_deep
from proxylessnas.errors import DataError

Save = Callable[[Path, int], Any]  # a path without its suffix, and a number


def folder(root: Path, save: Save, count: int = 10) -> Path:
    for c, name in enumerate(("a", "b")):
        (root / name).mkdir(parents=True)
        for i in range(count):
            save(root / name / f"{i:03}", 1000 * c + i)
    return root


def pixels(data: ImageData) -> NDArray[np.float64]:
    """The training images as they were read, 0 to 255."""
    images, _ = whole_part(data, "train")
    std, mean = torch.tensor(data.info.std), torch.tensor(data.info.mean)
    return ((images * std[:, None, None] + mean[:, None, None]) * 255).round().numpy()


def refusal(root: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        load(root, workers=0, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def values(number: int, most: float) -> NDArray[np.float64]:
    """A noisy image [12, 12] from 0 to `most`, both among them."""
    image = np.random.default_rng(number).random((12, 12)) * most
    image[0, 0], image[0, 1] = 0, most
    return image


def as_png_of_48_bits(path: Path, image: NDArray[np.uint16]) -> None:
    """RGB or RGBA with 16 bits a channel, which Pillow does not write."""
    height, width, channels = image.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


# --- more than 8 bits ---

DEEP: dict[str, tuple[Save, float]] = {
    "a float TIFF from 0 to 1": (
        lambda p, i: Image.fromarray(values(i, 1).astype(np.float32)).save(f"{p}.tif"),
        1,
    ),
    "whole numbers of 32 bits": (
        lambda p, i: Image.fromarray(values(i, 70_000).astype(np.int32)).save(f"{p}.tif"),
        70_000,
    ),
    "12 bits in a PNG of 16": (
        lambda p, i: Image.fromarray(values(i, 4095).astype(np.uint16)).save(f"{p}.png"),
        4095,
    ),
    "8 bits in a TIFF of 16": (
        lambda p, i: Image.fromarray(values(i, 255).astype(np.uint16)).save(f"{p}.tif"),
        255,
    ),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_images_are_scaled_by_the_range_of_the_set(tmp_path: Path, kind: str) -> None:
    save, most = DEEP[kind]
    data = load(folder(tmp_path, save))
    assert data.info.value_range == (0, most) and data.info.shape == (1, 12, 12)
    assert f"values from 0 to {most:g} become 0 to 255" in str(data.summary)
    file = sorted(tmp_path.rglob("*.*"))[3]
    raw = np.asarray(Image.open(file), np.float64)
    expected = (raw / most * 255).round().clip(0, 255)
    assert any((image[0] == expected).all() for image in pixels(data))
    assert torch.isclose(read_image(file, data.info), torch.from_numpy(pixels_of(file, data))).all()


def pixels_of(file: Path, data: ImageData) -> NDArray[np.float32]:
    """What the streamed image is: scaled by the set's range, then normalised."""
    assert data.info.value_range is not None
    raw = np.asarray(Image.open(file), np.float64) / data.info.value_range[1]
    gray = (raw * 255).round().clip(0, 255) / 255
    return ((gray - data.info.mean[0]) / data.info.std[0]).astype(np.float32)


def test_one_hot_pixel_does_not_darken_all_others(tmp_path: Path) -> None:
    def save(path: Path, i: int) -> None:
        image = np.random.default_rng(i).integers(0, 4096, (120, 120)).astype(np.uint16)
        image[5, 5] = 65535
        Image.fromarray(image).save(f"{path}.png")

    info = load(folder(tmp_path, save, count=4)).info
    assert info.value_range is not None and info.value_range[1] <= 4095


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    def save(path: Path, i: int) -> None:
        image = values(i, 1).astype(np.float32)
        image[3:6] = np.nan
        Image.fromarray(image).save(f"{path}.tif")

    data = load(folder(tmp_path, save))
    assert data.info.value_range == (0, 1) and (pixels(data)[:, :, 3:6] == 0).all()


def test_one_deep_image_among_others(tmp_path: Path) -> None:
    make_folder(tmp_path, classes=("a", "b"), mode="L")
    Image.fromarray(values(0, 1).astype(np.float32)).save(tmp_path / "a" / "deep.tif")
    assert load(tmp_path).summary.classes == {"a": 11, "b": 10}


def test_a_deep_image_that_no_sample_showed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path, classes=("a", "b"), mode="L", count=20)
    Image.fromarray(values(0, 1).astype(np.float32)).save(tmp_path / "a" / "00001.tif")
    monkeypatch.setattr("proxylessnas.data.survey.SAMPLE", 4)
    assert load(tmp_path).info.value_range == (0, 1)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("most", [4095, 65535])
def test_12_and_16_bits_a_channel_in_colour(tmp_path: Path, most: int, alpha: bool) -> None:
    """Pillow gives the upper 8 bits of such files; here they are scaled by the set's range."""
    made = []

    def save(path: Path, i: int) -> None:
        image = np.random.default_rng(i).integers(0, most + 1, (12, 12, 3 + alpha))
        image[0, 0, :3], image[0, 1, :3] = 0, most
        image[..., 3:] = 65535
        made.append(image[..., :3])
        as_png_of_48_bits(Path(f"{path}.png"), image.astype(np.uint16))

    data = load(folder(tmp_path, save))
    assert data.info.shape == (3, 12, 12) and data.info.value_range == (0, most)
    assert "more than 8 bits" in str(data.summary)
    expected = {(image * (255 / most)).round().astype(int).tobytes() for image in made}
    got = [image.transpose(1, 2, 0).round().astype(int) for image in pixels(data)]
    near = [min(abs(np.frombuffer(e, int) - g.ravel()).max() for e in expected) for g in got]
    assert max(near) <= 1


@pytest.mark.parametrize("compression", ["zlib", None])
@pytest.mark.parametrize("order", ["<", ">"])
def test_colour_of_16_bits_in_a_tiff(tmp_path: Path, order: str, compression: str | None) -> None:
    tifffile = pytest.importorskip("tifffile")
    image = np.random.default_rng(0).integers(0, 4096, (9, 7, 3)).astype(np.uint16)
    path = tmp_path / "x.tif"
    tifffile.imwrite(
        path, image, photometric="rgb", byteorder=order, compression=compression, rowsperstrip=2
    )
    with Image.open(path) as opened:
        assert is_deep(opened) and deep_range(opened) == (image.min(), image.max())
    info = InputInfo(shape=(3, 9, 7), value_range=(0, 4095))
    with Image.open(path) as opened:
        read = decode(opened, info).astype(int).transpose(1, 2, 0)
    assert abs(read - image * (255 / 4095)).max() <= 0.51


def test_a_network_made_for_bytes_takes_16_bits_a_channel(tmp_path: Path) -> None:
    """As it takes gray images of 16 bits: 0 to 65535 is the whole range."""
    image = np.full((8, 8, 3), 32768, np.uint16)
    as_png_of_48_bits(tmp_path / "x.png", image)
    info = InputInfo(shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    assert read_image(tmp_path / "x.png", info).mean().item() == pytest.approx(128 / 255)


def test_a_float_image_for_a_network_of_bytes(tmp_path: Path) -> None:
    info = load(make_folder(tmp_path / "x", mode="L")).info
    Image.fromarray(values(0, 1).astype(np.float32)).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match=r"deep\.tif \(values of any range, but the network"):
        read_image(tmp_path / "deep.tif", info)


# --- transparency ---


def drawing(number: int, ink: int = 0) -> Image.Image:
    """One colour everywhere; what is drawn is in the alpha channel alone."""
    alpha = (np.random.default_rng(number).random((12, 12)) > 0.7).astype(np.uint8) * 255
    return Image.merge("LA", [Image.new("L", (12, 12), ink), Image.fromarray(alpha)])


@pytest.mark.parametrize(("mode", "channels"), [("LA", 1), ("RGBA", 3)])
def test_a_drawing_in_the_alpha_channel_is_black_on_white(
    tmp_path: Path, mode: str, channels: int
) -> None:
    data = load(folder(tmp_path, lambda p, i: drawing(i).convert(mode).save(f"{p}.png")))
    alpha = np.asarray(drawing(3).getchannel("A"))
    assert data.info.shape[0] == channels
    assert any((image == 255 - alpha).all() for image in pixels(data))


@pytest.mark.parametrize("ink", [255, 250])
def test_a_white_drawing_is_read_on_black_and_that_is_said(tmp_path: Path, ink: int) -> None:
    root = folder(tmp_path, lambda p, i: drawing(i, ink).convert("RGBA").save(f"{p}.png"))
    data = load(root)
    assert data.info.background == "black" and "put on black" in str(data.summary)
    alpha = np.asarray(drawing(3).getchannel("A")) * (ink / 255)
    assert any(abs(image - alpha).max() <= 1 for image in pixels(data))
    file = root / "a" / "003.png"
    (one,) = read_image(file, data.info).numpy()  # as `predict` does
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (data.info.mean, data.info.std))
    assert abs((one * std + mean) * 255 - alpha).max() <= 1


def test_a_drawing_that_is_nowhere_to_be_seen(tmp_path: Path) -> None:
    root = folder(tmp_path, lambda p, i: Image.new("RGBA", (12, 12), (9, 9, 9, 0)).save(f"{p}.png"))
    assert "practically constant" in refusal(root)


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    def save(path: Path, i: int) -> None:
        image = picture(i).convert("RGBA")
        image.putalpha(51)
        image.save(f"{path}.png")

    data = load(folder(tmp_path, save))
    expected = 0.2 * np.asarray(picture(3), np.float64).transpose(2, 0, 1) + 0.8 * 255
    assert min(abs(image - expected).max() for image in pixels(data)) <= 1


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_a_transparent_colour(tmp_path: Path, mode: str) -> None:
    def save(path: Path, i: int) -> None:
        black = Image.fromarray((np.asarray(picture(i).convert("L")) > 128).astype(np.uint8) * 255)
        key = (0, 0, 0) if mode == "RGB" else 0
        black.convert(mode).save(f"{path}.png", transparency=key)

    # White on a transparent black: on white there is nothing to see.
    data = load(folder(tmp_path, save))
    assert data.info.background == "black"
    wanted = (np.asarray(picture(3).convert("L")) > 128) * 255
    assert any((image == wanted).all() for image in pixels(data))


# --- other modes ---


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [("CMYK", ".tif", 1), ("CMYK", ".jpg", 60), ("P", ".gif", 120), ("P", ".png", 120)],
)
def test_printed_and_indexed_images_keep_their_colours(
    tmp_path: Path, mode: str, suffix: str, tolerance: int
) -> None:
    data = load(folder(tmp_path, lambda p, i: picture(i).convert(mode).save(f"{p}{suffix}")))
    original = np.asarray(picture(3), np.float64).transpose(2, 0, 1)
    differences = [abs(image - original) for image in pixels(data)]
    best = min(differences, key=lambda difference: difference.mean())
    assert best.max() <= tolerance and best.mean() <= tolerance / 4


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_of_an_animated_image_the_first_frame_is_read(tmp_path: Path, suffix: str) -> None:
    def save(path: Path, i: int) -> None:
        frames = [picture(5000 + i), picture(6000 + i)]
        picture(i).save(f"{path}{suffix}", save_all=True, append_images=frames)

    data = load(folder(tmp_path, save))
    assert "20 animated or of several pages: the first is read" in str(data.summary)
    original = np.asarray(picture(3), np.float64).transpose(2, 0, 1)
    assert min(abs(image - original).mean() for image in pixels(data)) < 60  # others: about 85


# --- no content ---


def test_a_set_of_black_images(tmp_path: Path) -> None:
    root = folder(tmp_path, lambda p, i: Image.new("RGB", (12, 12)).save(f"{p}.png"))
    assert "practically constant: their pixels are from 0 to 0 of 0 to 255" in refusal(root)


def test_masks_of_zeros_and_ones(tmp_path: Path) -> None:
    root = folder(
        tmp_path,
        lambda p, i: Image.fromarray(values(i, 1).round().astype(np.uint8)).save(f"{p}.png"),
    )
    assert "practically constant: their pixels are from 0 to 1 of 0 to 255" in refusal(root)


def test_most_images_of_one_and_the_same_colour(tmp_path: Path) -> None:
    def save(path: Path, i: int) -> None:
        (picture(i) if i % 10 > 6 else Image.new("RGB", (12, 12), "gray")).save(f"{path}.png")

    assert "training images" not in (line := refusal(folder(tmp_path, save)))
    assert "are of one and the same colour, such as" in line


def test_a_class_of_empty_images_is_said(tmp_path: Path) -> None:
    make_folder(tmp_path, classes=("full", "other"))
    for i in range(10):
        (tmp_path / "empty").mkdir(exist_ok=True)
        Image.new("RGB", (12, 12), "white").save(tmp_path / "empty" / f"{i}.png")
    assert "8 training images of one colour" in str(load(tmp_path).summary)


def test_swatches_of_different_colours_are_data(tmp_path: Path) -> None:
    root = folder(
        tmp_path,
        lambda p, i: Image.new("RGB", (8, 8), (i % 10 * 20, i // 1000 * 90, 5)).save(f"{p}.png"),
    )
    assert load(root).summary.classes == {"a": 10, "b": 10}


# --- large photos ---


def test_large_photos_when_they_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    make_folder(tmp_path, size=lambda i: (40, 30))
    assert "1200 pixels) exceeds limit" in refusal(tmp_path)  # Pillow's own words, then ours
    assert "attack: --loading.max-pixels allows more)" in refusal(tmp_path)
    assert "(40x30 pixels, more than 700: --loading.max-pixels allows more)" in (
        refusal(tmp_path, max_pixels=700)
    )
    assert load(tmp_path, max_pixels=1200, workers=0).info.shape == (3, 30, 40)
