"""Complete settings of known experiments: the YAML files beside this one.

    proxylessnas run --config imagenet_mobile --data ...
    config = recipes.load("imagenet_mobile")        the same as a `RunConfig`

Each file says where its values come from, and what of the published settings it leaves out.
"""

from __future__ import annotations

from pathlib import Path

from proxylessnas.config import RunConfig, read_config
from proxylessnas.errors import ConfigError, did_you_mean

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))


def path(name: str) -> Path:
    """The YAML file of a recipe.

    Raises:
        ConfigError: there is no such recipe.
    """
    if name not in NAMES:
        raise ConfigError(f"there is no recipe {name!r}; {did_you_mean(name, NAMES)}")
    return FOLDER / f"{name}.yaml"


def load(name: str) -> RunConfig:
    """A recipe's settings.

    Raises:
        ConfigError: there is no such recipe.
    """
    return read_config(path(name))
