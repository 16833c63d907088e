"""Networks of inverted bottlenecks of any widths: what is cut from a trained network.

The space has no supernet of its own: its candidates carry weights that are fitted to a trained
network (`pretrained.space`). Here are the plain networks alone, so that an architecture is read,
built, measured and exported as any other. A choice says a block's kernel and hidden channels,
`k3_w96`, or `zero` where the block is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from proxylessnas.core.supernet import Residual
from proxylessnas.errors import ArchitectureError, ConfigError
from proxylessnas.schema import checked
from proxylessnas.spaces.blocks import ConvBN, Head, MBConv, Network
from proxylessnas.spaces.bounds import InputShape, Size, check

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu6": nn.ReLU6,
    "relu": nn.ReLU,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
}


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """One inverted bottleneck.

    kernel, stride: of the depthwise convolution. out: channels of the output.
    inner: hidden channels; None: no expanding convolution, as many as the input has.
    shortcut: whether the input is added to the output.
    """

    kernel: int
    stride: int
    out: int
    inner: int | None
    shortcut: bool


@dataclass(frozen=True, kw_only=True)
class NetworkShape:
    """A network of the family; plain values.

    stem: channels after the first convolution, of `stem_kernel` and `stem_stride`.
    blocks: None where a block is left out. head: width of the last convolution.
    same: TensorFlow's padding, see `spaces.blocks.SamePadding`. eps: of batch normalisation.
    """

    channels: int = 3
    stem: int = 32
    stem_kernel: int = 3
    stem_stride: int = 2
    blocks: tuple[BlockShape | None, ...] = ()
    head: int = 1280
    classes: int = 1000
    same: bool = False
    eps: float = 1e-3
    activation: str = "relu6"


def build_network(shape: NetworkShape) -> Network:
    """The network of a shape, with PyTorch's initial weights."""
    activation = ACTIVATIONS[shape.activation]
    stem = ConvBN(
        shape.channels,
        shape.stem,
        shape.stem_kernel,
        shape.stem_stride,
        activation=activation,
        eps=shape.eps,
        same=shape.same,
    )
    blocks: list[nn.Module] = []
    channels = shape.stem
    for block in shape.blocks:
        if block is None:
            blocks.append(nn.Identity())
            continue
        layers = MBConv(
            channels,
            block.out,
            kernel=block.kernel,
            inner=block.inner,
            stride=block.stride,
            activation=activation,
            eps=shape.eps,
            same=shape.same,
        )
        blocks.append(Residual(layers) if block.shortcut else layers)
        channels = block.out
    head = Head(channels, shape.head, shape.classes, activation=activation, eps=shape.eps)
    return Network(stem, blocks, head)


# --- as the settings of an architecture ---


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
    """Padding as TensorFlow's."""
    eps: float = 1e-3
    """The constant of batch normalisation."""
    activation: Literal["relu6", "relu", "hardswish", "silu"] = "relu6"
    """The activation."""

    def __post_init__(self) -> None:
        parameters, channels = float(self.head * self.classes), self.stem
        for block in self.blocks:
            if not block:
                continue
            if len(block) != 5 or min(block) < 0 or max(block) > 1 << 16 or not all(block[:3]):
                raise ConfigError(f"blocks has {list(block)}, not the five numbers of a block")
            hidden = block[3] or channels
            parameters += hidden * (channels + block[0] ** 2 + block[2])
            channels = block[2]
        check(self.input_shape, len(self.blocks), parameters + channels * self.head)

    @property
    def shape(self) -> NetworkShape:
        """The network that is cut from."""
        values = {k: getattr(self, k) for k in asdict(NetworkShape()) if k not in ("channels",)}
        return NetworkShape(
            **{
                **values,
                "channels": self.input_shape[0],
                "blocks": tuple(
                    None
                    if not b
                    else BlockShape(
                        kernel=b[0], stride=b[1], out=b[2], inner=b[3] or None, shortcut=bool(b[4])
                    )
                    for b in self.blocks
                ),
            }
        )


def settings_of(shape: NetworkShape, input_shape: Sequence[int]) -> dict[str, Any]:
    """The settings of a shape, as an architecture keeps them."""
    values = asdict(shape)
    del values["channels"]
    values["input_shape"] = list(input_shape)
    values["blocks"] = [
        [] if b is None else [b.kernel, b.stride, b.out, b.inner or 0, int(b.shortcut)]
        for b in shape.blocks
    ]
    return values


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
    shape = settings.shape
    blocks = [
        _chosen(block, choices.pop(f"blocks.{i}.branch", choices.pop(f"blocks.{i}", None)))
        for i, block in enumerate(shape.blocks)
    ]
    return build_network(
        NetworkShape(**{**{k: getattr(shape, k) for k in asdict(shape)}, "blocks": tuple(blocks)})
    )


def _chosen(block: BlockShape | None, choice: str | None) -> BlockShape | None:
    if choice is None or block is None:
        return block
    if choice == "zero" and block.shortcut:
        return None
    kernel, width = parse_choice(choice)
    inner = None if block.inner is None else width
    return BlockShape(
        kernel=kernel, stride=block.stride, out=block.out, inner=inner, shortcut=block.shortcut
    )


def parse_choice(choice: str) -> tuple[int, int]:
    """(kernel, hidden channels) of `k3_w96`.

    Raises:
        ArchitectureError: it is of another form.
    """
    match = re.fullmatch(r"k(\d{1,2})_w(\d{1,5})", choice)
    if match is None or not int(match[1]) % 2 or not int(match[2]):
        raise ArchitectureError(f"a block has no candidate {choice!r}: write k3_w96, or zero")
    return int(match[1]), int(match[2])
