"""Reader of the authors' network configs: their JSON to an `Architecture` of ours.

    ProxylessNASNets   the four ImageNet networks, points of the space `mobile`
    PyramidTreeNet     the CIFAR-10 network, a point of the space `tree`

The reader predicts every layer from the few numbers that a space's settings hold, and
compares: a field that is unknown, missing or another than predicted is an error with its
place, so what is read is exactly what `proxylessnas.build` builds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from proxylessnas.architecture import Architecture
from proxylessnas.errors import ArchitectureError, did_you_mean
from proxylessnas.spaces import mobile
from proxylessnas.spaces.blocks import round_channels
from proxylessnas.zoo.config_fields import Place, root
from proxylessnas.zoo.config_layers import (
    Choices,
    Fields,
    architecture,
    classifier,
    conv_layer,
    plain_layer,
)
from proxylessnas.zoo.config_tree import read_tree

MAX_FILE_BYTES = 16 << 20
BN = {"momentum": 0.1, "eps": 0.001}  # of the ImageNet networks
SIZE = 224  # of the images; the configs do not say it


def read_published(path: str | Path) -> Architecture:
    """The architecture that one of the authors' `.config` files describes; at most 16 MiB.

    Raises:
        ArchitectureError: the file cannot be read, or holds a field, a layer or a structure
            that the space does not have; the message names its place.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise ArchitectureError(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
        return from_published(json.loads(raw.decode("utf-8")))
    except OSError as error:
        reason = error.strerror or error
        raise ArchitectureError(f"cannot read the published network {path}: {reason}") from None
    except (ValueError, RecursionError) as error:  # ArchitectureError is a ValueError
        raise ArchitectureError(f"cannot read the published network {path}: {error}") from None


def from_published(config: object) -> Architecture:
    """The architecture of a decoded config.

    Raises:
        ArchitectureError: as `read_published`.
    """
    readers: dict[str, Callable[[Place], Architecture]] = {
        "ProxylessNASNets": _mobile,
        "PyramidTreeNet": read_tree,
    }
    network = root(config)
    name = network.text("name")
    if name not in readers:
        raise ArchitectureError(f"name is {name!r}; {did_you_mean(name, readers)}")
    return readers[name](network)


# --- ImageNet ---


def _mobile(network: Place) -> Architecture:
    network.only("name", "bn", "first_conv", "feature_mix_layer", "classifier", "blocks")
    network.get("bn").expect(BN)
    stem = network.get("first_conv")
    image, width, stride = (stem.integer(k) for k in ("in_channels", "out_channels", "stride"))
    order = {"act_func": "relu6", "ops_order": "weight_bn_act"}
    stem.expect(conv_layer(image, width, 3, stride=stride, **order))
    blocks = network.items("blocks")
    first = _first_block(blocks[0] if blocks else network.get("blocks").fail("has none"), width)
    stages, choices = _stages(blocks[1:], first)
    mix = network.get("feature_mix_layer")
    head = mix.integer("out_channels")
    mix.expect(conv_layer(stages[-1][0] if stages else first, head, 1, **order))
    classes, dropout = classifier(network.get("classifier"), head, "weight_bn_act")
    for value in (width, first, *(stage[0] for stage in stages)):
        if round_channels(value) != value:
            raise ArchitectureError(f"the width {value} is not a multiple of 8 as in this space")
    settings = {
        "input_shape": [image, SIZE, SIZE],
        "classes": classes,
        "widths": [stage[0] for stage in stages],
        "depths": [stage[1] for stage in stages],
        "strides": [stage[2] for stage in stages],
        "stem": width,
        "stem_stride": stride,
        "first": first,
        "head": head,
        "dropout": dropout,
    }
    return architecture("mobile", settings, choices)


def _first_block(block: Place, stem: int) -> int:
    """The width of the fixed first block: kernel 3, no expansion, no shortcut."""
    conv = block.get("mobile_inverted_conv")
    width = conv.integer("out_channels")
    conv.expect(_inverted(stem, width, 3, 1, 1))
    block.expect({"name": "MobileInvertedResidualBlock", "shortcut": None}, "mobile_inverted_conv")
    return width


def _inverted(channels: int, out: int, kernel: int, stride: int, ratio: int) -> Fields:
    return {
        "name": "MBInvertedConvLayer",
        "in_channels": channels,
        "out_channels": out,
        "kernel_size": kernel,
        "stride": stride,
        "expand_ratio": ratio,
    }


def _stages(blocks: list[Place], channels: int) -> tuple[list[list[int]], Choices]:
    """[width, depth, stride] of every stage: a block without a shortcut starts one."""
    stages: list[list[int]] = []
    choices: Choices = {}
    for i, block in enumerate(blocks, 1):
        block.only("name", "mobile_inverted_conv", "shortcut")
        block.expect_field("name", "MobileInvertedResidualBlock")
        shortcut = block.get("shortcut")
        if shortcut.value is None:
            out, stride, choice = _searched(block, channels, shortcut=False)
            choices[f"blocks.{i}"] = choice
        else:
            shortcut.expect(plain_layer("IdentityLayer", channels, ops_order="weight_bn_act"))
            out, stride, choice = _searched(block, channels, shortcut=True)
            choices[f"blocks.{i}.branch"] = choice
        if shortcut.value is None or not stages:
            stages.append([out, 1, stride])
        else:
            stages[-1][1] += 1
        channels = out
    return stages, choices


def _searched(block: Place, channels: int, *, shortcut: bool) -> tuple[int, int, str]:
    """(output channels, stride, candidate) of a searched block's convolution."""
    conv = block.get("mobile_inverted_conv")
    if conv.text("name") == "ZeroLayer":
        conv.expect({"name": "ZeroLayer", "stride": 1})
        if not shortcut:
            conv.fail("is a ZeroLayer without a shortcut")
        return channels, 1, "zero"
    names = ("out_channels", "kernel_size", "stride", "expand_ratio")
    out, kernel, stride, ratio = (conv.integer(name) for name in names)
    conv.expect(_inverted(channels, out, kernel, stride, ratio))
    if (out == channels and stride == 1) != shortcut:
        block.fail("must have a shortcut exactly where it keeps width and resolution")
    candidate = f"k{kernel}_e{ratio}"
    if candidate not in mobile.CANDIDATES:
        conv.fail(f"is {candidate}; the space has {', '.join(mobile.CANDIDATES)}")
    return out, stride, candidate
