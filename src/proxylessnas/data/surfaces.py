"""The data set `surfaces`: crops of photographs that scikit-image carries.

Nine surfaces as a camera over a line might see them: gray, at random scales and angles, now
brighter and now darker, with noise. Training crops are cut from the left part of each photograph
and test crops from the right part, which share no pixel. The photographs are inside the package:
nothing is downloaded.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from proxylessnas.data.packaged import IndexedImages
from proxylessnas.data.source import Source, SplitPart, assemble
from proxylessnas.errors import DataError
from proxylessnas.io.importing import optional

BICUBIC = Image.Resampling.BICUBIC
SIDE = 128  # pixels of a crop as it is kept
SEEN = (0.12, 0.2)  # of the photograph's height: the side of what a crop shows
TRAIN, TEST = 90, 60  # crops of every surface
SPLIT = 0.62  # of the width: what lies left of it is trained on
# Each with its file, and the part that shows the surface: left, top, right, bottom in shares.
PHOTOGRAPHS = {
    "brick": ("brick.png", (0.0, 0.0, 1.0, 1.0)),
    "coins": ("coins.png", (0.0, 0.0, 1.0, 1.0)),
    "grass": ("grass.png", (0.0, 0.0, 1.0, 1.0)),
    "gravel": ("gravel.png", (0.0, 0.0, 1.0, 1.0)),
    "moon": ("moon.png", (0.0, 0.0, 1.0, 1.0)),
    "print": ("page.png", (0.0, 0.0, 1.0, 1.0)),
    "retina": ("retina.jpg", (0.15, 0.2, 0.85, 0.8)),
    "stars": ("hubble_deep_field.jpg", (0.0, 0.0, 1.0, 1.0)),
    "tissue": ("ihc.png", (0.0, 0.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class Region:
    """Of a gray photograph: the columns that crops are cut from."""

    image: Image.Image
    left: int
    right: int


@functools.cache
def surfaces() -> Source:
    """1,350 gray crops, 128 x 128, of nine surfaces, the same ones every time."""
    photographs = _photographs()
    parts = {}
    for part, count, low, high in (("train", TRAIN, 0.0, SPLIT), ("test", TEST, SPLIT, 1.0)):
        crops = []
        for label, image in enumerate(photographs.values()):
            region = Region(image, round(low * image.width), round(high * image.width))
            rng = np.random.default_rng([label, part == "test"])
            crops += [_crop(region, rng) for _ in range(count)]
        labels = np.repeat(np.arange(len(photographs), dtype=np.int64), count)
        parts[part] = SplitPart(labels, IndexedImages(f"surfaces {part}", np.stack(crops)))
    return assemble("surfaces", tuple(photographs), parts)


def _photographs() -> dict[str, Image.Image]:
    """The surfaces in gray, by name."""
    package: Any = optional("skimage", "demo", "the data set surfaces", package="scikit-image")
    folder, images = Path(package.__file__).parent / "data", {}
    for name, (file, shares) in PHOTOGRAPHS.items():
        if not (folder / file).is_file():
            raise DataError(
                f"{folder / file} is not there: scikit-image does not carry it any more"
            )
        image = Image.open(folder / file).convert("L")
        left, top, right, bottom = shares
        w, h = image.size
        images[name] = image.crop(
            (round(left * w), round(top * h), round(right * w), round(bottom * h))
        )
    return images


def _crop(region: Region, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A turned square of the region, in other light, blurred and noisy: uint8 [SIDE, SIDE]."""
    height = region.image.height
    side = rng.uniform(*SEEN) * height
    around = side * 2**0.5 / 2 + 1  # of a square at any angle
    x = rng.uniform(region.left + around, region.right - around)
    y = rng.uniform(around, height - around)
    box = (round(x - around), round(y - around), round(x + around), round(y + around))
    scale = SIDE / side
    patch = region.image.crop(box)
    patch = patch.resize((round(patch.width * scale), round(patch.height * scale)), BICUBIC)
    patch = patch.rotate(rng.uniform(0, 360), BICUBIC)
    edge = (patch.width - SIDE) // 2
    patch = patch.crop((edge, edge, edge + SIDE, edge + SIDE))
    patch = patch.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    values = np.asarray(patch, dtype=np.float64)
    values = (values - values.mean()) * rng.uniform(0.4, 1.0) + rng.uniform(70, 180)
    values += rng.normal(0, rng.uniform(4, 20), values.shape)
    levels: NDArray[np.uint8] = values.clip(0, 255).astype(np.uint8)
    return levels
