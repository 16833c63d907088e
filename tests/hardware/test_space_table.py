"""A space's table from Python, as the verb makes it."""

from __future__ import annotations

from pathlib import Path

import pytest

import proxylessnas
from proxylessnas.config import MeasureSettings
from proxylessnas.errors import ConfigError
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.hardware.table import LatencyTable

SETTINGS = MeasureSettings(rounds=1, network_rounds=2, networks=4, validation=3, runs=1)
SIZES = {"widths": [8], "depths": [3], "stem": 8, "head": 16}


def test_a_space_is_measured_and_validated(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    measured = proxylessnas.measure_space(
        "macro", SIZES, image_size=16, runtime=FakeRuntime(), settings=SETTINGS, path=path
    )
    assert set(measured.keys) == set(measured.table.entries)
    assert len(measured.networks) == 7
    assert measured.table.validation is not None and measured.table.validation["networks"] == 3
    latencies = [n.measurement.median_ms for n in measured.networks]
    low, high = measured.range_ms
    assert low == pytest.approx(min(latencies), rel=0.05)
    assert high == pytest.approx(max(latencies), rel=0.05)
    assert LatencyTable.load(path).to_json() == measured.table.to_json()
    with pytest.raises(ConfigError, match="give one"):
        proxylessnas.measure_space(
            "macro", {"input_shape": [3, 9, 9]}, image_size=8, runtime=FakeRuntime()
        )
