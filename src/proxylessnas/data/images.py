"""One image: header, decoding, cropping, conversion to uint8 pixels. PIL and NumPy only."""

from __future__ import annotations

import math
import struct
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

# What PIL is known to raise on a damaged file, decompression bombs included.
DAMAGED: tuple[type[Exception], ...] = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

_GRAY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"}
_ORIENTATION_TAG = 0x0112
_TURNS = {  # EXIF orientation -> how to set the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the file


class Header(NamedTuple):
    """What an image shows without being decoded; height and width in pixels, upright."""

    channels: int
    height: int
    width: int


class Frame(NamedTuple):
    """The pixels an image is brought to: [channels, height, width]."""

    channels: int
    height: int
    width: int


def _orientation(image: Image.Image) -> int:
    if image.format not in ("JPEG", "MPO", "WEBP", "TIFF"):
        return 1
    return int(image.getexif().get(_ORIENTATION_TAG, 1) or 1)


def header(image: Image.Image) -> Header:
    """Channels (1 for gray, else 3) and upright size; ValueError for a decompression bomb."""
    width, height = image.size
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(f"{width}x{height} pixels, more than {limit} (decompression bomb?)")
    if width < 1 or height < 1:
        raise ValueError("no pixels")
    if _orientation(image) >= 5:
        width, height = height, width
    return Header(1 if image.mode in _GRAY_MODES else 3, height, width)


def _converted(image: Image.Image, channels: int) -> Image.Image:
    """Decoded and in mode L or RGB; 16-bit gray keeps its upper 8 bits, alpha is dropped."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(deep.clip(0, 255).astype(np.uint8))
    if image.mode == "P":  # a palette may hold transparency, which convert() warns about
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def central_box(width: int, height: int, frame: Frame, share: float) -> Box:
    """The largest centred box of the frame's aspect ratio, each side times `share`."""
    scale = min(width / frame.width, height / frame.height) * share
    box_width, box_height = frame.width * scale, frame.height * scale
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


def random_box(
    width: int,
    height: int,
    frame: Frame,
    uniforms: NDArray[np.float32],
    smallest: float,
) -> Box:
    """A random resized crop from 4 uniform numbers (y, x, area, aspect) in [0, 1).

    The area is between `smallest` and 1 of the image's, the aspect ratio within 3/4 to 4/3 of
    the frame's; a side that does not fit is cut to the image's.
    """
    y, x, area, aspect = (float(u) for u in uniforms)
    pixels = width * height * (smallest + (1 - smallest) * area)
    ratio = frame.width / frame.height * math.exp((2 * aspect - 1) * math.log(4 / 3))
    box_width = min(math.sqrt(pixels * ratio), float(width))
    box_height = min(math.sqrt(pixels / ratio), float(height))
    left, top = x * (width - box_width), y * (height - box_height)
    return left, top, left + box_width, top + box_height


def cropped(
    image: Image.Image,
    frame: Frame,
    *,
    share: float = 1.0,
    uniforms: NDArray[np.float32] | None = None,
    smallest: float = 1.0,
) -> Pixels:
    """A central box (or a random one, with `uniforms`) resized to `frame`, uint8 [C, H, W].

    A large JPEG is decoded at the smallest scale that still has the pixels asked for.
    """
    turn = _orientation(image)
    # The box is cut from the file as it lies, and only the small result is turned upright.
    lying = Frame(frame.channels, frame.width, frame.height) if turn >= 5 else frame
    width, height = image.size
    if uniforms is None:
        box = central_box(width, height, lying, share)
    else:
        box = random_box(width, height, lying, uniforms, smallest)
    shrink = min((box[2] - box[0]) / lying.width, (box[3] - box[1]) / lying.height)
    if shrink >= 2:
        image.draft(None, (int(width / shrink), int(height / shrink)))  # a no-op but for JPEG
    factors = (image.size[0] / width, image.size[1] / height) * 2
    scaled = [edge * factor for edge, factor in zip(box, factors, strict=True)]
    edges = (
        max(scaled[0], 0.0),
        max(scaled[1], 0.0),
        min(scaled[2], float(image.size[0])),
        min(scaled[3], float(image.size[1])),
    )
    image = _converted(image, frame.channels)
    size = (lying.width, lying.height)
    if image.size != size or edges != (0.0, 0.0, float(size[0]), float(size[1])):
        image = image.resize(size, Image.Resampling.BILINEAR, box=edges, reducing_gap=3.0)
    if turn in _TURNS:
        image = image.transpose(_TURNS[turn])
    return _as_array(image)


def _as_array(image: Image.Image) -> Pixels:
    array = np.array(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def reason(error: BaseException) -> str:
    """The first line of a decoding error, short enough for a list."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
