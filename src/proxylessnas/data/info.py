"""What a network must know of its images: size, channels, classes, mean and deviation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from proxylessnas.data.augment import normalised
from proxylessnas.data.images import DAMAGED, Frame, cropped, header, reason
from proxylessnas.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """Read from the data, not asked; goes into `architecture.json` and the exported file.

    name: the data spec or folder.
    channels, height, width: of an input, in pixels; 1 channel for gray, 3 for RGB.
    classes: names in the order of the labels.
    mean, std: per channel, of pixels scaled to [0, 1], over training images only.
    central_share: the share of an image's shorter side that evaluation sees, centred; 1 for
        images that come in the input's size, 0.875 for photos.
    """

    name: str
    channels: int
    height: int
    width: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    central_share: float = 1.0

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON values; `from_json` gives an equal ImageInfo back."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ImageInfo:
        """The inverse of `to_json`; DataError names a key that is missing or unknown."""
        names = {field.name for field in fields(cls)}
        wrong = sorted(set(value) ^ names)
        if wrong:
            kind = "lacks" if wrong[0] in names else "has the unknown key"
            raise DataError(f"the description of the images {kind} {wrong[0]!r}")
        given: dict[str, Any] = {
            key: tuple(item) if isinstance(item, list) else item for key, item in value.items()
        }
        return cls(**given)


def read_image(path: str | Path, info: ImageInfo) -> Tensor:
    """One image file as evaluation sees it: float32 [1, channels, height, width], normalised.

    DataError if the file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            header(image)
            array = cropped(image, Frame(*info.input_shape), share=info.central_share)
    except FileNotFoundError as error:
        raise DataError(f"there is no image {path}") from error
    except DAMAGED as error:
        raise DataError(f"image {path} cannot be decoded: {reason(error)}") from error
    return normalised(torch.from_numpy(array)[None], info.mean, info.std)
