"""Search spaces by name, and the one way from an `Architecture` to a module.

A space is a frozen settings class and a function `build(settings, choices=None)`: without
choices it returns the supernet, with them the plain network, of which no candidate that
was not chosen is ever built. `module:factory` names any function that returns a model
holding `MixedOp`s.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from proxylessnas.architecture import Architecture, InputInfo
from proxylessnas.config import parse_settings
from proxylessnas.core.mixed import collapse_residuals
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import ArchitectureError, ConfigError, did_you_mean
from proxylessnas.io.importing import imported
from proxylessnas.spaces import cell, inverted, macro, mobile, tree


@dataclasses.dataclass(frozen=True)
class Space:
    """A settings class, and the function that builds a model from it."""

    settings: type[Any]
    build: Callable[..., nn.Module]


SPACES: dict[str, Space] = {
    "mobile": Space(mobile.MobileSettings, mobile.build),
    "macro": Space(macro.MacroSettings, macro.build),
    "cell": Space(cell.CellSettings, cell.build),
    "tree": Space(tree.TreeSettings, tree.build),
    "inverted": Space(inverted.InvertedSettings, inverted.build),
}


def complete_settings(
    name: str, given: Mapping[str, Any], info: InputInfo | None
) -> dict[str, Any]:
    """Every setting of the space, with `given` over what the data say over the defaults.

    Raises:
        ConfigError: the space or a setting is unknown, or a value does not fit.
    """
    known: dict[str, Any] = {}
    if info is not None:
        known = {"input_shape": list(info.shape), "classes": len(info.classes)}
        for key in known.keys() & given.keys():
            if given[key] is not None and list_of(given[key]) != list_of(known[key]):
                raise ConfigError(f"{key} is {given[key]}, but the data say {known[key]}")
    if ":" in name:
        parameters = inspect.signature(imported(name, "the space")).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for key in given:
            if key not in parameters and not takes_all:
                raise ConfigError(
                    f"{name} takes no setting {key!r}; {did_you_mean(key, parameters)}"
                )
        return {**{k: v for k, v in known.items() if k in parameters}, **given}
    return dataclasses.asdict(_settings(name, {**known, **given}))


def build_supernet(
    name: str,
    settings: Mapping[str, Any] | None = None,
    *,
    input: InputInfo | None = None,
) -> Supernet:
    """The supernet of a space, with fresh weights from torch's global generator."""
    full = complete_settings(name, settings or {}, input)
    if ":" in name:
        model = _call_factory(name, full)
    else:
        model = SPACES[name].build(_settings(name, full))
    return Supernet(model, space=name, settings=full, input=input)


def build(architecture: Architecture, *, allow: Collection[str] = ()) -> nn.Module:
    """The plain network of an architecture, with fresh weights.

    allow: the `module:factory` names that may be imported. An architecture may come from a
    stranger: the code it names runs only if the caller names it too.

    Raises:
        ArchitectureError: the choices do not fit the space, or its factory is not allowed.
    """
    name = architecture.space
    if ":" in name:
        if name not in allow:
            raise ArchitectureError(
                f"the architecture is built by {name}, which is not imported because a file says "
                f"so: name it yourself (--space {name}, or allow=[{name!r}])"
            )
        supernet = Supernet(_call_factory(name, architecture.settings))
        return supernet.derive(architecture)
    if name not in SPACES:
        own = "it was a model of one's own: Supernet(Net()).derive(architecture) builds it again"
        raise ArchitectureError(
            f"the architecture is of the space {name!r}, which a file alone does not build; "
            f"{own if name == 'custom' else did_you_mean(name, SPACES)}"
        )
    choices = dict(architecture.choices)
    model = SPACES[name].build(_settings(name, architecture.settings), choices)
    if choices:  # `choose` takes out what it uses
        raise ArchitectureError(
            f"the architecture chooses for {next(iter(choices))!r}, which the space {name} "
            "with these settings does not have"
        )
    return collapse_residuals(model)


def list_of(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _settings(name: str, given: Mapping[str, Any]) -> Any:
    if name not in SPACES:
        raise ConfigError(
            f"there is no space {name!r}; {did_you_mean(name, SPACES)} "
            "(or module:factory for your own)"
        )
    return parse_settings(SPACES[name].settings, given, f"space {name}")


def _call_factory(name: str, settings: Mapping[str, Any]) -> nn.Module:
    model = imported(name, "the space")(**settings)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name} returned {type(model).__name__}, not a torch module")
    return model
