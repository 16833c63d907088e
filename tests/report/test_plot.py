"""The scatter of predicted and measured latency."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from proxylessnas.config import MeasureSettings
from proxylessnas.errors import ConfigError, MissingDependency
from proxylessnas.hardware.costs import latency_costs
from proxylessnas.hardware.measure import measure_table
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.hardware.trace import trace
from proxylessnas.report.plot import FORMATS, Point, check_plot, plot, points
from proxylessnas.spaces import build_supernet

SETTINGS = MeasureSettings(rounds=1, network_rounds=3, networks=4, validation=3, runs=1, warmup=0)
SVG = "{http://www.w3.org/2000/svg}"


def test_every_whole_network_is_a_point(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    supernet = build_supernet("macro", {"widths": [8], "depths": [3]})
    inputs = (torch.zeros(1, 3, 32, 32),)
    table = measure_table(supernet, FakeRuntime(noise=0.02), inputs, SETTINGS, seed=0)
    facts = points(latency_costs(supernet, trace(supernet, inputs), table), supernet, table)
    plot(facts, "fake", tmp_path / "scatter.svg")
    drawn = (tmp_path / "scatter.svg").read_text()
    groups = {g.get("id"): g for g in ElementTree.fromstring(drawn).iter(f"{SVG}g")}
    shown = {role: len(list(groups[role].iter(f"{SVG}use"))) for role in ("fit", "validation")}
    assert shown == {"fit": 3, "validation": 3}
    assert len(facts) == 7 and "canary" in groups
    plot(facts, "fake", tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn


@pytest.mark.parametrize("scale", [0.0, 1e-3, 12345.0])
@pytest.mark.parametrize("suffix", FORMATS)
def test_any_range_draws(scale: float, suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    facts = [
        Point(predicted_ms=v * scale, measured_ms=v * scale or 1, spread_ms=0.0, role="fit")
        for v in (1.0, 1.5, 2.0)
    ]
    for shown in (facts, []):
        plot(shown, "a < b, 3 $ and $ more", path := tmp_path / f"plot{suffix}")
        assert path.stat().st_size > 1000


def test_what_cannot_be_drawn_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"\.svg, \.png, \.pdf"):
        check_plot("plot.txt")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(MissingDependency, match=r"pip install 'proxylessnas\[plots\]'"):
        check_plot("plot.svg")
