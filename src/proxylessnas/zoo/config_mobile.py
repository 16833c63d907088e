"""Reader of `ProxylessNASNets`, points of the space `mobile`.

The four ImageNet networks of the paper, and those of Once-for-All (Cai et al., ICLR 2020) that have
no squeeze-and-excitation, ReLU6 alone and a batch normalisation of eps 1e-3.
"""

from __future__ import annotations

from typing import Any

from proxylessnas.architecture import Architecture
from proxylessnas.errors import ArchitectureError
from proxylessnas.schema import dotted
from proxylessnas.spaces import mobile
from proxylessnas.spaces.blocks import round_channels
from proxylessnas.zoo.config_layers import (
    Choices,
    DropRate,
    Fields,
    architecture,
    at,
    classifier,
    compare,
    conv_layer,
    plain_layer,
    same,
)

SIZE = 224  # of the images; the configs do not say it
WEIGHT_FIRST = "weight_bn_act"
# Once-for-All's spelling -> the earlier one, and its further fields where they mean nothing.
SPELLINGS = {"ResidualBlock": "MobileInvertedResidualBlock", "MBConvLayer": "MBInvertedConvLayer"}
NEUTRAL: Fields = {
    **{"mid_channels": None, "use_se": False, "groups": None},
    **{"channels_per_group": None, "ws_eps": None},
}


def read_mobile(config: Fields) -> Architecture:
    """The architecture of a decoded config.

    Raises:
        ArchitectureError: it is no network of the space; the message names the place.
    """
    config = _earlier_form(config)
    first = at(config, "blocks", 0, "mobile_inverted_conv", "out_channels")
    stages, choices = _stages(config, first)
    settings: Fields = {
        "input_shape": [at(config, "first_conv", "in_channels"), SIZE, SIZE],
        "classes": at(config, "classifier", "out_features"),
        "widths": [width for width, _, _ in stages],
        "depths": [depth for _, depth, _ in stages],
        "strides": [stride for _, _, stride in stages],
        "stem": at(config, "first_conv", "out_channels"),
        "stem_stride": at(config, "first_conv", "stride"),
        "first": first,
        "head": at(config, "feature_mix_layer", "out_channels"),
        "dropout": at(config, "classifier", "dropout_rate", hint=DropRate),
    }
    used = set(choices.values())
    if not used <= {"zero", *mobile.CANDIDATES}:
        settings["candidates"] = [c for c in mobile.ALL_CANDIDATES if c in used]
    network = architecture("mobile", settings, choices)
    compare(config, _config(settings, choices))
    for width in (settings["stem"], first, *settings["widths"]):
        if round_channels(width) != width:
            raise ArchitectureError(f"the width {width} is not a multiple of 8 as in this space")
    return network


def _stages(config: Fields, channels: int) -> tuple[list[tuple[int, int, int]], Choices]:
    """(width, depth, stride) of every stage, and the choices of its blocks.

    A block that changes the width or the resolution has no shortcut and begins a stage.
    """
    stages: list[tuple[int, int, int]] = []
    choices: Choices = {}
    for i in range(1, len(at(config, "blocks", hint=list[Any]))):
        place = ("blocks", i, "mobile_inverted_conv")
        if at(config, *place, "name", hint=str) == "ZeroLayer":
            out, stride, candidate = channels, 1, "zero"
        else:
            out, stride = at(config, *place, "out_channels"), at(config, *place, "stride")
            candidate = _candidate(config, place)
        shortcut = out == channels and stride == 1
        choices[f"blocks.{i}.branch" if shortcut else f"blocks.{i}"] = candidate
        if shortcut and stages:
            width, depth, first_stride = stages.pop()
            stages.append((width, depth + 1, first_stride))
        else:
            stages.append((out, 1, stride))
        channels = out
    return stages, choices


def _candidate(config: Fields, place: tuple[str | int, ...]) -> str:
    kernel, ratio = at(config, *place, "kernel_size"), at(config, *place, "expand_ratio")
    name = f"k{kernel}_e{ratio}"
    if name not in mobile.ALL_CANDIDATES:
        words = ", ".join(mobile.ALL_CANDIDATES)
        raise ArchitectureError(f"{dotted('', place)} is {name}; the space has {words}")
    return name


# --- the config of an architecture ---


def _config(s: Fields, choices: Choices) -> Fields:
    channels = s["first"]
    order = {"act_func": "relu6", "ops_order": WEIGHT_FIRST}
    stem = conv_layer(s["input_shape"][0], s["stem"], 3, stride=s["stem_stride"], **order)
    blocks = [_block(_inverted(s["stem"], channels, "k3_e1", 1), channels, shortcut=False)]
    for width, depth, first_stride in zip(s["widths"], s["depths"], s["strides"], strict=True):
        for stride in (first_stride, *[1] * (depth - 1)):
            shortcut = stride == 1 and channels == width
            name = f"blocks.{len(blocks)}" + ".branch" * shortcut
            conv = _inverted(channels, width, choices[name], stride)
            blocks.append(_block(conv, channels, shortcut=shortcut))
            channels = width
    return {
        "name": "ProxylessNASNets",
        "bn": {"momentum": 0.1, "eps": 0.001},
        "first_conv": stem,
        "feature_mix_layer": conv_layer(channels, s["head"], 1, **order),
        "classifier": classifier(s["head"], s["classes"], s["dropout"], WEIGHT_FIRST),
        "blocks": blocks,
    }


def _block(conv: Fields, channels: int, *, shortcut: bool) -> Fields:
    identity = plain_layer("IdentityLayer", channels, ops_order=WEIGHT_FIRST)
    return {
        "name": "MobileInvertedResidualBlock",
        "mobile_inverted_conv": conv,
        "shortcut": identity if shortcut else None,
    }


def _inverted(channels: int, out: int, candidate: str, stride: int) -> Fields:
    if candidate == "zero":
        return {"name": "ZeroLayer"}
    kernel, ratio = candidate.split("_")
    return {
        "name": "MBInvertedConvLayer",
        "in_channels": channels,
        "out_channels": out,
        "kernel_size": int(kernel[1:]),
        "stride": stride,
        "expand_ratio": int(ratio[1:]),
    }


# --- the form of Once-for-All ---


def _earlier_form(value: Any) -> Any:
    """A config of Once-for-All in the spelling of the paper's own, without fields of no effect."""
    if isinstance(value, list):
        return [_earlier_form(element) for element in value]
    if not isinstance(value, dict):
        return value
    fields = {name: _earlier_form(field) for name, field in value.items()}
    if "conv" in fields:
        fields["mobile_inverted_conv"] = fields.pop("conv")
    for name in fields.keys() & {"in_channels", "out_channels"}:
        if isinstance(fields[name], list) and len(fields[name]) == 1:
            fields[name] = fields[name][0]
    if isinstance(fields.get("name"), str):
        fields["name"] = SPELLINGS.get(fields["name"], fields["name"])
    neutral = _neutral(fields)
    return {k: v for k, v in fields.items() if k not in neutral or not same(v, neutral[k])}


def _neutral(fields: Fields) -> Fields:
    """The fields that change nothing about a layer, and their values."""
    if fields.get("name") == "ZeroLayer":
        return {"stride": 1}
    neutral = dict(NEUTRAL)
    if fields.get("name") == "MBInvertedConvLayer":
        neutral["act_func"] = "relu6"
        channels, ratio = fields.get("in_channels"), fields.get("expand_ratio")
        if fields.get("mid_channels") and isinstance(channels, int) and isinstance(ratio, int):
            neutral["mid_channels"] = channels * ratio
    return neutral
