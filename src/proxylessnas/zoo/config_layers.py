"""What the readers of both kinds of published network share: the authors' layers.

Each function predicts one layer's fields, which `Place.expect` then compares.
"""

from __future__ import annotations

from typing import Any

from proxylessnas.architecture import Architecture, InputInfo
from proxylessnas.errors import ArchitectureError, ConfigError
from proxylessnas.spaces import complete_settings
from proxylessnas.zoo.config_fields import Place

Fields = dict[str, object]
Choices = dict[str, str]


def architecture(space: str, settings: dict[str, Any], choices: Choices) -> Architecture:
    try:
        full = complete_settings(space, settings, None)
    except ConfigError as error:
        raise ArchitectureError(f"it does not fit the space {space}: {error}") from None
    info = InputInfo(shape=tuple(settings["input_shape"]))
    return Architecture(space=space, settings=full, choices=choices, input=info)


def conv_layer(channels: int, out: int, kernel: int, **other: object) -> Fields:
    """The authors' ConvLayer without bias; `other` over the usual fields."""
    return {
        "name": "ConvLayer",
        "kernel_size": kernel,
        "stride": 1,
        "dilation": 1,
        "groups": 1,
        "bias": False,
        "has_shuffle": False,
        "in_channels": channels,
        "out_channels": out,
        "use_bn": True,
        "act_func": "relu",
        "dropout_rate": 0,
        "ops_order": "bn_act_weight",
        **other,
    }


def plain_layer(name: str, channels: int, **other: object) -> Fields:
    """A layer without weights that keeps the channels: identity or pooling."""
    return {
        "name": name,
        "in_channels": channels,
        "out_channels": channels,
        "use_bn": False,
        "act_func": None,
        "dropout_rate": 0,
        "ops_order": "bn_act_weight",
        **other,
    }


def classifier(place: Place, channels: int, order: str) -> tuple[int, float]:
    """(classes, dropout) of the final linear layer."""
    classes, dropout = place.integer("out_features"), place.rate("dropout_rate")
    place.expect(
        {
            "name": "LinearLayer",
            "in_features": channels,
            "out_features": classes,
            "bias": True,
            "use_bn": False,
            "act_func": None,
            "dropout_rate": dropout,
            "ops_order": order,
        }
    )
    return classes, dropout
