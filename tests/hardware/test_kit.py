"""A kit: packed here, run as a zip by a bare Python, brought back as a table."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from proxylessnas.config import MeasureSettings
from proxylessnas.core.supernet import MixedOp, Supernet
from proxylessnas.errors import ExportError, MeasurementError
from proxylessnas.export.coreml import zipped_coreml
from proxylessnas.export.precision import is_quantised
from proxylessnas.hardware.costs import latency_costs
from proxylessnas.hardware.kit import CARRIED, export_kit
from proxylessnas.hardware.kit_results import import_kit
from proxylessnas.hardware.trace import trace
from proxylessnas.spaces import build_supernet

SETTINGS = MeasureSettings(rounds=2, network_rounds=3, networks=3, validation=1, runs=1, warmup=0)
INPUTS = (torch.zeros(1, 3, 16, 16),)

# Runs the kit as `python kit.zip` does, where no torch and nothing of the package but the files
# that the kit carries can be imported.
BARE = """
import runpy, sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "scipy", "rich"):
            raise ModuleNotFoundError("not on the device: " + name)
sys.meta_path.insert(0, Nothing())
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    strangers = [m for n, m in sys.modules.items() if n.startswith("proxylessnas")]
    assert strangers and all(m.__file__.startswith(sys.argv[0]) for m in strangers)
"""


def small() -> Supernet:
    sizes = {"widths": [8], "depths": [3], "input_shape": [3, 16, 16]}
    return build_supernet("macro", sizes)


def run(kit: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BARE, str(kit), "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=kit.parent, timeout=120)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kit") / "kit.zip"
    export_kit(small(), INPUTS, SETTINGS, path, seed=0)
    return path


@pytest.fixture(scope="module")
def results(kit: Path) -> Path:
    out = kit.parent / "results.json"
    done = run(kit, out, "--device", "a board")
    assert done.returncode == 0, done.stderr
    assert "--import-kit" in done.stdout
    return out


def test_a_kit_measures_without_us_and_comes_back_as_a_table(results: Path) -> None:
    table = import_kit(results).table
    supernet = small()
    found = trace(supernet, INPUTS)
    assert table.complete
    assert set(table.entries) == set(found.units)
    assert table.device["device"] == "a board" and table.device["runtime"] == "onnxruntime"
    assert [n.role for n in table.networks].count("canary") == 1
    assert all(len(m.samples_ms) == 2 for m in table.entries.values())
    assert all(len(n.measurement.samples_ms) == 3 for n in table.networks)
    # It prices the supernet it was made of, built again.
    assert latency_costs(supernet, found, table).fit is not None


FLUSHED = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from proxylessnas.hardware.kit_main import load, read
manifest = json.loads(read(sys.argv[1], "manifest.json"))
tiny, one = np.full(4, 1e-40, np.float32), np.ones(4, np.float32)
assert (tiny * one).any()
load(sys.argv[1], manifest, manifest["canary"])()
assert not (tiny * one).any(), "denormals are not flushed"
"""


