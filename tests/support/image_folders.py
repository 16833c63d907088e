"""Folders of small noisy images, and what data loaded from them hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from proxylessnas.config import DataSettings
from proxylessnas.data import ImageData, load_data

Sizes = Callable[[int], tuple[int, int]]
PARTS = ("train", "search", "valid", "test")


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


def mixed_size(i: int) -> tuple[int, int]:
    return 20 + i % 7, 30 - i % 5


def load(
    spec: str | Path,
    *,
    image_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
    **settings: Any,
) -> ImageData:
    """`load_data` with the settings as keywords."""
    made = DataSettings(**settings)
    return load_data(str(spec), made, image_size=image_size, seed=seed, progress=progress)


def sizes(data: ImageData) -> list[int]:
    """Images of train, search, valid and test."""
    return [data.size(part) for part in PARTS]


def whole_part(data: ImageData, part: str, **options: Any) -> tuple[Tensor, Tensor]:
    """All images and labels of a part."""
    batches = list(data.batches(part, 7, **options).epoch(0))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def same_batches(a: list[tuple[Tensor, ...]], b: list[tuple[Tensor, ...]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def pixels_of(data: ImageData, part: str) -> set[bytes]:
    """The images of a part as they were in the file, to compare parts."""
    images, _ = whole_part(data, part)
    std, mean = torch.tensor(data.info.std), torch.tensor(data.info.mean)
    pixels = (images * std[:, None, None] + mean[:, None, None]) * 255
    return {image.numpy().tobytes() for image in pixels.round().to(torch.uint8)}
