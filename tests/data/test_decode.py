"""One image: boxes, modes, orientation, normalisation."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_folders import load, make_folder, whole_part
from PIL import Image

from proxylessnas.architecture import InputInfo
from proxylessnas.data import read_image
from proxylessnas.data.decode import ImageShape, central_box, decode, normalised, random_box
from proxylessnas.errors import DataError


def test_16_bit_gray_keeps_its_upper_bits() -> None:
    deep = Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16))
    assert decode(deep, InputInfo(shape=(1, 1, 3))).tolist() == [[[0, 1, 255]]]


def test_rotated_photo_is_set_upright(tmp_path: Path) -> None:
    upright = Image.new("RGB", (40, 20))
    upright.paste((255, 255, 255), (0, 0, 20, 20))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif)
    info = InputInfo(shape=(3, 10, 20), mean=(0.0,) * 3, std=(1.0,) * 3)
    image = read_image(tmp_path / "a.jpg", info)[0]
    assert image.shape == (3, 10, 20)
    assert image[:, :, :8].min() > 0.9 and image[:, :, 12:].max() < 0.1


def test_read_image(tmp_path: Path) -> None:
    data = load(str(make_folder(tmp_path)))
    first = sorted((tmp_path / "cat").iterdir())[0]
    image = read_image(first, data.info)
    assert image.shape == (1, 3, 12, 12)
    everywhere = torch.cat([whole_part(data, part)[0] for part in ("train", "test")])
    assert (everywhere == image).flatten(1).all(1).sum() == 1
    with pytest.raises(DataError, match="there is no image"):
        read_image(tmp_path / "gone.png", data.info)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"an image cannot be decoded: .*text\.png \("):
        read_image(tmp_path / "text.png", data.info)


@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4),
    st.sampled_from([0.08, 0.7, 1.0]),
)
@settings(deadline=None, max_examples=100)
def test_boxes_lie_in_the_image(width: int, height: int, u: list[float], smallest: float) -> None:
    frame = ImageShape(3, 32, 32)
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
    info = InputInfo(shape=(1, 32, 32), central_share=0.875)
    fast = decode(Image.open(buffer), info).astype(int)
    assert abs(fast - decode(whole, info).astype(int)).max() <= 3


def test_normalised_is_what_it_says() -> None:
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    expected = (images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(normalised(images, mean, std), expected, atol=1e-5)
