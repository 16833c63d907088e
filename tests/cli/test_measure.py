"""The verb `measure` apart from a run: tables, kits and networks by the command line."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from proxylessnas.cli.main import main
from proxylessnas.errors import MeasurementError
from proxylessnas.export.onnx import to_onnx
from proxylessnas.hardware import space_table
from proxylessnas.hardware.rounds import Rounds
from proxylessnas.hardware.runtimes import split
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.timing import Measurement, disturbance
from proxylessnas.io.console import Reporter
from proxylessnas.runs.begin import open_run
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.spaces import build_supernet

SIZES = {"widths": [8], "depths": [3], "stem": 8, "head": 16}
SPACE = ["--space=macro", f"--space-settings={json.dumps(SIZES)}", "--image-size=16"]
FEW = ["--measure.rounds=2", "--measure.network-rounds=3", "--measure.runs=2"]
FEW += ["--measure.networks=4", "--measure.validation=3", "--quiet"]
FIGURES = ("mean_abs_error_pct", "bias_pct", "worst_pct", "spearman", "kendall")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def measure(*words: str, runtime: str = "fake") -> int:
    return main(["measure", *SPACE, f"--runtime={runtime}", *FEW, *words])


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr of a command that exits with 2."""
    capsys.readouterr()
    assert main(list(words)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# --- a table ---


def test_a_table_is_validated_on_networks_it_has_not_seen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert measure("--out=t.json", "--plot=t.svg") == 0
    said = capsys.readouterr().out
    report = LatencyTable.load("t.json").validation
    assert report is not None and set(FIGURES) < set(report)
    assert set(report["macs_only"]) == set(FIGURES)
    assert report["networks"] == 3 and report["noise_floor_pct"] == pytest.approx(0, abs=1e-3)
    # The fake's latencies are sums but for a constant a call: the table knows better than MACs.
    assert report["mean_abs_error_pct"] < 0.3 * report["macs_only"]["mean_abs_error_pct"]
    for words in ("3 unseen networks", "this table", "measured again", "MACs alone", "Kendall"):
        assert words in said
    assert f"{report['macs_only']['worst_pct']:+.2f} %" in said
    assert "validation" in Path("t.svg").read_text()
    # The same command again measures nothing and says the same.
    before = Path("t.json").read_text()
    assert measure("--out=t.json") == 0
    assert Path("t.json").read_text() == before
    figures = next(line for line in said.splitlines() if "MACs alone" in line)
    assert figures in capsys.readouterr().out


def test_more_networks_are_measured_unless_it_is_said() -> None:
    words = ["--runtime=fake", "--measure.rounds=1", "--measure.network-rounds=1", "--quiet"]
    large = '--space-settings={"widths": [8, 16], "depths": [2, 2]}'
    assert main(["measure", *SPACE, large, *words, "--out=t.json"]) == 0
    table = LatencyTable.load("t.json")
    assert len(table.of_role("fit", "canary")) == len(table.of_role("validation")) == 20


def test_a_table_that_was_broken_off_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxylessnas.hardware.rounds.SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(space_table, "make", lambda name, **how: FakeRuntime(stops_after=90))
    assert measure("--out=t.json") == 130
    part = LatencyTable.load("t.json")
    assert part.entries and not part.complete
    whole = FakeRuntime()
    monkeypatch.setattr(space_table, "make", lambda name, **how: whole)
    assert measure("--out=t.json", "--resume") == 0
    table = LatencyTable.load("t.json")
    assert table.complete and table.validation is not None
    for key, m in part.entries.items():
        assert table.entries[key].samples_ms[: len(m.samples_ms)] == m.samples_ms
    on, whole.timed_runs = whole.timed_runs, 0
    assert measure("--out=all.json") == 0
    assert on < whole.timed_runs


@pytest.mark.parametrize("other", ["--measure.threads=2", "--measure.batch=2"])
def test_a_table_of_another_device_is_refused_unless_forced(
    capsys: pytest.CaptureFixture[str], other: str
) -> None:
    assert measure("--out=t.json") == 0
    before = Path("t.json").read_text()
    words = [*SPACE, "--runtime=fake", *FEW, other, "--out=t.json"]
    name = other[len("--measure.") :].partition("=")[0]
    assert f"holds a table with {name} 1, not 2" in fails(capsys, "measure", *words)
    assert Path("t.json").read_text() == before
    assert main(["measure", *words, "--force"]) == 0
    assert LatencyTable.load("t.json").device[name] == 2


def test_what_is_no_table_is_not_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.json").write_text('{"name": "mine"}')
    words = ["measure", *SPACE, "--runtime=fake", "--out=t.json", "--force"]
    assert "not a latency table" in fails(capsys, *words)
    assert "mine" in Path("t.json").read_text()


def test_tables_of_one_device_are_merged(capsys: pytest.CaptureFixture[str]) -> None:
    wide = json.dumps({**SIZES, "widths": [24]})
    assert measure("--out=a.json") == 0
    assert measure("--out=b.json", f"--space-settings={wide}") == 0
    assert main(["measure", "--merge", "a.json", "b.json", "--out=c.json"]) == 0
    a, b, c = (LatencyTable.load(f"{name}.json") for name in "abc")
    assert set(c.entries) == set(a.entries) | set(b.entries)
    assert len(c.networks) == len(a.networks) + len(b.networks)
    assert "exists" in fails(capsys, "measure", "--merge", "a.json", "b.json", "--out=c.json")
    assert measure("--out=d.json", "--measure.threads=2") == 0
    line = fails(capsys, "measure", "--merge", "a.json", "d.json", "--out=e.json")
    assert "tables of different threads cannot be merged" in line


# --- a kit ---


def bare_python(folder: Path) -> list[str]:
    """A Python that can import onnxruntime and numpy, and nothing else that is installed."""
    for name in ("numpy", "onnxruntime"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        package = Path(spec.origin).parent
        for part in (package, package.with_name(f"{name}.libs")):
            if part.exists():
                (folder / part.name).symlink_to(part)
    code = f"import runpy, sys; sys.path.insert(0, {str(folder)!r}); sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    return [sys.executable, "-I", "-S", "-c", code]


def test_a_kit_goes_to_a_bare_machine_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", *SPACE, *FEW, "--export-kit=kit.zip"]) == 0
    assert "python kit.zip" in capsys.readouterr().out
    device = tmp_path / "packages"
    device.mkdir()
    python = bare_python(device)
    absent = subprocess.run([*python[:-1], "import torch"], capture_output=True, text=True)
    assert "ModuleNotFoundError" in absent.stderr
    command = [*python, "kit.zip", "--out", "results.json", "--device", "a board"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert main(["measure", "--import-kit=results.json", "--out=t.json", "--plot=t.svg"]) == 0
    said = capsys.readouterr().out
    table = LatencyTable.load("t.json")
    assert table.complete and table.device["device"] == "a board"
    assert table.validation is not None and table.validation["networks"] == 3
    assert "3 unseen networks" in said and "a board" in said
    assert Path("t.svg").exists()
    line = fails(capsys, "measure", "--import-kit=results.json", "--out=t.json")
    assert "t.json exists" in line and "--force" in line
    # What was broken off on the device is no table yet.
    results = json.loads(Path("results.json").read_text())
    results["samples_ms"].popitem()
    Path("part.json").write_text(json.dumps(results))
    assert "not complete" in fails(capsys, "measure", "--import-kit=part.json", "--out=u.json")
    # A kit's results name code, which is not imported because a file says so.
    results = json.loads(Path("results.json").read_text())
    results["manifest"]["model"]["space"] = "evil:factory"
    Path("evil.json").write_text(json.dumps(results))
    line = fails(capsys, "measure", "--import-kit=evil.json", "--out=u.json")
    assert "--space evil:factory" in line


# --- networks ---


@pytest.fixture
def files() -> list[str]:
    """One network as architecture.json and as ONNX."""
    torch.manual_seed(0)
    supernet = build_supernet("macro", {**SIZES, "input_shape": [3, 16, 16]})
    Path("architecture.json").write_text(supernet.architecture([1, 2, 1]).to_json())
    network = supernet.derive([1, 2, 1]).eval()
    to_onnx(network, (torch.zeros(1, 3, 16, 16),), "net.onnx")
    return ["architecture.json", "net.onnx"]


def test_networks_are_measured_by_whatever_names_them(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*files, "proxyless_mobile", "--runtime=fake", "--quiet"]
    assert main(["measure", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line.split()[1:3] for line in lines[1:4]}
    assert shown["architecture.json"] == shown["net.onnx"]
    assert shown["proxyless_mobile"][1] == "ms" and float(shown["proxyless_mobile"][0]) > 10
    assert any("fake 1, f32, 1 thread, batch 1, fake device" in line for line in lines)


def test_a_file_on_its_own_runtime(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--measure.network-rounds=2", "--measure.runs=1", "--quiet"]
    assert main(["measure", "net.onnx", *words]) == 0
    assert "onnxruntime" in capsys.readouterr().out
    Path("x.tflite").write_bytes(b"nothing")
    line = fails(capsys, "measure", "x.tflite", "--runtime=onnxruntime")
    assert "onnxruntime measures .onnx files, not x.tflite" in line


def test_the_zoo_on_runtimes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "--measure", "--runtime=fake"]) == 0
    said = capsys.readouterr().out
    assert all(f"proxyless_{kind}" in said for kind in ("gpu", "cpu", "mobile"))
    assert main(["zoo", "mobilenet_v2", "proxyless_cifar", "--measure", "--runtime=fake"]) == 0
    said = capsys.readouterr().out
    assert "mobilenet_v2" in said and "proxyless_cifar" in said
    assert "only be measured" in fails(capsys, "zoo", "mobilenet_v2", "proxyless_cpu")
    assert "--draw is for one" in fails(capsys, "zoo", "--measure", "--draw=x.svg")
    assert "did you mean proxyless_cpu" in fails(capsys, "zoo", "proxyless_cp", "--measure")
    assert "onnxruntime?" in fails(capsys, "zoo", "--measure", "--runtime=fake,onnxrutime")


def test_a_list_of_runtimes() -> None:
    assert split("onnxruntime, openvino:bf16,litert") == ["onnxruntime", "openvino:bf16", "litert"]
    assert split("torch:compile,channels_last,litert") == ["torch:compile,channels_last", "litert"]
    assert split("litert,litert,nothing") == ["litert", "nothing"]
    assert split("") == []


# --- what is refused, and what is said ---


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "--out table.json"),
        (["proxyless_cpuu"], "did you mean proxyless_cpu"),
        (["a", "b"], "one directory"),
        (["--out=t.json", "--data=digits"], "--data has no meaning with --out table.json"),
        (["--out=t.json", "--search.epochs=3"], "--search has no meaning"),
        (["--out=nowhere/t.json"], "there is no directory nowhere"),
        (["--out=t.json", "--plot=t.txt"], ".svg"),
        (["--out=t.json", "--space=mobil"], "did you mean mobile?"),
        (["--out=t.json", "--image-size=8", "--space-settings={input_shape: [3, 9, 9]}"], "one"),
        (["--out=t.json", "--runtime=onnx"], "onnxruntime"),
        (
            ["--out=t.json", "--measure.networks=2"],
            "measure.networks is 2; it must be a whole number, at least 3",
        ),
        (["--data=digits", "--out=runs/x", "--plot=t.svg"], "--plot goes with"),
        (["proxyless_cpu", "--plot=t.svg"], "--plot has no meaning with a network"),
        (["proxyless_cpu", "--out=t.json"], "--out has no meaning with a network"),
        (["none.json"], "none.json"),
        (["--import-kit=r.json"], "needs --out table.json"),
        (["--import-kit=r.json", "--out=t.json"], "cannot read r.json"),
        (["--import-kit=r.json", "--out=t.json", "--runtime=torch"], "--runtime has no meaning"),
        (["--export-kit=k.zip", "--out=t.json"], "--out has no meaning with --export-kit"),
        (["--export-kit=k.zip", "--runtime=torch"], "litert, onnxruntime"),
        (["--merge", "a.json"], "needs --out table.json"),
        (["--merge", "a.json", "--out=t.json"], "cannot read a.json"),
    ],
)
def test_what_does_not_go_together_gets_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], expected: str
) -> None:
    assert expected in fails(capsys, "measure", *words)
    assert list(tmp_path.iterdir()) == []


