"""The space of NAS-Bench-Macro (Su et al., CVPR 2021): eight layers of three candidates.

All its 6,561 networks were trained on CIFAR-10, so a search result has a known accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from proxylessnas.config import ShareBelowOne
from proxylessnas.core.mixed import Residual
from proxylessnas.errors import ArchitectureError, ConfigError
from proxylessnas.schema import checked
from proxylessnas.spaces.blocks import ConvBN, Head, MBConv, Network, choose
from proxylessnas.spaces.bounds import InputShape, Size, Sizes, check
from proxylessnas.spaces.first_weights import initialise, start_alike

CANDIDATES = ("identity", "e3_k3", "e6_k5")  # the table's digits 0, 1, 2
EPS = 1e-5


@checked()
@dataclass(frozen=True, kw_only=True)
class MacroSettings:
    """How the space is built; the defaults are NAS-Bench-Macro's."""

    input_shape: InputShape = (3, 32, 32)
    """Channels, height and width of an image."""
    classes: Size = 10
    """Outputs of the network."""
    widths: Sizes = (64, 128, 256)
    """Channels of every stage; each stage halves the resolution."""
    depths: Sizes = (2, 3, 3)
    """Layers of every stage."""
    stem: Size = 32
    """Channels of the stem."""
    head: Size = 1280
    """Channels of the head."""
    dropout: ShareBelowOne = 0.0
    """Rate of dropout before the classifier."""
    alike: bool = True
    """Whether the supernet's candidates begin as one function, see `first_weights.start_alike`."""

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.depths):
            raise ConfigError(
                f"widths and depths must have one entry a stage: "
                f"{len(self.widths)} and {len(self.depths)} were given"
            )
        check(self.input_shape, sum(self.depths), self._parameters())

    def _parameters(self) -> float:
        """About how many the supernet has."""
        total, channels = 0.0, self.stem
        for width, depth in zip(self.widths, self.depths, strict=True):
            total += 9 * width * (channels + 25 + (depth - 1) * (2 * width + 25) + width)
            channels = width
        return total + float(self.head) * (channels + self.classes)


def build(settings: MacroSettings, choices: dict[str, str] | None = None) -> nn.Module:
    """The supernet, or with `choices` the plain network of one architecture."""
    s = settings
    channels = s.stem
    blocks: list[nn.Module] = []
    for width, depth in zip(s.widths, s.depths, strict=True):
        for i in range(depth):
            blocks.append(_layer(channels, width, 2 if i == 0 else 1, len(blocks), choices))
            channels = width
    stem = ConvBN(s.input_shape[0], s.stem, 3, activation=nn.ReLU, eps=EPS)
    head = Head(channels, s.head, s.classes, dropout=s.dropout, activation=nn.ReLU, eps=EPS)
    model = Network(stem, blocks, head)
    initialise(model)
    if choices is None and s.alike:
        start_alike(model)
    return model


def _layer(
    channels: int, width: int, stride: int, index: int, choices: dict[str, str] | None
) -> nn.Module:
    def identity() -> nn.Module:
        if stride == 1 and channels == width:
            return nn.Identity()
        return ConvBN(channels, width, 1, stride, activation=None, eps=EPS)

    def mbconv(kernel: int, expansion: int) -> nn.Module:
        block = MBConv(
            channels,
            width,
            kernel=kernel,
            expansion=expansion,
            stride=stride,
            activation=nn.ReLU,
            eps=EPS,
        )
        return Residual(block) if stride == 1 and channels == width else block

    makers = (identity, lambda: mbconv(3, 3), lambda: mbconv(5, 6))
    return choose(f"blocks.{index}", dict(zip(CANDIDATES, makers, strict=True)), choices)


def code(choices: Mapping[str, str]) -> str:
    """The table's name of a network: one digit a layer, as `02012100`."""
    return "".join(str(CANDIDATES.index(choices[f"blocks.{i}"])) for i in range(len(choices)))


def from_code(code: str) -> dict[str, str]:
    """The choices of a network that the table names `code`.

    Raises:
        ArchitectureError: a character is not 0, 1 or 2.
    """
    if not code or set(code) - set("012"):
        raise ArchitectureError(f"{code!r} is not a NAS-Bench-Macro code: digits 0, 1, 2")
    return {f"blocks.{i}": CANDIDATES[int(digit)] for i, digit in enumerate(code)}
