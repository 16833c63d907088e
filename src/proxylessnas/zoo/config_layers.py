"""What the readers of both kinds of published network share.

A reader takes a few numbers out of a config (`at`), makes an architecture of them, and writes the
config that the architecture has in the authors' form, with the layers below. `compare` names the
first place where the file differs, so that whatever is read is exactly what `proxylessnas.build`
builds.
"""

from __future__ import annotations

from typing import Annotated, Any, NoReturn

from annotated_types import Ge, Le, Lt

from proxylessnas.architecture import Architecture, InputInfo
from proxylessnas.errors import ArchitectureError, ConfigError, did_you_mean
from proxylessnas.schema import Hint, check, dotted, shown
from proxylessnas.spaces import complete_settings

Fields = dict[str, Any]
Choices = dict[str, str]
Size = Annotated[int, Ge(1), Le(1 << 20)]  # of a width, a kernel or a number of classes
DropRate = Annotated[float, Ge(0), Lt(1)]


def architecture(space: str, settings: Fields, choices: Choices) -> Architecture:
    """The architecture with complete settings.

    Raises:
        ArchitectureError: the space does not have such settings.
    """
    try:
        full = complete_settings(space, settings, None)
    except ConfigError as error:
        raise ArchitectureError(f"it does not fit the space {space}: {error}") from None
    info = InputInfo(shape=tuple(settings["input_shape"]))
    return Architecture(space=space, settings=full, choices=choices, input=info)


def at(config: object, *path: str | int, hint: Hint = Size) -> Any:
    """The value of a decoded config at a path, checked to be of the type.

    Raises:
        ArchitectureError: there is none, or it is of another type; the message names the place.
    """
    value = config
    for i, step in enumerate(path):
        kind: Hint = list[Any] if isinstance(step, int) else Fields
        inside = check(kind, value, dotted("", path[:i]), ArchitectureError)
        if not (step < len(inside) if isinstance(step, int) else step in inside):
            _refuse(dotted("", path[: i + 1]), "is missing")
        value = inside[step]
    return check(hint, value, dotted("", path), ArchitectureError)


# --- the authors' layers ---


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


def classifier(channels: int, classes: int, dropout: float, order: str) -> Fields:
    """The final linear layer."""
    return {
        "name": "LinearLayer",
        "in_features": channels,
        "out_features": classes,
        "bias": True,
        "use_bn": False,
        "act_func": None,
        "dropout_rate": dropout,
        "ops_order": order,
    }


# --- a config and the expected one ---


def compare(found: object, expected: object, place: str = "") -> None:
    """Find the first place where two decoded configs differ.

    Raises:
        ArchitectureError: they do; the message names the place and both values.
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        for name, value in found.items():
            if name not in expected:
                near = did_you_mean(name, expected)
                where = dotted(place, (name,))
                _refuse(where, f"is {shown(value)}; no space here has this field; {near}")
        for name, value in expected.items():
            if name not in found:
                _refuse(dotted(place, (name,)), "is missing")
            compare(found[name], value, dotted(place, (name,)))
    elif isinstance(expected, list) and isinstance(found, list):
        if len(found) != len(expected):
            _refuse(place, f"has {len(found)} elements; {len(expected)} are expected")
        for i, (element, value) in enumerate(zip(found, expected, strict=True)):
            compare(element, value, dotted(place, (i,)))
    elif not same(found, expected):
        _refuse(place, f"is {shown(found)}; {shown(expected)} is expected")


def same(found: object, expected: object) -> bool:
    """Whether two decoded values are equal; true is not 1."""
    return found == expected and isinstance(found, bool) == isinstance(expected, bool)


def _refuse(place: str, problem: str) -> NoReturn:
    raise ArchitectureError(f"{place or 'the config'} {problem}")
