"""The command line: what it answers, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import yaml
from PIL import Image
from tiny_run import TINY_RUN, assert_same_run

from proxylessnas.cli.main import VERBS, main


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr of a command that exits with 2."""
    assert main(list(words)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from proxylessnas.cli.main import main; main(['--help']); "
        "sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0
    assert all(verb in result.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", ["run", "measure", "search", "derive", "train", "predict"])
def test_every_verb_explains_itself_without_torch(verb: str) -> None:
    code = (
        f"import sys; from proxylessnas.cli.main import main; main(['{verb}', '--help']); "
        "sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "directory" in result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["runn"], "did you mean run?"),
        (["run"], "--data is missing"),
        (["run", "--daata", "digits"], "--data"),
        (["run", "--data", "digits", "--search.epoch", "3"], "--search.epochs"),
        (["run", "--data", "digits", "--search.epochs", "many"], "search.epochs"),
        (
            ["run", "--data", "digits", "--search.batch-size", "-1"],
            "it must be a whole number, at least 1",
        ),
        (["run", "--data", "digits", "--target-latency", "12"], "12ms"),
        (["run", "--data", "digits", "--budget", "soon"], "60m"),
        (["run", "--data", "digits", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["search", "--out", "nowhere"], "holds no run"),
        (["predict", "nowhere", "x.png"], "holds no trained network"),
        (["run", "--resume", "--out=nowhere"], "nowhere holds no run to go on with"),
        (["run", "--limit=macs=1M", "--limit=macs=2M"], "--limit macs is given twice"),
    ],
)
def test_wrong_input_gets_one_clear_line(
    capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert expected in fails(capsys, *words)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--data=./no/such/folder", "no/such/folder"),
        ("--space=mobil", "did you mean mobile?"),
        ("--space-settings={width: [8]}", "did you mean widths"),
        ("--runtime=onnx", "onnxruntime"),
        ("--target-latency=0.0001ms", "reachable range"),
        ("--limit=macs=10", "reachable range"),
        ("--space=nowhere:factory", "nowhere"),
    ],
)
def test_an_impossible_run_is_refused_before_the_search(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str, expected: str
) -> None:
    out = tmp_path / "run"
    assert expected in fails(capsys, "run", *TINY_RUN, option, f"--out={out}")
    assert not (out / "stages" / "search.json").exists()
    # MACs are counted, so that nothing is measured, nor left, for a limit that none can keep.
    assert "macs" not in option or not out.exists()


def test_scores_beside_figures_of_untrained_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage that was killed is done again to the same scores; trained weights are no use."""
    out = tmp_path / "run"
    asked = [*TINY_RUN, "--derive.zero-cost=9"]
    assert main(["run", *asked, f"--out={out}"]) == 0
    record = out / "stages" / "derive.json"
    first = json.loads(record.read_text())
    assert first["score"] != -first["validation_loss"]
    assert main(["derive", str(out), "--latencies", "0.8x", "--quiet"]) == 0
    other = json.loads((out / "stages" / "derive-0.8x.json").read_text())
    assert other["score"] != -other["validation_loss"]
    few = ["derive", str(out), "--latencies", "0.9x", "--derive.zero-cost=2", "--quiet"]
    assert "at least 8" in fails(capsys, *few)
    record.unlink()
    assert main(["run", "--resume", f"--out={out}", "--quiet"]) == 0
    assert json.loads(record.read_text())["proposals"] == first["proposals"]
    words = fails(capsys, "run", *asked, "--pretrained=efficientnet_lite0", "--space=inverted")
    assert "derive.zero_cost is 9" in words and "trained weights" in words


def test_an_unknown_key_in_a_config_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("search:\n  epoch: 3\n")
    line = fails(capsys, "run", "--config", str(config), "--data", "digits")
    assert "search.epoch" in line
    assert "epochs" in line


def test_code_that_a_file_names_is_not_imported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    config = tmp_path / "config.yaml"
    config.write_text("data: digits\nspace: evil:factory\n")
    line = fails(capsys, "run", "--config", str(config), f"--out={tmp_path / 'run'}")
    assert "--space evil:factory" in line


def test_an_empty_class_and_a_corrupt_image(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(folder / name / f"{i}.png")
    (folder / "bird").mkdir()
    words = ["run", *TINY_RUN, f"--data={folder}", f"--out={tmp_path / 'run'}"]
    assert "bird" in fails(capsys, *words)
    (folder / "bird").rmdir()
    (folder / "cat" / "0.png").write_bytes(b"not an image")
    assert "0.png" in fails(capsys, *words)


SUMMARY = {
    "target_latency_ms",
    "predicted_latency_ms",
    "measured_latency_ms",
    "latency_noise_pct",
    "test_accuracy",
    "parameters",
    "macs",
    "seconds",
    "seed",
    "versions",
}
FILES = {
    "config.yaml",
    "latency_table.json",
    "architecture.json",
    "architecture.svg",
    "metrics.jsonl",
    "weights.safetensors",
    "model.onnx",
    "summary.json",
}


def test_the_summary_says_everything(finished_run: Path) -> None:
    facts = json.loads((finished_run / "summary.json").read_text())
    assert not {key for key in SUMMARY if facts.get(key) is None}
    assert facts["predicted_latency_ms"] <= facts["target_latency_ms"]
    assert {"measure", "search", "derive", "train", "evaluate", "export"} <= set(facts["seconds"])


def test_baselines_are_trained_and_summarised(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["run", *TINY_RUN, "--baselines=true", f"--out={out}"]) == 0
    facts = json.loads((out / "summary.json").read_text())
    assert set(facts["baselines"]) == {"largest", "random"}
    assert facts["baselines"]["largest"]["macs"] > facts["macs"]


def test_the_run_directory_holds_what_it_promises(finished_run: Path) -> None:
    assert {p.name for p in finished_run.iterdir() if p.is_file() and p.stat().st_size} >= FILES
    architecture = json.loads((finished_run / "architecture.json").read_text())
    assert architecture["input"]["shape"] == [1, 8, 8]
    assert len(architecture["input"]["classes"]) == 10
    assert len(architecture["input"]["mean"]) == 1


def test_the_exported_file_says_how_images_become_inputs(finished_run: Path) -> None:
    model = onnx.load_model(finished_run / "model.onnx")
    metadata = {p.key: p.value for p in model.metadata_props}
    assert json.loads(metadata["shape"]) == [1, 8, 8]
    assert len(json.loads(metadata["classes"])) == 10
    assert {"mean", "std"} <= set(metadata)


def test_a_second_run_in_the_directory_is_refused(
    capsys: pytest.CaptureFixture[str], run_copy: Path
) -> None:
    assert "--resume" in fails(capsys, "run", *TINY_RUN, f"--out={run_copy}")
    other = ["run", "--resume", "--data=mnist5k", f"--out={run_copy}"]
    assert "holds another run: its data is digits" in fails(capsys, *other)
    other = ["run", "--resume", "--search.epochs=7", f"--out={run_copy}"]
    assert "holds another run" in fails(capsys, *other)


def test_a_finished_run_is_not_done_again(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in run_copy.glob("stages/*.json")}
    assert main(["run", "--resume", f"--out={run_copy}", "--quiet"]) == 0
    assert {p: p.stat().st_mtime_ns for p in run_copy.glob("stages/*.json")} == before
    assert "block by block" in capsys.readouterr().out


def test_the_config_of_a_run_repeats_it(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    config = str(finished_run / "config.yaml")
    assert main(["run", "--config", config, f"--out={out}", "--quiet"]) == 0
    assert_same_run(out, finished_run)


OWN_SPACE = """
from torch import nn
from proxylessnas import MixedOp

def net(input_shape, classes, width=4):
    def conv(channels):
        convs = {f"{k}x{k}": nn.Conv2d(channels, width, k, padding=k // 2) for k in (1, 3, 5)}
        return MixedOp(convs, choice="kernel")

    layers = [conv(input_shape[0]), nn.ReLU(), conv(width), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width * 64, classes))
"""


def test_a_space_of_ones_own_whose_positions_share_a_choice(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN_SPACE)
    own = ["--space=mine:net", "--space-settings={width: 6}", "--target-latency=0.99x"]
    out = tmp_path / "own"
    assert main(["run", *TINY_RUN, *own, f"--out={out}"]) == 0
    assert main(["run", "--resume", "--space=mine:net", f"--out={out}", "--quiet"]) == 0
    architecture = json.loads((out / "architecture.json").read_text())
    assert list(architecture["choices"]) == ["kernel"]
    (table,) = (json.loads(path.read_text()) for path in out.glob("*table*.json"))
    assert {tuple(n["choices"]) for n in table["networks"]} == {("kernel",)}
    assert len(table["entries"]) == 6  # three candidates, of one channel and of six
    summary = json.loads((out / "summary.json").read_text())
    assert [block["name"] for block in summary["blocks"]] == ["kernel", "everything else"]


def test_networks_for_other_limits_from_one_search(run_copy: Path) -> None:
    assert main(["derive", str(run_copy), "--latencies", "0.5x,0.9x", "--quiet"]) == 0
    small, large = (
        json.loads((run_copy / "stages" / f"derive-{limit}.json").read_text())
        for limit in ("0.5x", "0.9x")
    )
    assert small["predicted"]["latency"] <= small["limits"]["latency"] < large["limits"]["latency"]
    assert large["predicted"]["latency"] <= large["limits"]["latency"]


def test_settings_of_deriving_are_those_of_these_limits(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--derive.arch-steps", "3", "--derive.top-k", "2"]
    config = (run_copy / "config.yaml").read_text()
    assert main(["derive", str(run_copy), "--latencies", "0.7x", *own, "--quiet"]) == 0
    facts = json.loads((run_copy / "stages" / "derive-0.7x.json").read_text())
    assert len(facts["proposals"]) == 2
    assert (run_copy / "config.yaml").read_text() == config
    said = fails(capsys, "train", str(run_copy), "--derive.top-k", "2")
    assert "its derive.top_k is 3, not 2" in said


def test_a_limit_out_of_reach_is_refused_before_any_other_is_derived(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["derive", str(run_copy), "--latencies", "0.8x,0.001us", "--quiet"]) == 2
    assert "reachable range" in capsys.readouterr().err
    assert not (run_copy / "stages" / "derive-0.8x.json").exists()


def test_predict_names_classes(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "digit.png"
    Image.new("L", (8, 8), 128).save(image)
    assert main(["predict", str(finished_run), str(image), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["classes"]) == 3
    assert all(0 <= p <= 1 for p in answer["classes"].values())
    assert "missing.png" in fails(capsys, "predict", str(finished_run), "missing.png")


def test_a_column_of_the_table_is_a_cost_with_a_limit(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every layer that is measured costs 1 mJ, and one whole network 7."""
    table = json.loads((finished_run / "latency_table.json").read_text())
    network = table["networks"][0]
    whole = {"choices": network["choices"], "space": network["space"], "value": 7.0}
    entries = dict.fromkeys(table["entries"], 1.0)
    table["columns"] = {"energy_mj": {"unit": "mJ", "entries": entries, "networks": [whole]}}
    (tmp_path / "table.json").write_text(json.dumps(table))
    words = [*TINY_RUN, "--table=table.json", "--out=run"]
    refused = fails(capsys, "run", *words, "--limit=energy_mj=1")
    assert refused.count(" mJ") == 3 and "the reachable range is" in refused
    least = float(refused.split()[-5])
    for limit, expected in (
        ("power=1", "no cost 'power' to limit; there are latency, macs, parameters"),
        ("latency=5ms", "the latency has two limits"),
    ):
        assert expected in fails(capsys, "run", *words, f"--limit={limit}")
        assert not Path("run").exists()
    assert main(["run", *words, f"--limit=energy_mj={least}mJ", "--limit=macs=0.9x"]) == 0
    predicted = json.loads(Path("run/stages/derive.json").read_text())["predicted"]
    assert list(predicted) == ["latency", "macs", "parameters", "energy_mj"]
    assert predicted["energy_mj"] == least
    searched = Path("run/metrics.jsonl").read_text()
    assert '"expected_energy_mj"' in searched
    limits = json.loads(Path("run/summary.json").read_text())["limits"]
    assert limits["energy_mj"] == {"limit": least, "is": least, "unit": "mJ"}
    assert limits["macs"]["is"] <= limits["macs"]["limit"]
    assert f"energy_mj: {least:.4g} mJ, limit {least:.4g} mJ" in capsys.readouterr().out


def test_limits_of_a_run_may_change_until_it_is_searched(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One by one; that of the peak memory only until it is measured, and none in secret."""
    assert (
        main(["measure", *TINY_RUN, "--out=run", "--limit=macs=0.9x", "--limit=peak_memory=9"]) == 0
    )
    refused = fails(capsys, "search", "run", "--limit=peak_memory=8", "--quiet")
    assert "holds another run: its limits is" in refused
    assert main(["search", "run", "--limit=macs=0.8x", "--quiet"]) == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["limits"] == {"macs": "0.8x", "peak_memory": 9.0}
    assert "holds another run" in fails(capsys, "search", "run", "--limit=macs=0.7x", "--quiet")
    assert main(["search", "run", "--limit=macs=0.8x", "--quiet"]) == 0


def test_a_function_of_ones_own_is_a_cost_with_a_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code is named on the command line, as a space of one's own is."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "owncosts.py").write_text(
        "def layers(module, inputs):\n"
        "    return sum(hasattr(m, 'out_channels') for m in module.modules())\n"
    )
    words, named = [*TINY_RUN, "--out=run"], "--costs={layers: owncosts:layers}"
    for options, expected in (
        (["--costs={layers: owncosts:nothing}"], "has no function 'nothing'"),
        (["--costs={layers: nowhere:layers}"], "cannot import 'nowhere' of the cost"),
        (["--costs={macs: owncosts:layers}"], "a cost 'macs' already"),
        ([named, "--limit=layer=3"], "no cost 'layer' to limit; there are"),
    ):
        assert expected in fails(capsys, "run", *words, *options)
        assert not Path("run").exists()
    assert main(["run", *words, named, "--limit=layers=0.8x"]) == 0
    predicted = json.loads(Path("run/stages/derive.json").read_text())["predicted"]
    assert list(predicted)[-1] == "layers" and predicted["layers"] == int(predicted["layers"])
    assert "is code that a file names" in fails(capsys, "run", "--resume", "--out=run")
    assert main(["run", "--resume", "--out=run", named, "--quiet"]) == 0
