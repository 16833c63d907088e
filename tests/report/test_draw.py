"""Every kind of network as SVG: well formed, complete, nothing unescaped."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxylessnas import zoo
from proxylessnas.architecture import Architecture
from proxylessnas.errors import ArchitectureError
from proxylessnas.report.draw import KERNELS, LAYERS, draw
from proxylessnas.spaces import build_supernet

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def fills(svg: str) -> list[str]:
    return [element.attrib["fill"] for element in ET.fromstring(svg).iter(f"{SVG}rect")]


def test_the_gpu_network() -> None:
    """Shallow, wide, large kernels late: 13 searched blocks, 8 left out."""
    svg = draw(zoo.load("proxyless_gpu"))
    words = texts(svg)
    blocks = [word for word in words if word.startswith("MB")]
    assert blocks[:3] == ["MB1 3×3", "MB3 5×5", "MB3 7×7"]
    assert blocks[-1] == "MB6 7×7" and len(blocks) == 14
    assert "3×224×224" in words and "7×7" in words and "1728" in words
    assert any("left out (8)" in word for word in words)
    assert fills(svg).count(KERNELS[7]) == 1 + sum("7×7" in block for block in blocks)
    heights = {e.attrib["height"] for e in ET.fromstring(svg).iter(f"{SVG}rect")}
    assert {"66", "96", "150"} < heights


def test_the_cifar_network() -> None:
    architecture = zoo.load("proxyless_cifar")
    svg = draw(architecture)
    for name, colour in LAYERS.items():
        in_legend = 1
        assert fills(svg).count(colour) == in_legend + list(architecture.choices.values()).count(
            name
        )
    assert {"18 to 44", "74 to 100", "8×8", "branch 2, edge 2.1"} < set(texts(svg))


def test_scales_of_one_block_have_short_words() -> None:
    sizes = {"input_shape": [3, 32, 32], "blocks": [1, 1], "depth": 1, "branches": 2}
    supernet = build_supernet("tree", sizes)
    names = zip(supernet.names, supernet.candidates, strict=True)
    choices = {name: candidates[0] for name, candidates in names}
    words = set(
        texts(draw(Architecture(space="tree", settings=supernet.settings, choices=choices)))
    )
    assert {"32²", "16²"} < words and not any(" to " in word for word in words)


def test_macro_and_small_networks() -> None:
    for space, settings in (
        ("macro", {"widths": [8, 8, 16], "head": 8}),
        ("mobile", {"input_shape": [1, 28, 28], "depths": [2], "widths": [16], "first": 8}),
        ("cell", {}),
        ("tree", {"blocks": [1, 1], "depth": 1, "branching": 3, "branches": 1}),
    ):
        supernet = build_supernet(space, settings)
        for seed in range(3):
            svg = draw(supernet.sample(torch.Generator().manual_seed(seed)))
            assert {f"{space} network", f"network of {space}"} & set(texts(svg))


@given(
    names=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=60),
    space=st.text(max_size=8).map(lambda text: f"my_{text}:Net"),
)
def test_any_model_of_your_own(names: dict[str, str], space: str) -> None:
    svg = draw(Architecture(space=space, choices=names))
    assert len(fills(svg)) == len(names) + 1


def test_names_are_escaped() -> None:
    svg = draw(Architecture(space="m:</svg><script>", choices={"a<b": '"x" & \x00'}))
    assert "<script" not in svg
    assert {"a<b", '"x" & \N{REPLACEMENT CHARACTER}'} < set(texts(svg))


def test_choices_that_do_not_fit() -> None:
    with pytest.raises(ArchitectureError):
        draw(Architecture(space="macro", choices={"blocks.0": "e9"}))
