"""Names that options give, refused within a moment: torch is not imported yet, nothing is read.

What decides in the end are the registries of the rooms below, which `tests/brought/test_names.py`
compares with the lists here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from proxylessnas.config import HUB_NAME
from proxylessnas.errors import ConfigError, did_you_mean

SPACES = ("mobile", "macro", "cell", "tree")
RUNTIMES = ("onnxruntime", "torch", "litert", "openvino", "executorch", "tensorrt", "fake")
KITS = ("coreml",)  # runtimes that only kits are of
DATA = ("mnist5k", "digits", "surfaces")
PRETRAINED = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
OTHER_SPACES = ("inverted", "custom", "model")  # that files name: trained ones, Python calls
OTHER_DATA = "a folder that exists, owner/name of the Hugging Face hub or torchvision:NAME"
OTHER_PRETRAINED = "torchvision:NAME, timm:NAME, a checkpoint or a run directory"


def check_names(settings: Mapping[str, Any], *, measuring: bool = False) -> None:
    """Of a run's settings, nested plain values.

    measuring: networks, which may be on several runtimes, or by a kit.

    Raises:
        ConfigError: a name is of nothing; the nearest are named.
    """
    space = settings.get("space", SPACES[0])
    if ":" not in space and space not in OTHER_SPACES:
        _known(space, SPACES, "space", "; or give module:factory for your own model")
    runtime = settings.get("runtime", RUNTIMES[0]).partition(":")[0]  # behind it are its options
    for name in map(str.strip, runtime.split(",")) if measuring else (runtime,):
        if name not in (*RUNTIMES, *(KITS if measuring else ())):  # other packages may bring some
            plugins = sorted(point.name for point in entry_points(group="proxylessnas.runtimes"))
            _known(name, [*RUNTIMES[:-1], *plugins], "runtime")
    data = settings.get("data") or DATA[0]
    if not _is_elsewhere(data):
        _known(data, DATA, "data set", f"; or give {OTHER_DATA}")
    pretrained = (settings.get("pretrained") or "none").partition("@")[0]
    if pretrained != "none" and not _is_elsewhere(pretrained):
        _known(pretrained, PRETRAINED, "pretrained network", f"; or give {OTHER_PRETRAINED}")


def _is_elsewhere(name: str) -> bool:
    """Whether a name is of a library or of the hub, or a path, which say later what is wrong."""
    path = Path(name).expanduser()
    in_archive = any(above.is_file() for above in path.parents)
    return ":" in name or bool(HUB_NAME.fullmatch(name)) or path.exists() or in_archive


def _known(name: str, allowed: Iterable[str], kind: str, more: str = "") -> None:
    if name not in allowed:
        near = did_you_mean(name, allowed)
        raise ConfigError(f"there is no {kind} {name!r}; {near.removesuffix('.')}{more}")
