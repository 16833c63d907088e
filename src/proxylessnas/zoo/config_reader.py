"""Reader of the authors' network configs: their JSON to an `Architecture` of ours.

ProxylessNASNets   the ImageNet networks, also Once-for-All's, points of the space `mobile`
PyramidTreeNet     the CIFAR-10 network, a point of the space `tree`
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxylessnas.architecture import Architecture
from proxylessnas.errors import ArchitectureError, did_you_mean
from proxylessnas.io.files import read_bytes
from proxylessnas.io.json_files import decode_json
from proxylessnas.schema import shown
from proxylessnas.zoo.config_mobile import read_mobile
from proxylessnas.zoo.config_tree import read_tree

MAX_FILE_BYTES = 16 << 20
READERS: dict[str, Callable[[dict[str, Any]], Architecture]] = {
    "ProxylessNASNets": read_mobile,
    "PyramidTreeNet": read_tree,
}
# Networks of Once-for-All that are published in the same form.
NOT_HERE = {
    "MobileNetV3": "h_swish and squeeze-and-excitation",
    "MobileNetV3Large": "h_swish and squeeze-and-excitation",
    "ResNets": "bottlenecks of ResNets",
}


def read_published(path: str | Path) -> Architecture:
    """The architecture that one of the authors' `.config` files describes; at most 16 MiB.

    Raises:
        ArchitectureError: the file cannot be read, or holds a field, a layer or a structure
            that the space does not have; the message names its place.
    """
    text = read_bytes(path, MAX_FILE_BYTES, ArchitectureError)
    try:
        return from_published(decode_json(text, ArchitectureError))
    except ArchitectureError as error:
        raise ArchitectureError(f"cannot read the published network {path}: {error}") from None


def from_published(config: object) -> Architecture:
    """The architecture of a decoded config.

    Raises:
        ArchitectureError: as `read_published`.
    """
    if not isinstance(config, dict):
        raise ArchitectureError(f"the config is {shown(config)}; it must be a group of fields")
    name = str(config.get("name"))
    if name in NOT_HERE:
        raise ArchitectureError(f"name is {name!r}, whose {NOT_HERE[name]} no space here has")
    if name not in READERS:
        raise ArchitectureError(f"name is {shown(name)}; {did_you_mean(name, READERS)}")
    try:
        return READERS[name](config)
    except RecursionError:
        raise ArchitectureError("the config is nested too deeply") from None
