"""Augmentation of whole batches, from a table of uniform numbers that is drawn once an epoch.

Row i of the table belongs to sample i of its part, so that the augmentation of a sample depends
on (seed, part, epoch, sample) and on nothing else: not on the batch size, the order, the number
of workers or where a run was resumed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from proxylessnas.architecture import InputInfo
from proxylessnas.errors import DataError, did_you_mean
from proxylessnas.io.importing import optional
from proxylessnas.seeds import derive_seed

# Columns of the table of uniforms.
_Y, _X, _AREA, _ASPECT, _FLIP, _HOLE_Y, _HOLE_X, _BRIGHTNESS, _SATURATION, _POLICY = range(10)
BOX_COLUMNS = [_Y, _X, _AREA, _ASPECT]  # those that `decode.random_box` takes
BRIGHTNESS, SATURATION = 32 / 255, 0.5  # how far from 1 the factors may go, as published
SEEDS = 1 << 24  # that a uniform float32 tells apart
WORDS = (
    "auto",
    "none",
    "crop",
    "shift",
    "flip",
    "randaugment",
    "trivialaugment",
    "jitter",
    "cutout",
)


@dataclass(frozen=True)
class Augmentation:
    """Changes of a training image; parsed from words such as "crop+flip+cutout16".

    move: "none", "shift" (by up to 1/14 of a side) or "crop" (small images: by up to 1/8 of a
        side, zeros shifted in; photos: a random box of 8 to 100 % of the area, resized).
    flip: mirrored left to right, every second time.
    policy: "randaugment" (Cubuk et al., 2020: two random operations of magnitude 9 of 30, or N in
        "randaugmentN"), "trivialaugment" (Müller and Hutter, 2021: one of random magnitude), or "".
    jitter: brightness and saturation (of colour images) changed by random factors.
    cutout: side in pixels of a square set to the mean, its centre anywhere; 0 for none.
    """

    move: str = "none"
    flip: bool = False
    policy: str = ""
    jitter: bool = False
    cutout: int = 0

    @classmethod
    def parse(cls, text: str, info: InputInfo) -> Augmentation:
        """The augmentation that `text` says, for such inputs.

        Raises:
            DataError: a word is unknown or stands twice, or a hole is larger than the image.
            MissingDependency: a policy needs torchvision, which is not installed.
        """
        if text == "auto":
            text = _automatic(info)
        words = [] if text == "none" else text.split("+")
        moves = [word for word in words if word in ("crop", "shift")]
        holes = [int(word[6:]) for word in words if re.fullmatch(r"cutout[1-9]\d*", word)]
        policies = [word for word in words if _POLICIES.fullmatch(word)]
        counts = [len(moves), len(policies), len(holes)]
        counts += [words.count("flip"), words.count("jitter")]
        if sum(counts) != len(words) or max(counts) > 1:
            raise _unknown(text, words)
        height = info.shape[1]
        if holes and holes[0] > height:
            raise DataError(f"cutout{holes[0]} is larger than the image ({height} pixels high)")
        if policies:
            transform_of(policies[0])  # tried now, for its errors
        return cls(
            move=moves[0] if moves else "none",
            flip="flip" in words,
            policy=policies[0] if policies else "",
            jitter="jitter" in words,
            cutout=holes[0] if holes else 0,
        )

    @property
    def text(self) -> str:
        """The words that `parse` reads."""
        words = [self.move, "flip" * self.flip, self.policy, "jitter" * self.jitter]
        words.append(f"cutout{self.cutout}" * bool(self.cutout))
        return "+".join(word for word in words if word not in ("", "none")) or "none"

    @property
    def smallest_area(self) -> float:
        """The least share of a photo's area that a random box keeps."""
        return {"none": 1.0, "shift": 0.7, "crop": 0.08}[self.move]


NONE = Augmentation()
_POLICIES = re.compile(r"trivialaugment|randaugment([1-9]|1\d|2\d|30)?")


def _unknown(text: str, words: list[str]) -> DataError:
    """What is wrong with words of an augmentation that `parse` does not take."""
    strange = [word for word in words if word.rstrip("0123456789") not in WORDS]
    near = did_you_mean(strange[0], WORDS) if strange else ""
    return DataError(
        f"unknown augmentation {text!r}; allowed: auto, none, or crop or shift, flip, randaugment, "
        "randaugmentN (magnitude 1 to 30) or trivialaugment, jitter and cutoutN (N pixels) joined "
        f"by +, such as crop+flip+cutout16{f'; {near}' if near.startswith('did') else ''}"
    )