def test_other_load_is_noticed() -> None:
    def seen(**environment: float) -> Measurement:
        return Measurement(samples_ms=(1.0,), environment=environment)

    assert disturbance([]) == disturbance([seen(other_load_cores=0.1)]) == ""
    busy = [seen(other_load_cores=0.1), seen(other_load_cores=1.46, canary_drift_pct=-8.4)]
    words = disturbance(busy)
    assert words == "other programs kept 1.5 cores busy and the canary's latency changed by -8 %"
    assert disturbance([seen(throttled=0)]) == ""
    assert disturbance([seen(throttled=12)]) == "the processor throttled 12 times"


@pytest.mark.parametrize(("threads", "cores", "told"), [(2, 2, False), (64, 2, True)])
def test_more_threads_than_cores_are_said(
    monkeypatch: pytest.MonkeyPatch, threads: int, cores: int, told: bool
) -> None:
    monkeypatch.setattr("proxylessnas.hardware.rounds.usable_cpus", lambda: cores)
    rounds = Rounds({}, {}, runs=1, warmup=0, seed=0, threads=threads)
    rounds.run()
    words = disturbance([Measurement(samples_ms=(1.0,), environment=rounds.environment)])
    assert ("64 threads shared 2 cores" in words) == told


# --- the stage of a run ---


