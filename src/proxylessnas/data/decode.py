"""How an image is decoded: opened, cropped to a box, resized, converted to pixels, normalised."""

from __future__ import annotations

import io
import math
import os
import re
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from proxylessnas.architecture import InputInfo
from proxylessnas.data.pixels import VALUES
from proxylessnas.data.source import ImageFiles, ImageReader
from proxylessnas.errors import DataError, one_line

Pixels = NDArray[np.uint8]  # [channels, height, width]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the file

# What PIL is known to raise on a damaged file, decompression bombs included.
DAMAGED: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError),
    *(struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
)

LARGE = "--loading.max-pixels allows more"

_GRAY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"}
_ORIENTATION_TAG = 0x0112
_TRANSPOSITIONS = {  # EXIF orientation -> how to set the image upright; from 5 on it lies
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageShape(NamedTuple):
    """Channels (1 for gray, 3 for RGB) and upright size in pixels, of a file or of an input."""

    channels: int
    height: int
    width: int


def allow_pixels(most: int | None) -> None:
    """Let this process decode images of so many pixels; None keeps Pillow's limit."""
    if most is not None and Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, most)


class DamagedImage(Exception):
    """An image cannot be decoded; the message names it and the reason: "cat/1.png (truncated)"."""


@contextmanager
def opened(reader: ImageReader, index: int) -> Iterator[Image.Image]:
    """One image of a data set; whatever PIL raises within the block is a DamagedImage."""
    try:
        with reader.open(index) as image:
            yield image
    except DAMAGED as error:
        reason = one_line(error, 120)
        if isinstance(error, Image.DecompressionBombError):
            reason = f"{reason.rstrip('.')}: {LARGE}"
        raise DamagedImage(f"{reader.describe(index)} ({reason})") from error


def shape_of(image: Image.Image) -> ImageShape:
    """What the header says, nothing decoded; DecompressionBombError for too many pixels."""
    width, height = image.size
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise Image.DecompressionBombError(f"{width}x{height} pixels, more than {limit}")
    if width < 1 or height < 1:
        raise ValueError("no pixels")
    if _orientation(image) >= 5:
        width, height = height, width
    return ImageShape(1 if image.mode in _GRAY_MODES else 3, height, width)


