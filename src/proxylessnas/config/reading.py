"""From plain values (of YAML, JSON or the command line) to settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from proxylessnas import schema
from proxylessnas.config.run import RunConfig
from proxylessnas.errors import ConfigError

T = TypeVar("T")


def parse_settings(cls: type[T], values: Mapping[str, Any], source: str = "") -> T:
    """A settings class from plain values (of YAML, JSON or the command line).

    source: the file or the space that the values are of, for messages.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is out of range.
    """
    try:
        settings: T = schema.from_plain(cls, dict(values))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}" if source else str(error)) from None
    return settings


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested plain values with others over them, group by group."""
    groups = {k: {**(base.get(k) or {}), **v} for k, v in over.items() if isinstance(v, Mapping)}
    return {**base, **over, **groups}


def pick(settings: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of checked settings, the values of the keys that are in `values`, nested alike."""
    return {
        key: pick(getattr(settings, key), value)
        if dataclasses.is_dataclass(getattr(settings, key))
        else getattr(settings, key)
        for key, value in values.items()
    }


def _missing(settings: Any, values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings that plain values leave to their defaults."""
    missing = []
    for key in (f.name for f in dataclasses.fields(settings)):
        value = getattr(settings, key)
        if key not in values:
            missing.append(prefix + key)
        elif dataclasses.is_dataclass(value):
            missing += _missing(value, values[key], f"{prefix}{key}.")
    return missing


def read_config(path: Path, *, complete: bool = False) -> RunConfig:
    """A config file.

    complete: it is a run's, and must be whole: a file that was cut short lacks the last setting.
        Others may be missing, of a version before they came: so the default of a new setting is
        what that version did, and the last one stays the last.

    Raises:
        ConfigError: unreadable, not YAML, a setting is unknown or out of range, or missing.
    """
    from proxylessnas.io.yaml_files import read_yaml  # the help needs no YAML

    values = read_yaml(path)
    config = parse_settings(RunConfig, values, str(path))
    missing = _missing(config, values) if complete else []
    last = dataclasses.fields(config)[-1].name
    inner = dataclasses.fields(getattr(config, last))[-1].name
    if missing and missing[-1] in (last, f"{last}.{inner}"):
        raise ConfigError(
            f"{path} is not whole: {missing[0]} is missing; restore the file, or begin again in "
            "another directory"
        )
    return config


def left_to_defaults(path: Path) -> list[str]:
    """The settings that a run's file does not have, being of an earlier version."""
    from proxylessnas.io.yaml_files import read_yaml

    values = read_yaml(path)
    return _missing(parse_settings(RunConfig, values, str(path)), values)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `config.yaml`, for editors and for the documentation."""
    return schema.json_schema(RunConfig)
