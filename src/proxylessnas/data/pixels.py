"""Images that are lists of numbers, in columns of tables: of bytes, or of any range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

VALUES = "values"  # in `Image.info`: what the bytes of an image are not enough for


def are_bytes(values: NDArray[Any]) -> bool:
    """Whether all numbers of a set are whole and from 0 to 255, so that nothing is to be scaled."""
    return values.dtype.kind in "biu" and (
        not values.size or bool(0 <= values.min() <= values.max() <= 255)
    )


def image_of_pixels(pixels: NDArray[Any], *, scaled: bool = False) -> Image.Image:
    """Of [H, W], [H, W, C], [C, H, W], or a flat list of a square.

    scaled: the numbers have the range of their set, see `decode`; else they are 0 to 255.
    """
    pixels = _square(pixels) if pixels.ndim == 1 else pixels
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    gray, numbers = pixels.ndim == 2, pixels.dtype.kind in "biuf" and pixels.size
    if not numbers or not (gray or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise ValueError(f"lists of shape {list(pixels.shape)} are no pixels")
    if not scaled:
        if not are_bytes(pixels):
            raise ValueError(f"numbers from {pixels.min():g} to {pixels.max():g} are no bytes")
        return Image.fromarray(pixels.astype(np.uint8))
    image = Image.new("L" if gray else "RGB", (pixels.shape[1], pixels.shape[0]))
    image.info[VALUES] = np.asarray(pixels[..., :3] if pixels.ndim == 3 else pixels, np.float64)
    return image


def _square(pixels: NDArray[Any]) -> NDArray[Any]:
    """A flat list in rows; of colours channel by channel, as CIFAR's are."""
    for channels in (1, 3):
        side = math.isqrt(len(pixels) // channels)
        if side and channels * side * side == len(pixels):
            return pixels.reshape((channels, side, side))
    raise ValueError(f"{len(pixels)} numbers are no square image")


@dataclass(frozen=True)
class PixelRows:
    """Reads images from rows of a table; values: [images, numbers]."""

    name: str
    values: NDArray[Any]
    scaled: bool

    def open(self, index: int) -> Image.Image:
        return image_of_pixels(self.values[index], scaled=self.scaled)

    def describe(self, index: int) -> str:
        return f"{self.name} image {index}"
