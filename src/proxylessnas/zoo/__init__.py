"""The paper's five networks and MobileNetV2 as architectures, and what is published of them.

    list_networks()             names with parameters, MACs, accuracy, latencies, source
    load(name)                  an `Architecture`; `spaces.build` makes the plain network
    read_published(path)        the authors' own JSON configs
    load_published_weights(network, path)    the authors' checkpoints

`networks/NAME.json` are architectures of ours, written from the facts in those configs;
`networks/published.json` is what is published of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

from proxylessnas.architecture import Architecture
from proxylessnas.errors import ArchitectureError, did_you_mean
from proxylessnas.zoo.config_reader import read_published
from proxylessnas.zoo.weights import load_published_weights

__all__ = [
    "NETWORKS",
    "Published",
    "facts",
    "list_networks",
    "load",
    "load_published_weights",
    "read_published",
]


@dataclass(frozen=True, kw_only=True)
class Published:
    """One network of the zoo.

    parameters, macs: of our network at `input_shape`, multiply-adds as in `hardware.count`.
    top1, top5: published accuracy in percent, of the authors' weights; None: not published.
    latency_ms: published, by device: gpu (V100, batch 8), cpu (two Xeon E5-2640 v4, batch 1) and
        mobile (Pixel 1, batch 1). The weights are not here: see `load_published_weights`.
    """

    name: str
    summary: str
    space: str
    input_shape: tuple[int, int, int]
    parameters: int
    macs: int
    top1: float | None = None
    top5: float | None = None
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    source: str = "ProxylessNAS, arXiv 1812.00332"


FACTS = resources.files(__package__) / "networks" / "published.json"
NETWORKS: dict[str, Published] = {
    fields["name"]: Published(**{**fields, "input_shape": tuple(fields["input_shape"])})
    for fields in json.loads(FACTS.read_text("utf-8"))
}


def list_networks() -> tuple[Published, ...]:
    """What is published of every network of the zoo; builds nothing."""
    return tuple(NETWORKS.values())


def facts(name: str) -> Published:
    """What is published of one network.

    Raises:
        ArchitectureError: the zoo has no such network.
    """
    if name not in NETWORKS:
        raise ArchitectureError(f"the zoo has no network {name!r}; {did_you_mean(name, NETWORKS)}")
    return NETWORKS[name]


def load(name: str) -> Architecture:
    """The architecture of a network of the zoo.

    Raises:
        ArchitectureError: the zoo has no such network.
    """
    file = resources.files(__package__) / "networks" / f"{facts(name).name}.json"
    return Architecture.from_json(file.read_text("utf-8"))
