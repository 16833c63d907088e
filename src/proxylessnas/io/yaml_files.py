"""Settings as YAML without surprises: numbers are decimal; no key twice, no aliases, no tags."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from proxylessnas.errors import ConfigError, one_line
from proxylessnas.io.files import read_bytes

MAX_CONFIG_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """Plain values alone; numbers as in YAML 1.2 and JSON."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in keys:
                raise yaml.YAMLError(f"the key {key!r} is there twice")
            keys.add(key)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it uses YAML aliases, which are not read")  # they could explode
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError("it uses YAML tags, which are not read")
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Texts that look like a number here or to a reader of YAML 1.1 have quotes."""


# YAML 1.1 reads 010 as 8, 1:30 as 90, 1_000 as 1000 and 2026-01-01 as a date. Here these are texts,
# beside 010, which is 10.
_DECIMAL = {
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_OF_YAML_1_1 = {f"tag:yaml.org,2002:{kind}" for kind in (*_DECIMAL, "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OF_YAML_1_1]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern in _DECIMAL.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})$"), list("-+.0123456789")
        )
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def decode_yaml(text: str | bytes, name: str) -> Any:
    """The plain value of a YAML text.

    Raises:
        ConfigError: the text is not YAML, or uses aliases or a key twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # safe: a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"{name} is not YAML: {one_line(error)}") from None


def encode_yaml(value: Any) -> str:
    """The inverse of `decode_yaml`, in the order of the keys."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a file of at most 1 MiB.

    Raises:
        ConfigError: unreadable, too large, or not a mapping in YAML.
    """
    data = decode_yaml(read_bytes(path, MAX_CONFIG_BYTES, ConfigError), str(path))
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"{path} is not a mapping of settings")
    return data
