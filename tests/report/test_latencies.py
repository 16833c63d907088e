"""Networks' latencies now, from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import proxylessnas
from proxylessnas.config import MeasureSettings
from proxylessnas.errors import ArchitectureError
from proxylessnas.export.onnx import to_onnx
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.report.latencies import NamedNetwork, default_runtime

SETTINGS = MeasureSettings(network_rounds=2, runs=1)


def test_words_modules_and_files_are_measured_together(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    path = tmp_path / "net.onnx"
    to_onnx(network, (torch.zeros(1, 3, 8, 8),), path)
    mine = NamedNetwork(name="mine", network=network, input_shape=(3, 8, 8))
    runtime = FakeRuntime()
    results = proxylessnas.measure_latencies([str(path), "proxyless_cpu", mine], runtime, SETTINGS)
    assert set(results) == {str(path), "proxyless_cpu", "mine"}
    assert results["mine"].raw_ms == pytest.approx(results[str(path)].raw_ms)
    assert results["proxyless_cpu"].raw_ms > 10 * results["mine"].raw_ms
    with pytest.raises(ArchitectureError, match="did you mean proxyless_cpu"):
        proxylessnas.measure_latencies(["proxyless_cpuu"], runtime, SETTINGS)


def test_files_of_litert_are_measured_on_litert() -> None:
    tflite, onnx = (NamedNetwork(name=n, network=Path(n)) for n in ("a.tflite", "a.onnx"))
    assert default_runtime([tflite, tflite]) == "litert"
    assert default_runtime([tflite, onnx]) == default_runtime([onnx]) == "onnxruntime"