def decode(
    image: Image.Image,
    info: InputInfo,
    *,
    uniforms: NDArray[np.float32] | None = None,
    smallest_area: float = 1.0,
) -> Pixels:
    """A central box (or a random one, with `uniforms`) as the input's shape, uint8 [C, H, W].

    A large JPEG is decoded at the smallest scale that still has the pixels asked for.
    """
    shape_of(image)  # refuses what must not be decoded
    orientation, shape = _orientation(image), ImageShape(*info.shape)
    # The box is cut from the file as it lies, and only the small result is set upright.
    lying = ImageShape(shape.channels, shape.width, shape.height) if orientation >= 5 else shape
    width, height = image.size
    if uniforms is None:
        box = central_box(width, height, lying, info.central_share)
    else:
        box = random_box(width, height, lying, uniforms, smallest_area)
    shrink = min((box[2] - box[0]) / lying.width, (box[3] - box[1]) / lying.height)
    if shrink >= 2:
        image.draft(None, (int(width / shrink), int(height / shrink)))  # a no-op but for JPEG
    box = _scaled(box, image.size[0] / width, image.size[1] / height, image.size)
    image = _resized(_converted(image, info), (lying.width, lying.height), box)
    if orientation in _TRANSPOSITIONS:
        image = image.transpose(_TRANSPOSITIONS[orientation])
    array = np.array(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def central_box(width: int, height: int, shape: ImageShape, share: float) -> Box:
    """The largest centred box of the shape's aspect ratio, each side times `share`."""
    scale = min(width / shape.width, height / shape.height) * share
    box_width, box_height = shape.width * scale, shape.height * scale
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


def random_box(
    width: int,
    height: int,
    shape: ImageShape,
    uniforms: NDArray[np.float32],
    smallest_area: float,
) -> Box:
    """A random resized crop from 4 uniform numbers (y, x, area, aspect) in [0, 1).

    The area is between `smallest_area` and 1 of the image's, the aspect ratio within 3/4 to 4/3
    of the shape's; a side that does not fit is cut to the image's.
    """
    y, x, area, aspect = (float(u) for u in uniforms)
    pixels = width * height * (smallest_area + (1 - smallest_area) * area)
    ratio = shape.width / shape.height * math.exp((2 * aspect - 1) * math.log(4 / 3))
    box_width = min(math.sqrt(pixels * ratio), float(width))
    box_height = min(math.sqrt(pixels / ratio), float(height))
    left, top = x * (width - box_width), y * (height - box_height)
    return left, top, left + box_width, top + box_height


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Values 0 to 255 [B, C, H, W] to float32 (value / 255 - mean) / std, in two passes."""
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
    shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
    out = images.to(torch.float32)
    return out.mul_(scale.float()[:, None, None]).add_(shift.float()[:, None, None])


def read_image(path: str | Path, info: InputInfo) -> Tensor:
    """One image file as evaluation sees it: float32 [1, channels, height, width], normalised.

    Raises:
        DataError: the file is missing or not an image.
    """
    if not os.path.exists(path):
        raise DataError(f"there is no image {path}")
    try:
        with opened(ImageFiles((str(path),)), 0) as image:
            pixels = decode(image, info)
    except DamagedImage as damage:
        raise DataError(f"an image cannot be decoded: {damage}") from damage
    return normalised(torch.from_numpy(pixels)[None], info.mean, info.std)


def _orientation(image: Image.Image) -> int:
    if image.format not in ("JPEG", "MPO", "WEBP", "TIFF"):
        return 1
    return int(image.getexif().get(_ORIENTATION_TAG, 1) or 1)


def _scaled(box: Box, across: float, down: float, size: tuple[int, int]) -> Box:
    """The box in pixels of the shrunk image, and within it whatever was rounded."""
    left, top, right, bottom = box
    return (
        max(left * across, 0.0),
        max(top * down, 0.0),
        min(right * across, float(size[0])),
        min(bottom * down, float(size[1])),
    )


def _resized(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    if image.size == size and box == (0.0, 0.0, float(size[0]), float(size[1])):
        return image
    return image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)


def is_deep(image: Image.Image) -> bool:
    """Whether values are no bytes but floats, or whole numbers of 16 or 32 bits; of an image that
    is not decoded yet."""
    if VALUES in image.info:
        return True
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or bool(_wide(image))


def deep_range(image: Image.Image) -> tuple[float, float]:
    """The least and the greatest value, but for one pixel in 10,000 at either end."""
    values = _values(image)[..., :3]
    values = values[np.isfinite(values)]
    if not len(values):
        raise ValueError("no value is finite")
    low, high = np.quantile(values, (1e-4, 1 - 1e-4), method="nearest")
    return float(low), float(high)


def _wide(image: Image.Image) -> str:
    """How 16 bits a channel lie in a colour file, as `RGB;16B`; of any other file empty."""
    tiles: Any = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    mode = str(args[0] if isinstance(args, tuple) and args else args)
    return mode if re.fullmatch(r"RGB[AX]?;16[LBN]", mode) else ""


def _values(image: Image.Image) -> NDArray[np.float64]:
    """All values [H, W] or [H, W, C] of an image of more than 8 bits.

    Pillow keeps the upper byte of colours; read in the other order of bytes, it is the lower one.
    """
    mode = _wide(image)
    if VALUES in image.info:
        return np.asarray(image.info[VALUES], dtype=np.float64)
    if not mode:
        return np.asarray(image, dtype=np.float64)
    file: Any = image.fp  # type: ignore[attr-defined]
    file.seek(0)
    data, native = file.read(), "L" if sys.byteorder == "little" else "B"
    swapped = mode[:-1] + ("L" if mode[-1].replace("N", native) == "B" else "B")
    upper, lower = (_read_as(data, mode, order) for order in (mode, swapped))
    return 256 * upper + lower


def _read_as(data: bytes, mode: str, order: str) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(data)) as image:
        tiles: Any = image.tile
        for place, (codec, box, offset, args) in enumerate(tiles):
            other = order if args == mode else (order, *args[1:])
            tiles[place] = type(tiles[place])(codec, box, offset, other)
        return np.asarray(image, dtype=np.float64)


def _converted(image: Image.Image, info: InputInfo) -> Image.Image:
    """Decoded and in mode L or RGB, on the input's background where it is transparent.

    Values of more than 8 bits are scaled by the range of the data set; where there is none, 16 bits
    by their own.
    """
    if is_deep(image):
        if info.value_range is None and (image.mode in ("I", "F") or VALUES in image.info):
            raise ValueError("values of any range, but the network was made for bytes")
        image = _scaled_to_bytes(image, *(info.value_range or (0.0, 65535.0)))
    if image.has_transparency_data:
        if image.mode != "RGBA":
            image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        under = Image.new("RGBA", image.size, info.background)
        under.alpha_composite(image)
        image = under
    return image.convert("L" if info.shape[0] == 1 else "RGB")


def _scaled_to_bytes(image: Image.Image, low: float, high: float) -> Image.Image:
    values, has_alpha = _values(image), _wide(image).startswith("RGBA")
    scaled = (values - low) * (255 / max(high - low, 1e-300))
    if has_alpha:
        scaled[..., 3] = values[..., 3] / 257
    return Image.fromarray(np.nan_to_num(scaled).round().clip(0, 255).astype(np.uint8))


def preprocessing(info: InputInfo) -> dict[str, str]:
    """How an image file becomes the input, in words for whoever uses an exported file elsewhere."""
    channels, height, width = info.shape
    color = "gray" if channels == 1 else "RGB"
    low, high = info.value_range or (0, 255)
    return {
        "color_order": color,
        "layout": "batch, channels, height, width; float32",
        "pixels": f"values from {low:g} to {high:g} in the file are 0 to 1 before normalising",
        "normalise": "(pixel - mean) / std, a channel",
        "resize_filter": "bilinear, antialiased",
        "preprocessing": (
            f"1. set upright by EXIF; 2. to {color}, transparent pixels on {info.background}; "
            f"3. crop the centre: the largest box of {width}:{height}, each side times "
            f"{info.central_share:g} (central_share); 4. resize the box to {width} x "
            f"{height}; 5. normalise"
        ),
    }