def _automatic(info: InputInfo) -> str:
    """crop+flip for colour and shift for gray images.

    Classes that are single characters are taken for digits or letters, which are not mirrored.
    """
    if info.shape[0] == 1:
        return "shift"
    return "crop" if all(len(name) == 1 for name in info.classes) else "crop+flip"


def draw(samples: int, seed: int, part: str, epoch: int) -> Tensor:
    """The uniform numbers of an epoch, float32 [samples, 10] in [0, 1)."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "augment", part, epoch))
    columns = (torch.rand(samples, width, generator=generator) for width in (_POLICY, 1))
    return torch.cat(list(columns), 1)


def moved(images: Tensor, augmentation: Augmentation, uniforms: Tensor) -> Tensor:
    """Small images [B, C, H, W] shifted, with zeros following.

    Each is cut out of itself padded with zeros, from its own corner. All windows of all images
    are one strided view, so that the cut is a single gather.
    """
    if augmentation.move == "none":
        return images
    batch, channels, height, width = images.shape
    share = 8 if augmentation.move == "crop" else 14
    pad_y, pad_x = max(height // share, 1), max(width // share, 1)
    padded = functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
    image, channel, row, column = padded.stride()
    windows = padded.as_strided(
        (batch, 2 * pad_y + 1, 2 * pad_x + 1, channels, height, width),
        (image, row, column, channel, row, column),
    )
    top = _integers(uniforms[:, _Y], 2 * pad_y + 1)
    left = _integers(uniforms[:, _X], 2 * pad_x + 1)
    return windows[torch.arange(batch), top, left]


def flipped(images: Tensor, augmentation: Augmentation, uniforms: Tensor) -> Tensor:
    """Every second image mirrored left to right, where the augmentation flips."""
    if not augmentation.flip:
        return images
    mirrored = uniforms[:, _FLIP] < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def transform_of(policy: str) -> Any:
    """torchvision's transform of one image, uint8 [C, H, W]; it draws from the global generator.

    Raises:
        MissingDependency: torchvision is not installed.
    """
    v2 = optional("torchvision.transforms.v2", "torchvision", f"the augmentation {policy}")
    if policy == "trivialaugment":
        return v2.TrivialAugmentWide()
    return v2.RandAugment(magnitude=int(policy.removeprefix("randaugment") or 9))


def transformed(images: Tensor, augmentation: Augmentation, uniforms: Tensor) -> Tensor:
    """Images uint8 [B, C, H, W], each changed by the policy under a seed of its own."""
    if not augmentation.policy:
        return images
    transform = transform_of(augmentation.policy)
    changed = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images, (uniforms[:, _POLICY] * SEEDS).long().tolist(), strict=True):
            torch.default_generator.manual_seed(seed)
            changed.append(transform(image))
    return torch.stack(changed)


def jittered(images: Tensor, augmentation: Augmentation, uniforms: Tensor) -> Tensor:
    """Values 0 to 255 [B, C, H, W] with other brightness and saturation, as float32."""
    if not augmentation.jitter:
        return images
    factors = 2 * uniforms[:, [_BRIGHTNESS, _SATURATION], None, None, None] - 1
    brightness, saturation = 1 + BRIGHTNESS * factors[:, 0], 1 + SATURATION * factors[:, 1]
    images = (images * brightness).clamp_(0, 255)
    if images.shape[1] == 3:
        luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # ITU-R BT.601
        gray = (images * luma).sum(1, keepdim=True)
        images = torch.lerp(gray, images, saturation).clamp_(0, 255)
    return images


def cut_out_(images: Tensor, augmentation: Augmentation, uniforms: Tensor) -> Tensor:
    """A square of each normalised image set to 0 (the mean), in place; cut off at the borders."""
    if augmentation.cutout:
        height, width = images.shape[2:]
        inside_y = _band(_integers(uniforms[:, _HOLE_Y], height), height, augmentation.cutout)
        inside_x = _band(_integers(uniforms[:, _HOLE_X], width), width, augmentation.cutout)
        images.masked_fill_((inside_y[:, :, None] & inside_x[:, None, :])[:, None], 0.0)
    return images


def _band(centre: Tensor, length: int, side: int) -> Tensor:
    """[B, length] bool: `side` places around each centre."""
    start = (centre - side // 2)[:, None]
    place = torch.arange(length)[None]
    return (place >= start) & (place < start + side)


def _integers(uniform: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1) to integers 0..count-1; the clamp is for float32 rounding up."""
    return (uniform * count).long().clamp_(max=count - 1)