def test_a_kit_flushes_denormals_on_the_calling_thread_too(kit: Path) -> None:
    command = [sys.executable, "-c", FLUSHED, str(kit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_kit_goes_on_after_a_break(kit: Path, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "part.json"
    whole = json.loads(results.read_text())
    kept = {k: v[:1] for k, v in whole["samples_ms"].items()}
    kept.popitem()
    out.write_text(json.dumps({**whole, "samples_ms": kept}))
    assert not import_kit(out).table.complete
    assert run(kit, out).returncode == 0
    assert import_kit(out).table.complete
    again = json.loads(out.read_text())["samples_ms"]
    assert all(again[k][:1] == v for k, v in kept.items())
    assert "complete" in run(kit, out).stdout


def test_results_of_another_kit_are_not_gone_on_with(kit: Path, tmp_path: Path) -> None:
    out = tmp_path / "other.json"
    out.write_text(json.dumps({"schema": 1, "manifest": {}, "samples_ms": {}}))
    done = run(kit, out)
    assert done.returncode != 0 and "another kit" in done.stderr


def test_what_is_in_a_kit(kit: Path) -> None:
    with zipfile.ZipFile(kit) as archive:
        names = set(archive.namelist())
        manifest = json.loads(archive.read("manifest.json"))
        readme = archive.read("README.txt").decode()
    assert {"__main__.py", "README.txt", *(f"proxylessnas/{file}" for file in CARRIED)} <= names
    assert {f["file"] for f in manifest["files"].values()} <= names
    assert "python kit.zip" in readme and "adb" not in readme
    assert [p.name for p in kit.parent.iterdir() if p.name.startswith(".")] == []


def test_only_some_runtimes_have_kits(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="coreml, litert, onnxruntime, tensorrt"):
        export_kit(small(), INPUTS, SETTINGS, tmp_path / "k.zip", seed=0, runtime="torch")


def test_what_cannot_be_packed_is_named(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.svd(x)[0]

    supernet = Supernet(nn.Sequential(MixedOp([Odd(), nn.Linear(3, 3)])))
    with pytest.raises(ExportError, match=r"candidate '0' of '0' .Odd"):
        export_kit(supernet, (torch.randn(3, 3),), SETTINGS, tmp_path / "k.zip", seed=0)
    assert list(tmp_path.iterdir()) == []


BROKEN: dict[str, Any] = {
    "schema": {"schema": 7},
    "samples of nothing": {"samples_ms": {"x": [1.0]}},
    "no list": {"samples_ms": 3},
    "device": {"device": {"threads": None}},
    "manifest": {"manifest": {"schema": 1}},
    "environment": {"environment": []},
}


@pytest.mark.parametrize("how", BROKEN)
def test_malformed_results_are_one_line(how: str, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "bad.json"
    out.write_text(json.dumps({**json.loads(results.read_text()), **BROKEN[how]}))
    with pytest.raises(MeasurementError, match="not a kit's results"):
        import_kit(out)


def test_malformed_samples_and_files(results: Path, tmp_path: Path) -> None:
    whole = json.loads(results.read_text())
    key = next(iter(whole["samples_ms"]))
    for bad in ([0], [-1.0], ["1"], [True], [1e300], [10**400], 5):
        out = tmp_path / "bad.json"
        out.write_text(json.dumps({**whole, "samples_ms": {key: bad}}))
        with pytest.raises(MeasurementError, match="not a kit's results"):
            import_kit(out)
    with pytest.raises(MeasurementError, match="cannot read"):
        import_kit(tmp_path / "none.json")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(MeasurementError, match="not JSON"):
        import_kit(tmp_path / "text")


SHAPES = {
    "large": "1x3x99999x99999",
    "thousands of digits": "1x" + "9" * 5000,
    "empty": "1x0x4x4",
    "large together": ", ".join(["1x3x4096x4096"] * 9),
    "endless": "1" + "x1" * 600,
}


@pytest.mark.parametrize("how", SHAPES)
def test_input_shapes_that_cannot_be_are_refused(how: str, results: Path, tmp_path: Path) -> None:
    whole = json.loads(results.read_text())
    whole["manifest"]["input_shapes"] = SHAPES[how]
    out = tmp_path / "bad.json"
    out.write_text(json.dumps(whole))
    with pytest.raises(
        MeasurementError, match=r"not a kit's results: manifest\.input_shapes: the"
    ) as caught:
        import_kit(out)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_macs_that_cannot_be_are_refused(results: Path, tmp_path: Path) -> None:
    whole = json.loads(results.read_text())
    whole["manifest"]["networks"][0]["macs"] = 10**400
    out = tmp_path / "bad.json"
    out.write_text(json.dumps(whole))
    with pytest.raises(
        MeasurementError, match=r"manifest.networks\[0\].macs is .* a whole number, at least 0"
    ):
        import_kit(out)


# --- Android ---

TIMINGS = """INFO: The input model file size (MB): 0.01
INFO: count=2 first=900 curr=800 min=800 max=900 avg=850 std=50 p5=800 median=850 p95=900
INFO: count=6 first=700 curr=650 min=640 max=700 avg={avg} std=9 p5=640 median={median} p95=700
INFO: Inference timings in us: Init: 123, First inference: 900, Warmup (avg): 850, \
Inference (avg): {avg}
"""


def android_log(manifest: dict[str, Any], timings: str = TIMINGS) -> str:
    lines = [
        f"### manifest {json.dumps(manifest)}",
        "### device Maker Phone 9",
        "### system Android 16",
        "### date 2026-01-02T03:04:05+00:00",
    ]
    for key, entry in manifest["files"].items():
        for _ in range(entry["visits"]):
            lines += [f"### visit {key}", timings.format(avg=670, median=660)]
    return "\n".join(lines)


def test_the_output_of_benchmark_model_becomes_a_table(kit: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(kit) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    log = tmp_path / "results.log"
    log.write_text(android_log(manifest))
    table = import_kit(log).table
    assert table.complete
    assert {m.median_ms for m in table.entries.values()} == {0.66}
    assert table.device["device"] == "Maker Phone 9"
    assert table.device["system"] == "Android 16"
    # From Windows, and two runs of the script in one file.
    log.write_bytes(log.read_text().replace("\n", "\r\n").encode("utf-16"))
    assert import_kit(log).table.entries.keys() == table.entries.keys()
    log.write_text(android_log(manifest) + "\n" + android_log(manifest))
    assert {len(m.samples_ms) for m in import_kit(log).table.entries.values()} == {4}
    log.write_text(android_log(manifest) + "\n" + android_log({**manifest, "precision": "int8"}))
    with pytest.raises(MeasurementError, match="the output of several kits"):
        import_kit(log)
    # An older benchmark_model prints no median: its mean is taken.
    older = "INFO: Inference timings in us: Init: 1, Inference (avg): {avg}"
    log.write_text(android_log(manifest, older))
    assert {m.median_ms for m in import_kit(log).table.entries.values()} == {0.67}
    log.write_text(android_log(manifest, "ERROR: Failed to initialize {median} {avg}"))
    with pytest.raises(MeasurementError, match="benchmark_model did not finish"):
        import_kit(log)
    log.write_text(android_log(manifest, "Inference (avg): 1.2.3 {median} {avg}"))
    with pytest.raises(MeasurementError, match=r"'1\.2\.3' of .* is no number"):
        import_kit(log)


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_a_litert_kit_has_the_android_script(precision: str, tmp_path: Path) -> None:
    for package in ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"):
        if importlib.util.find_spec(package) is None:
            pytest.skip("the extra litert is not installed")
    settings = MeasureSettings(rounds=1, network_rounds=1, networks=3, runs=1, warmup=0)
    path = tmp_path / "kit.zip"
    supernet = build_supernet("macro", {"widths": [8], "depths": [1], "head": 8})
    inputs, how = (torch.zeros(1, 3, 32, 32),), {"runtime": "litert", "precision": precision}
    export_kit(supernet, inputs, settings, path, seed=0, **how)
    with zipfile.ZipFile(path) as archive:
        script = archive.read("android.sh").decode()
        manifest = json.loads(archive.read("manifest.json"))
        assert "adb push" in archive.read("README.txt").decode()
    assert script.count("\nvisit '") == len(manifest["files"])
    assert "--num_threads=1" in script
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    with zipfile.ZipFile(path) as archive:
        files = [archive.read(entry["file"]) for entry in manifest["files"].values()]
    assert any(map(_has_int8, files)) == (precision == "int8")
    done = run(path, tmp_path / "results.json")
    assert done.returncode == 0, done.stderr
    table = import_kit(tmp_path / "results.json").table
    assert table.complete and table.device["precision"] == precision


def _has_int8(content: bytes) -> bool:
    from ai_edge_litert.interpreter import Interpreter

    (tensor, *_) = Interpreter(model_content=content).get_input_details()
    return tensor["dtype"].__name__ == "int8"


# --- a Mac ---

CORE_ML = """
import os
class MLModel:
    def __init__(self, path):
        assert os.path.isfile(os.path.join(path, "Manifest.json"))
    def predict(self, inputs):
        assert {a.shape for a in inputs.values()} and all(n.startswith("input") for n in inputs)
        return {}
"""


def fake_coreml(module: nn.Module, inputs: object, precision: str = "f32") -> bytes:
    """As coremltools writes it: a folder with a manifest, zipped."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("network.mlpackage/Manifest.json", json.dumps({"precision": precision}))
    return content.getvalue()


def test_a_kit_for_a_mac_runs_its_packages_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for coremltools, which runs networks on a Mac alone."""
    monkeypatch.setattr("proxylessnas.hardware.kit.zipped_coreml", fake_coreml)
    packed(tmp_path / "kit.zip", "coreml", "fp16")
    with zipfile.ZipFile(tmp_path / "kit.zip") as archive:
        assert "untested on a device" in archive.read("README.txt").decode()
    package = tmp_path / "coremltools"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("from coremltools import models")
    (package / "models/__init__.py").write_text(CORE_ML)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run(tmp_path / "kit.zip", tmp_path / "results.json", "--device", "MacBook")
    assert done.returncode == 0, done.stderr
    table = import_kit(tmp_path / "results.json").table
    assert table.complete and table.device["device"] == "MacBook"
    assert (table.device["runtime"], table.device["precision"]) == ("coreml", "fp16")
    with pytest.raises(MeasurementError, match="a kit for coreml is in f32 or fp16, not int8"):
        packed(tmp_path / "kit.zip", "coreml", "int8")


def test_a_zipped_package_of_core_ml() -> None:
    pytest.importorskip("coremltools", reason="the extra coreml is not installed")
    content = zipped_coreml(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), INPUTS, "fp16")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert "network.mlpackage/Manifest.json" in archive.namelist()


# --- int8, and TensorRT ---

FEW = MeasureSettings(rounds=1, network_rounds=1, networks=3, runs=1, warmup=0)
TINY = {"widths": [8], "depths": [1], "head": 8}
# As NVIDIA's documentation of trtexec shows its output.
TRTEXEC = """&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b30] # trtexec --loadEngine=e
[01/02/2026-03:04:05] [I] === Device Information ===
[01/02/2026-03:04:05] [I] Selected Device: Orin
[01/02/2026-03:04:05] [I] TensorRT version: 10.3.0
[01/02/2026-03:04:06] [I] === Performance summary ===
[01/02/2026-03:04:06] [I] Throughput: 1208.83 qps
[01/02/2026-03:04:06] [I] Latency: min = 0.82 ms, max = 1.07 ms, mean = 0.83 ms, median = 0.82 ms, \
percentile(90%) = 0.83 ms, percentile(95%) = 0.84 ms, percentile(99%) = 0.85 ms
[01/02/2026-03:04:06] [I] GPU Compute Time: min = 0.79 ms, max = 1.04 ms, mean = 0.81 ms, \
median = {median} ms, percentile(90%) = 0.82 ms
[01/02/2026-03:04:06] [I] === Explanations of the performance metrics ===
[01/02/2026-03:04:06] [I] GPU Compute Time: the GPU latency to execute the kernels for a query.
&&&& PASSED TensorRT.trtexec [TensorRT v100300] [b30]
"""


def packed(path: Path, runtime: str, precision: str) -> dict[str, Any]:
    supernet, inputs = build_supernet("macro", TINY), (torch.zeros(1, 3, 32, 32),)
    export_kit(supernet, inputs, FEW, path, seed=0, runtime=runtime, precision=precision)
    with zipfile.ZipFile(path) as archive:
        manifest: dict[str, Any] = json.loads(archive.read("manifest.json"))
    return manifest


def test_an_int8_kit_comes_back_as_an_int8_table(tmp_path: Path) -> None:
    manifest = packed(tmp_path / "kit.zip", "onnxruntime", "int8")
    with zipfile.ZipFile(tmp_path / "kit.zip") as archive:
        contents = [archive.read(entry["file"]) for entry in manifest["files"].values()]
    assert any(is_quantised(onnx.load_model_from_string(content)) for content in contents)
    done = run(tmp_path / "kit.zip", tmp_path / "results.json")
    assert done.returncode == 0, done.stderr
    table = import_kit(tmp_path / "results.json").table
    assert table.complete and table.device["precision"] == "int8"
    table.check_precision("int8")


def test_the_output_of_trtexec_becomes_a_table(tmp_path: Path) -> None:
    manifest = packed(tmp_path / "kit.zip", "tensorrt", "fp16")
    with zipfile.ZipFile(tmp_path / "kit.zip") as archive:
        script = archive.read("trtexec.sh").decode()
        assert "Untested on a device" in archive.read("README.txt").decode()
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    assert " --fp16 " in script and script.count("\nvisit '") == len(manifest["files"])
    log, lines = tmp_path / "results.log", [f"### manifest {json.dumps(manifest)}"]
    for i, key in enumerate(manifest["files"]):
        lines += [f"### visit {key}", TRTEXEC.format(median=0.5 + i)]
    log.write_text("\n".join([*lines[:1], "### system Linux 5.15", *lines[1:]]))
    table = import_kit(log).table
    assert table.complete and table.device["device"] == "Orin"
    assert (table.device["version"], table.device["precision"]) == ("10.3.0", "fp16")
    found = {k: m.median_ms for k, m in table.entries.items()}
    assert found == {k: 0.5 + i for i, k in enumerate(manifest["files"]) if k in found}
    log.write_text("\n".join(lines).replace("median =", "middle ="))
    with pytest.raises(MeasurementError, match="trtexec did not finish on"):
        import_kit(log)
    log.write_text(f"{lines[0]}\n### failed networks/0001.onnx\n")
    with pytest.raises(MeasurementError, match=r"not build an engine of 'networks/0001\.onnx"):
        import_kit(log)


def test_the_script_runs_trtexec_in_rounds(tmp_path: Path) -> None:
    """With a trtexec that prints what the documentation shows, and builds what it is asked for."""
    packed(tmp_path / "kit.zip", "tensorrt", "int8")
    with zipfile.ZipFile(tmp_path / "kit.zip") as archive:
        archive.extractall(tmp_path / "kit")
    trtexec = tmp_path / "trtexec"
    text = TRTEXEC.format(median=1.5)
    trtexec.write_text(
        '#!/bin/sh\nfor word; do case "$word" in --saveEngine=*) touch "${word#*=}";; '
        f"esac; done\ncat <<'END'\n{text}END\n"
    )
    trtexec.chmod(0o755)
    done = subprocess.run(
        ["sh", str(tmp_path / "kit/trtexec.sh")],
        env={**os.environ, "TRTEXEC": str(trtexec)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "results.log").write_text(done.stdout)
    table = import_kit(tmp_path / "results.log").table
    assert table.complete and {m.median_ms for m in table.entries.values()} == {1.5}
    trtexec.write_text("#!/bin/sh\nexit 1\n")  # engines of another kit are not this one's
    (tmp_path / "kit/engines/manifest.json").write_text("{}")
    words = ["sh", str(tmp_path / "kit/trtexec.sh")]
    environment = {**os.environ, "TRTEXEC": str(trtexec)}
    failed = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert failed.returncode == 1 and "### failed networks/" in failed.stdout


def test_a_kit_in_a_precision_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="a kit for onnxruntime is in f32 or int8, not fp16"):
        packed(tmp_path / "kit.zip", "onnxruntime", "fp16")