def test_a_run_validates_its_table_where_it_is_asked_and_forces_it(tmp_path: Path) -> None:
    sizes = f"--space-settings={json.dumps(SIZES)}"
    words = ["--data=digits", "--space=macro", sizes, "--runtime=fake", *FEW]
    words += ["--loading.limit=200", "--machine.memory-format=contiguous", "--machine.threads=1"]
    assert main(["measure", "run", *words]) == 0
    table = LatencyTable.load("run/latency_table.json")
    record = json.loads(Path("run/stages/measure.json").read_text())
    assert table.validation is not None
    assert record["validation"]["spearman"] == table.validation["spearman"]
    assert main(["measure", "run", "--quiet"]) == 0  # done already: the table is as recorded
    other = table.to_json().replace('"fake device"', '"another device"')
    Path("run/latency_table.json").write_text(other)

    def again(force: bool) -> LatencyTable:
        reporter = Reporter(quiet=True)
        directory = RunDirectory(Path("run"))
        table = open_run(directory, {}, resume=True, reporter=reporter, force=force).table
        assert table is not None
        return table

    with pytest.raises(MeasurementError, match=r"'another device', not .* --force"):
        again(False)
    with pytest.warns(UserWarning, match="another device"):
        assert again(True).device["device"] == "another device"


def test_a_brought_table_of_another_batch_is_refused_unless_forced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert measure("--out=t.json", "--image-size=8", f"--space-settings={json.dumps(SIZES)}") == 0
    words = ["measure", "--data=digits", "--space=macro", "--table=t.json", "--out=run", *FEW]
    line = fails(capsys, *words, "--loading.limit=200", "--measure.batch=4")
    assert "batch 1, not 4" in line and "--force" in line
