"""Settings as YAML, read without surprises."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from proxylessnas.errors import ConfigError
from proxylessnas.io.files import write_atomic as write_atomic

MAX_CONFIG_BYTES = 1 << 20


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_CONFIG_BYTES >> 20} MiB")
    try:
        if b"&" in raw and b"*" in raw:  # aliases could expand without bound
            for event in yaml.parse(raw, Loader=yaml.SafeLoader):
                if isinstance(event, yaml.AliasEvent):
                    raise ConfigError(f"{path} uses YAML aliases, which are not read")
        data = yaml.safe_load(raw)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise ConfigError(f"{path} is not YAML: {reason[:200]}") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"{path} is not a mapping of settings")
    return data
