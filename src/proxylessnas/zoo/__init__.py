"""The paper's five networks and MobileNetV2 as architectures, and what is published of them.

    list_networks()             names with parameters, MACs, accuracy, latencies, source
    load(name)                  an `Architecture`; `spaces.build` makes the plain network
    read_published(path)        the authors' own JSON configs
    load_published_weights(network, path)    the authors' checkpoints

`networks/*.json` are architectures of ours, written from the facts in those configs.
"""

from __future__ import annotations

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

PAPER = "ProxylessNAS, arXiv 1812.00332"
REPOSITORY = "github.com/mit-han-lab/proxylessnas"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One network of the zoo.

    parameters, macs: of our network at `input_shape`, multiply-adds as in `hardware.count`.
    top1, top5: published accuracy in percent, of the authors' weights; None: not published.
    latency_ms: published, by device. The weights are not here: see `load_published_weights`.
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
    source: str = PAPER


IMAGENET = (3, 224, 224)
# GPU: V100, batch 8. CPU: 2x Xeon E5-2640 v4, batch 1. Mobile: Pixel 1, batch 1.
NETWORKS: dict[str, Published] = {
    network.name: network
    for network in (
        Published(
            name="proxyless_gpu",
            summary="ImageNet, specialised for GPU: shallow and wide, large kernels late",
            space="mobile",
            input_shape=IMAGENET,
            parameters=7_119_848,
            macs=465_260_160,
            top1=75.1,
            top5=92.5,
            latency_ms={"gpu": 5.1, "cpu": 204.9, "mobile": 124.0},
            source=f"{PAPER}; top-5: README of {REPOSITORY}",
        ),
        Published(
            name="proxyless_cpu",
            summary="ImageNet, specialised for CPU: deep, small kernels",
            space="mobile",
            input_shape=IMAGENET,
            parameters=4_361_648,
            macs=439_243_864,
            top1=75.3,
            latency_ms={"gpu": 7.4, "cpu": 138.7, "mobile": 116.0},
        ),
        Published(
            name="proxyless_mobile",
            summary="ImageNet, specialised for mobile: in between",
            space="mobile",
            input_shape=IMAGENET,
            parameters=4_080_512,
            macs=320_427_584,
            top1=74.6,
            top5=92.2,
            latency_ms={"gpu": 7.2, "cpu": 164.1, "mobile": 78.0},
        ),
        Published(
            name="proxyless_mobile_14",
            summary="ImageNet, the mobile network 1.4 times as wide",
            space="mobile",
            input_shape=IMAGENET,
            parameters=6_857_568,
            macs=580_883_408,
            source=REPOSITORY,
        ),
        Published(
            name="proxyless_cifar",
            summary="CIFAR-10, tree-structured cells in a PyramidNet (Proxyless-G, cutout)",
            space="tree",
            input_shape=(3, 32, 32),
            parameters=5_731_530,
            macs=1_213_155_872,
            top1=97.92,
        ),
        Published(
            name="mobilenet_v2",
            summary="MobileNetV2 for comparison, in this space: BN eps 1e-3, not 1e-5",
            space="mobile",
            input_shape=IMAGENET,
            parameters=3_504_872,
            macs=300_774_272,
            top1=72.0,
            top5=91.0,
            latency_ms={"gpu": 6.1, "mobile": 75.0},
        ),
    )
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
