"""The paper's ImageNet space: a MobileNetV2 whose every block chooses kernel and expansion.

Six stages; each block is an inverted bottleneck with kernel 3, 5 or 7 and expansion 3 or 6,
and a block with a shortcut may also be left out (Zero). See the paper, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from torch import nn

from proxylessnas.config import Positive, ShareBelowOne
from proxylessnas.core.mixed import Residual, Zero
from proxylessnas.errors import ConfigError
from proxylessnas.schema import checked
from proxylessnas.spaces.blocks import ConvBN, Head, MBConv, Network, choose, round_channels
from proxylessnas.spaces.bounds import InputShape, Size, Sizes, check
from proxylessnas.spaces.first_weights import initialise, start_alike

# The paper's six, and those of expansion 4, which Once-for-All chooses from too.
Candidate = Literal[
    "k3_e3", "k5_e3", "k7_e3", "k3_e6", "k5_e6", "k7_e6", "k3_e4", "k5_e4", "k7_e4"
]  # fmt: skip
ALL_CANDIDATES: tuple[Candidate, ...] = get_args(Candidate)
CANDIDATES = ALL_CANDIDATES[:6]
SMALL = 64  # inputs under this many pixels keep their resolution in stem and first stage


@checked()
@dataclass(frozen=True, kw_only=True)
class MobileSettings:
    """How the space is built."""

    input_shape: InputShape = (3, 224, 224)
    """Channels, height and width of an image."""
    classes: Size = 1000
    """Outputs of the network."""
    widths: Sizes = (24, 40, 80, 96, 192, 320)
    """Channels of every stage."""
    depths: Sizes = (4, 4, 4, 4, 4, 1)
    """Blocks of every stage."""
    strides: Sizes | None = None
    """Stride of every stage's first block; null is 2, 2, 2, 1, 2, 1, and 1 at first for images of
    less than 64 pixels."""
    stem: Size = 32
    """Channels of the stem."""
    stem_stride: Size | None = None
    """Stride of the stem; null is 2, and 1 for images of less than 64 pixels."""
    first: Size = 16
    """Channels of the fixed first block."""
    head: Size = 1280
    """Channels of the head."""
    width_mult: Positive = 1.0
    """Factor of all widths, rounded to multiples of 8; it scales the head only upwards."""
    candidates: tuple[Candidate, ...] = CANDIDATES
    """Candidates of a block, named by kernel and expansion, in this order."""
    zero: bool = True
    """Whether a block with a shortcut may be left out."""
    dropout: ShareBelowOne = 0.0
    """Rate of dropout before the classifier."""
    alike: bool = True
    """Whether the supernet's candidates begin as one function, see `first_weights.start_alike`."""

    def __post_init__(self) -> None:
        small = min(self.input_shape[1:]) < SMALL
        if self.stem_stride is None:
            object.__setattr__(self, "stem_stride", 1 if small else 2)
        if self.strides is None:
            usual = (1 if small else 2, 2, 2, 1, 2, 1)
            strides = usual + (1,) * (len(self.widths) - len(usual))
            object.__setattr__(self, "strides", strides[: len(self.widths)])
        assert self.strides is not None
        if not len(self.widths) == len(self.depths) == len(self.strides):
            raise ConfigError(
                f"widths, depths and strides must have one entry a stage: "
                f"{len(self.widths)}, {len(self.depths)} and {len(self.strides)} were given"
            )
        check(self.input_shape, sum(self.depths), self._parameters())
        if not self.candidates or len(set(self.candidates)) != len(self.candidates):
            raise ConfigError(f"candidates are {list(self.candidates)}; name each once")

    def _parameters(self) -> float:
        """About how many the supernet has."""
        ratios = sum(int(name[-1]) for name in self.candidates)
        total, channels = 0.0, max(self.stem, self.first) * self.width_mult
        for width, depth in zip(self.widths, self.depths, strict=True):
            out = width * self.width_mult
            total += ratios * out * (channels + 49 + (depth - 1) * (2 * out + 49) + out)
            channels = out
        return total + self.head * max(1.0, self.width_mult) * (channels + self.classes)


def build(settings: MobileSettings, choices: dict[str, str] | None = None) -> nn.Module:
    """The supernet, or with `choices` the plain network of one architecture."""
    s = settings
    assert s.strides is not None and s.stem_stride is not None

    def scaled(width: int) -> int:
        return round_channels(width * s.width_mult)

    channels = scaled(s.first)
    stem = ConvBN(s.input_shape[0], scaled(s.stem), 3, s.stem_stride)
    blocks: list[nn.Module] = [MBConv(scaled(s.stem), channels, kernel=3, expansion=1)]
    for width, depth, first_stride in zip(s.widths, s.depths, s.strides, strict=True):
        out = scaled(width)
        for i in range(depth):
            stride = first_stride if i == 0 else 1
            shortcut = stride == 1 and channels == out
            candidates = {
                name: partial(MBConv, channels, out, kernel=k, expansion=e, stride=stride)
                for name, k, e in (_parse(name) for name in s.candidates)
            }
            name = f"blocks.{len(blocks)}"
            if shortcut:
                zero = {"zero": Zero} if s.zero else {}
                branch = choose(f"{name}.branch", {**candidates, **zero}, choices)
                blocks.append(Residual(branch))
            else:
                blocks.append(choose(name, candidates, choices))
            channels = out
    head = scaled(s.head) if s.width_mult > 1 else s.head
    model = Network(stem, blocks, Head(channels, head, s.classes, dropout=s.dropout))
    initialise(model)
    if choices is None and s.alike:
        start_alike(model)
    return model


def _parse(name: str) -> tuple[str, int, int]:
    kernel, expansion = name.split("_")
    return name, int(kernel[1:]), int(expansion[1:])
