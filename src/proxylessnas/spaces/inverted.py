"""Networks of inverted bottlenecks of any widths: what is cut from a trained network.

The space has no supernet of its own: its candidates carry weights that are fitted to a trained
network (`pretrained.space`). Here are the plain networks alone, so that an architecture is read,
built, measured and exported as any other. A choice says a block's kernel and hidden channels,
`k3_w96`, or `zero` where the block is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from torch import nn

from proxylessnas.core.mixed import Residual
from proxylessnas.errors import ArchitectureError, ConfigError
from proxylessnas.schema import checked
from proxylessnas.spaces.blocks import ConvBN, Head, MBConv, Network
from proxylessnas.spaces.bounds import InputShape, Size, check

Activation = Literal["relu6", "relu", "hardswish", "silu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = dict(
    zip(get_args(Activation), (nn.ReLU6, nn.ReLU, nn.Hardswish, nn.SiLU), strict=True)
)


class BlockShape(NamedTuple):
    """One inverted bottleneck.

    kernel, stride: of the depthwise convolution. out: channels of the output.
    inner: hidden channels; 0: no expanding convolution, as many as the input has.
    shortcut: 1 where the input is added to the output.
    """

    kernel: int
    stride: int
    out: int
    inner: int
    shortcut: int


@checked()
@dataclass(frozen=True, kw_only=True)
class InvertedSettings:
    """A network of inverted bottlenecks, from which the choices of an architecture cut."""

    input_shape: InputShape = (3, 224, 224)
    """Channels, height and width of an image."""
    classes: Size = 1000
    """Outputs of the network."""
    stem: Size = 32
    """Channels of the stem."""
    stem_kernel: Size = 3
    """Kernel of the stem."""
    stem_stride: Size = 2
    """Stride of the stem."""
    blocks: tuple[tuple[int, ...], ...] = ()
    """Of every block: kernel, stride, output channels, hidden channels (0: no expanding
    convolution), and 1 for a shortcut; empty where the block is left out."""
    head: Size = 1280
    """Channels of the head."""
    same: bool = False
    """Padding as TensorFlow's, see `spaces.blocks.SamePadding`."""
    eps: float = 1e-3
    """The constant of batch normalisation."""
    activation: Activation = "relu6"
    """The activation."""

    def __post_init__(self) -> None:
        parameters, channels = float(self.head * self.classes), self.stem
        for block in filter(None, self.blocks):
            if len(block) != 5 or min(block) < 0 or max(block) > 1 << 16 or not all(block[:3]):
                raise ConfigError(f"blocks has {list(block)}, not the five numbers of a block")
            hidden = block[3] or channels
            parameters += hidden * (channels + block[0] ** 2 + block[2])
            channels = block[2]
        check(self.input_shape, len(self.blocks), parameters + channels * self.head)


def build_network(settings: InvertedSettings) -> Network:
    """The network of the settings, with PyTorch's initial weights."""
    s, activation = settings, ACTIVATIONS[settings.activation]
    stem = ConvBN(
        s.input_shape[0],
        s.stem,
        s.stem_kernel,
        s.stem_stride,
        activation=activation,
        eps=s.eps,
        same=s.same,
    )
    blocks: list[nn.Module] = []
    channels = s.stem
    for numbers in s.blocks:
        if not numbers:
            blocks.append(nn.Identity())
            continue
        block = BlockShape(*numbers)
        layers = MBConv(
            channels,
            block.out,
            kernel=block.kernel,
            inner=block.inner or None,
            stride=block.stride,
            activation=activation,
            eps=s.eps,
            same=s.same,
        )
        blocks.append(Residual(layers) if block.shortcut else layers)
        channels = block.out
    head = Head(channels, s.head, s.classes, activation=activation, eps=s.eps)
    return Network(stem, blocks, head)


def build(settings: InvertedSettings, choices: dict[str, str] | None = None) -> Network:
    """The plain network; `choices` loses what it says of blocks.

    Raises:
        ConfigError: there are no choices: this space is made around a trained network.
        ArchitectureError: a choice is not understood.
    """
    if choices is None:
        raise ConfigError(
            "the space inverted is made around a trained network: proxylessnas run --pretrained"
        )
    blocks = tuple(
        _chosen(block, choices.pop(f"blocks.{i}.branch", choices.pop(f"blocks.{i}", None)))
        for i, block in enumerate(settings.blocks)
    )
    return build_network(replace(settings, blocks=blocks))


def _chosen(numbers: tuple[int, ...], choice: str | None) -> tuple[int, ...]:
    if choice is None or not numbers:
        return numbers
    block = BlockShape(*numbers)
    if choice == "zero" and block.shortcut:
        return ()
    kernel, width = parse_choice(choice)
    return block._replace(kernel=kernel, inner=width if block.inner else 0)


def parse_choice(choice: str) -> tuple[int, int]:
    """(kernel, hidden channels) of `k3_w96`.

    Raises:
        ArchitectureError: it is of another form.
    """
    match = re.fullmatch(r"k(\d{1,2})_w(\d{1,5})", choice)
    if match is None or not int(match[1]) % 2 or not int(match[2]):
        raise ArchitectureError(f"a block has no candidate {choice!r}: write k3_w96, or zero")
    return int(match[1]), int(match[2])
