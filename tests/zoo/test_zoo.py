"""The zoo: golden sizes, the published facts, and our files against the authors'."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import reference_networks
import torch

from proxylessnas import zoo
from proxylessnas.architecture import InputInfo
from proxylessnas.errors import ArchitectureError
from proxylessnas.hardware.count import count_macs, count_parameters
from proxylessnas.spaces import build, build_supernet

GOLDEN = json.loads((Path(__file__).parent / "golden" / "networks.json").read_text())


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden(name: str) -> None:
    """Parameters and MACs of docs/paper.md, "Golden figures"; MobileNetV2's are torchvision's."""
    golden, facts = GOLDEN[name], zoo.facts(name)
    with torch.device("meta"):
        network = build(zoo.load(name))
        macs = count_macs(network, (torch.zeros(1, *golden["input"]),))
    assert count_parameters(network) == golden["parameters"] == facts.parameters
    assert macs == golden["macs"] == facts.macs
    assert tuple(golden["input"]) == facts.input_shape


def test_every_network_has_golden_figures() -> None:
    assert set(GOLDEN) == set(zoo.NETWORKS) == {n.name for n in zoo.list_networks()}


@pytest.mark.parametrize("name", reference_networks.NAMES)
def test_ours_is_what_the_authors_file_says(name: str) -> None:
    ours, theirs = (
        zoo.load(f"proxyless_{name}"),
        zoo.read_published(reference_networks.config_path(name)),
    )
    assert (ours.space, ours.settings) == (theirs.space, theirs.settings)
    assert list(ours.choices.items()) == list(theirs.choices.items())
    assert ours.input is not None and theirs.input == InputInfo(shape=ours.input.shape)


@pytest.mark.parametrize("name", list(zoo.NETWORKS))
def test_a_point_of_its_space(name: str) -> None:
    architecture = zoo.load(name)
    with torch.device("meta"):
        supernet = build_supernet(architecture.space, dict(architecture.settings))
    assert supernet.architecture(supernet.indices(architecture)).choices == architecture.choices
    assert tuple(architecture.choices) == supernet.names
    assert architecture.space == zoo.facts(name).space


def test_published_facts() -> None:
    """Against docs/paper.md, "Golden figures"."""
    gpu, cpu, mobile = (zoo.facts(f"proxyless_{kind}") for kind in ("gpu", "cpu", "mobile"))
    assert (gpu.top1, cpu.top1, mobile.top1, mobile.top5) == (75.1, 75.3, 74.6, 92.2)
    assert gpu.latency_ms == {"gpu": 5.1, "cpu": 204.9, "mobile": 124.0}
    assert cpu.latency_ms == {"gpu": 7.4, "cpu": 138.7, "mobile": 116.0}
    assert mobile.latency_ms == {"gpu": 7.2, "cpu": 164.1, "mobile": 78.0}
    assert zoo.facts("proxyless_cifar").top1 == pytest.approx(100 - 2.08)
    for network in zoo.list_networks():
        assert network.source and json.dumps(dataclasses.asdict(network))


def test_an_unknown_name() -> None:
    for call in (zoo.load, zoo.facts):
        with pytest.raises(ArchitectureError, match="did you mean proxyless_cpu"):
            call("proxyless_cp")
    with pytest.raises(ArchitectureError):
        zoo.load("../networks/mobilenet_v2")
