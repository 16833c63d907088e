"""The Pixel 1 and Note10 tables as a cost of the mobile space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import reference_networks
import torch
import yaml
from amounts import examples
from hypothesis import given
from hypothesis import strategies as st

from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import MeasurementError, MissingEntry
from proxylessnas.hardware.published_table import (
    PublishedTable,
    published_cost,
    read_published_table,
)
from proxylessnas.spaces import build_supernet


@pytest.fixture(scope="module")
def pixel() -> PublishedTable:
    return read_published_table(reference_networks.data_folder() / "mobile_trim.yaml")


@pytest.fixture(scope="module")
def space() -> Supernet:
    with torch.device("meta"):
        return build_supernet("mobile")


def test_pixel_prices_the_whole_space(pixel: PublishedTable, space: Supernet) -> None:
    cost = published_cost(space, pixel)
    assert (cost.names, cost.units, cost.fit) == (("latency",), ("ms",), None)
    assert cost.per_candidate.shape == (1, *space.mask.shape)
    assert cost.per_candidate.dtype == torch.float64
    for m, candidates in enumerate(space.candidates):
        for j, price in enumerate(cost.per_candidate[0, m].tolist()):
            free = j >= len(candidates) or candidates[j] == "zero"
            assert (price == 0) == free
    raw = yaml.safe_load((reference_networks.data_folder() / "mobile_trim.yaml").read_text())
    second = "expanded_conv-input:56x56x24-output:56x56x24-expand:6-kernel:5-stride:1-idskip:1"
    assert cost.per_candidate[0, 1, 4] == raw[second]["mean"]
    fixed = [
        "Conv-input:224x224x3-output:112x112x32",
        "expanded_conv-input:112x112x32-output:112x112x16-expand:1-kernel:3-stride:1-idskip:0",
        "Conv_1-input:7x7x320-output:7x7x1280",
        "Logits-input:7x7x1280-output:1000",
    ]
    assert float(cost.fixed) == pytest.approx(sum(raw[key]["mean"] for key in fixed))


def test_mobilenet_v2_like_network(pixel: PublishedTable, space: Supernet) -> None:
    """All k3_e6 with MobileNetV2's depths 2, 3, 4, 3, 3, 1: the rest of the blocks left out.

    Published for MobileNetV2 itself (other widths in three stages): 75 ms.
    """
    depths = (2, 3, 4, 3, 3, 1)
    left_out = {
        f"blocks.{1 + 4 * stage + i}.branch"
        for stage, depth in enumerate(depths[:-1])
        for i in range(depth, 4)
    }
    choice = [
        names.index("zero" if name in left_out else "k3_e6")
        for name, names in zip(space.names, space.candidates, strict=True)
    ]
    latency = published_cost(space, pixel).of(choice)[0]
    print(f"MobileNetV2-like network on the {pixel.device}: {latency:.1f} ms")
    assert 75 < latency < 125


def test_what_a_table_cannot_price(pixel: PublishedTable) -> None:
    """The published networks are wider in the first stage, or of another head."""
    for given_settings, key in (
        ({"widths": [32, 40, 80, 96, 192, 320]}, "input:112x112x16-output:56x56x32"),
        ({"head": 640}, "Conv_1-input:7x7x320-output:7x7x640"),
    ):
        with torch.device("meta"):
            supernet = build_supernet("mobile", given_settings)
        with pytest.raises(MissingEntry) as error:
            published_cost(supernet, pixel)
        message = str(error.value)
        assert key in message and "Pixel 1" in message and "nearest: " in message
    with torch.device("meta"):
        macro = build_supernet("macro")
    with pytest.raises(MeasurementError, match="prices the space mobile, not macro"):
        published_cost(macro, pixel)


@pytest.mark.parametrize("size", [160, 176, 192, 208, 224])
def test_note10_counts_channels(size: int) -> None:
    table = read_published_table(
        reference_networks.data_folder() / f"note10_{size}_lookup_table.yaml"
    )
    assert table.device == "Samsung Note10" and table.channels
    block = f"{size // 2}x{size // 2}x24-output:{size // 4}x{size // 4}x32-expand:144"
    assert table[f"expanded_conv-input:{block}-kernel:5-stride:2-idskip:0-se:0-hs:0"] > 0
    settings = {"input_shape": [3, size, size], "stem": 24, "first": 16}
    with torch.device("meta"):
        supernet = build_supernet("mobile", settings)
    with pytest.raises(MissingEntry, match=r"expand:24-kernel:3-stride:1-idskip:0-se:0-hs:0"):
        published_cost(supernet, table)


ENTRY = {"count": 3, "mean": 1.5, "var": 0.1}
BLOCK = "expanded_conv-input:7x7x8-output:7x7x8-expand:3-kernel:3-stride:1-idskip:1"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "the value is null; it must be a mapping"),
        ({}, "must all end in"),
        ({"Conv": ENTRY}, "key 'Conv' is not"),
        ({1: ENTRY}, "key '1' is not"),
        ({"Conv-input:1x1x1-output:1x1x1": ENTRY}, "must all end in"),
        ({BLOCK: ENTRY, f"{BLOCK}-se:0-hs:0": {**ENTRY}}, "must all end in"),
        ({BLOCK: {**ENTRY, "mean": -1.0}}, ".mean is -1.0; it must be a number, above 0"),
        ({BLOCK: {**ENTRY, "mean": float("nan")}}, ".mean is nan; it must be a number, above 0"),
        ({BLOCK: {**ENTRY, "mean": True}}, ".mean is true; it must be a number, above 0"),
        ({BLOCK: {**ENTRY, "unit": "s"}}, "-idskip:1.unit'; did you mean count?"),
        ({BLOCK: {"mean": 1.0}}, ".count is missing"),
        ({BLOCK: {**ENTRY, "std": 1.0, "var": 1.0}}, "must have var or std"),
        ({BLOCK: 3.0}, " is 3.0; it must be a group of named values"),
    ],
)
def test_not_a_table(data: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(MeasurementError) as error:
        read_published_table(path)
    assert says in str(error.value) and str(path) in str(error.value)


@examples(60)
@given(text=st.text(max_size=30) | st.sampled_from(["!!timestamp x", "[" * 5000, "a: *b", "!!int"]))
def test_any_text_is_a_user_error(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="ignore")
    with pytest.raises(MeasurementError):
        read_published_table(path)
