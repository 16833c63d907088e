"""The scatter of predicted and measured latency."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from proxylessnas.config import MeasureSettings
from proxylessnas.hardware.cost import latency_cost
from proxylessnas.hardware.measure import measure_table
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.hardware.trace import trace
from proxylessnas.report.plot import Point, plot, points, svg
from proxylessnas.spaces import build_supernet

SETTINGS = MeasureSettings(rounds=1, network_rounds=3, networks=4, validation=3, runs=1, warmup=0)


def test_every_whole_network_is_a_point(tmp_path: Path) -> None:
    supernet = build_supernet("macro", {"widths": [8], "depths": [3]})
    inputs = (torch.zeros(1, 3, 32, 32),)
    table = measure_table(supernet, FakeRuntime(noise=0.02), inputs, SETTINGS, seed=0)
    cost = latency_cost(supernet, trace(supernet, inputs), table)
    facts = points(cost, supernet, table)
    assert len(facts) == 7
    assert sorted({p.role for p in facts}) == ["canary", "fit", "validation"]
    plot(cost, supernet, table, tmp_path / "scatter.svg")
    root = ElementTree.fromstring((tmp_path / "scatter.svg").read_text())
    titles = [e.text or "" for e in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 7 and all("measured" in t for t in titles)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.3, 7.0, 12345.0])
def test_any_range_draws(scale: float) -> None:
    facts = [
        Point(predicted_ms=v * scale, measured_ms=v * scale or 1, spread_ms=0.0, role="fit", macs=1)
        for v in (1.0, 1.5, 2.0)
    ]
    text = svg(facts, "a < b")
    ElementTree.fromstring(text)
    assert "a &lt; b" in text
    ElementTree.fromstring(svg([], "nothing"))
