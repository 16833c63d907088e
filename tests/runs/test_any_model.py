"""`run --model`: any model, taught the classes of photos and narrowed to a latency."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from killed import killed_before_record
from PIL import Image
from torch import nn

from proxylessnas.architecture import Architecture
from proxylessnas.cli.main import main
from proxylessnas.config import RunConfig
from proxylessnas.errors import SupernetError
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.io.console import Reporter
from proxylessnas.pretrained.any_model import load_model
from proxylessnas.pretrained.headed import for_gray, headed
from proxylessnas.runs.begin import problem_of
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.runs.within_budget import MODEL_FITS
from proxylessnas.session.session import Session
from proxylessnas.surgery.saved import network_of

WORDS = (
    *("--data=digits", "--image-size=16", "--runtime=fake", "--loading.limit=300", "--quiet"),
    *("--teach.epochs=2", "--train.epochs=1", "--machine.threads=1"),
    *("--measure.network-rounds=2", "--measure.runs=2", "--measure.warmup=1"),
)
MODEL = "--model=small_models:residual"
FILES = ("architecture.json", "weights.safetensors", "teacher.safetensors", "model.onnx")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "run"
    assert main(["run", *WORDS, MODEL, "--target-latency=0.8x", f"--out={out}"]) == 0
    return out


def test_the_summary_has_what_a_pretrained_run_has(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    keys = """data space runtime target_latency_ms predicted_latency_ms measured_latency_ms
        not_measured measured_latency_raw_ms canary_drift latency_noise_pct test_accuracy
        test_images training_accuracy parameters macs limits alpha_mean_entropy largest_network_ms
        export_largest_difference blocks seconds seed versions pretrained majority_accuracy
        linear_accuracy teacher_accuracy baselines found_ms paid verdict"""
    assert summary.keys() >= set(keys.split())
    assert summary["pretrained"] == "small_models:residual"
    assert summary["measured_latency_ms"] <= 1.02 * summary["target_latency_ms"]
    assert summary["target_latency_ms"] == pytest.approx(0.8 * summary["largest_network_ms"])
    assert summary["baselines"].keys() == {"teacher", "uniform"}
    uniform = summary["baselines"]["uniform"]["measured_latency_ms"]
    assert uniform <= 1.001 * summary["found_ms"]
    sizes = {n: row["parameters"] for n, row in summary["baselines"].items()}
    assert summary["parameters"] < sizes["teacher"] and sizes["uniform"] < sizes["teacher"]
    assert summary["teacher_accuracy"] > summary["majority_accuracy"] + 0.2
    assert (run / "model.onnx").stat().st_size > 1000


def test_the_stages_end_in_the_network_that_was_chosen(run: Path) -> None:
    directory = RunDirectory(run)
    problem = problem_of(directory.read_config(), Reporter(quiet=True), directory)
    architecture = json.loads((run / "architecture.json").read_text())
    assert architecture["space"] == "model" and len(architecture["input"]["classes"]) == 10
    chosen = json.loads((run / "choice.json").read_text())["proposals"][0]
    assert len(chosen["indices"]) == len(architecture["choices"])
    trained, _ = directory.load_tensors("weights.safetensors")
    inherited, _ = directory.load_tensors("inherited.safetensors")
    assert {n: t.shape for n, t in trained.items()} == {n: t.shape for n, t in inherited.items()}
    assert any(not torch.equal(t, inherited[n]) for n, t in trained.items())
    assert problem.training_task(directory.read_config()).distil_loss is not None


def test_killed_before_a_stage_is_recorded_and_resumed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    words = ["run", *WORDS, MODEL, f"--out={out}"]
    for count, stage in enumerate(("teach", "search", "train", "by-hand")):
        with killed_before_record(monkeypatch, stage):
            more = ["--resume"] if count else ["--target-latency=0.8x"]
            assert main([*words, *more]) == 130
    assert main([*words, "--resume"]) == 0
    for name in FILES:
        assert (out / name).read_bytes() == (run / name).read_bytes(), name


def test_its_settings_begin_the_same_run_again(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--config={run / 'config.yaml'}", MODEL, "--quiet", "--target-latency=0.01x"]
    assert main(["run", *words, f"--out={tmp_path / 'run'}"]) == 2
    assert "the reachable range is" in capsys.readouterr().err  # and nothing before


def test_blocks_cost_what_is_predicted(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    parts = sum(block["ms"] for block in summary["blocks"])
    assert parts == pytest.approx(summary["predicted_latency_ms"], rel=1e-6)


def test_further_limits_from_the_same_scores(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    words = ["derive", str(out), MODEL, "--quiet"]
    assert main([*words, "--latencies=0.9x, 0.6x"]) == 0
    records = {
        n: json.loads((out / f"stages/derive-{n}.json").read_text()) for n in ("0.9x", "0.6x")
    }
    for record in records.values():
        assert record["measured_ms"] <= record["limits"]["latency"] * (1 + 1e-9)
    assert records["0.6x"]["score"] < records["0.9x"]["score"]  # further from the teacher
    directory = RunDirectory(out)
    problem = problem_of(directory.read_config(), Reporter(quiet=True), directory)
    architecture = Architecture.from_json((out / "architecture-0.6x.json").read_text())
    tensors, _ = directory.load_tensors("inherited-0.6x.safetensors")
    network = network_of(
        problem.new_teacher().model,  # type: ignore[attr-defined]
        architecture.choices,
        architecture.settings["attributes"],
        tensors,
    )
    assert FakeRuntime().load(network, (torch.zeros(1, 1, 16, 16),)).timed(1) * 1e3 == (
        pytest.approx(records["0.6x"]["measured_ms"], rel=1e-6)
    )
    capsys.readouterr()
    for more, message in (
        (["--latencies=0.9x,0.01x"], "the reachable range is"),
        (["--latencies=0.9x", "--budget=3m"], "neither a budget nor settings"),
        (["--latencies=0.9x", "--derive.top-k=3"], "neither a budget nor settings"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err


def test_int8_is_scored_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network that is compared is the int8 file; its latency is the runtime's in int8."""
    from proxylessnas.runs import any_model

    scored, real = [], any_model.as_scored

    def counted(session: Any, network: nn.Module) -> Any:
        scored.append(session.is_int8)
        return real(session, network)

    monkeypatch.setattr(any_model, "as_scored", counted)
    out, words = tmp_path / "run", ["--precision=int8", "--quantise.images=20", "--baselines=false"]
    assert main(["run", *WORDS, *words, MODEL, "--target-latency=0.8x", f"--out={out}"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert len(scored) >= 5 and all(scored)
    assert (out / "model.int8.onnx").exists() and summary["int8"]["float_test_accuracy"] > 0.3
    assert summary["measured_latency_ms"] <= summary["target_latency_ms"] * (1 + 1e-9)
    table = json.loads((out / "latencies.json").read_text())
    network = load_model("small_models:residual").model
    float_ms = FakeRuntime().load(network, (torch.zeros(1, 1, 16, 16),)).timed(1) * 1e3
    assert table["model_ms"] < 0.6 * float_ms


def test_a_budget_is_divided_among_its_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", *(w for w in WORDS if "epochs" not in w), MODEL, "--target-latency=0.8x"]
    out = tmp_path / "run"
    assert main([*words, f"--out={out}", "--budget=1s"]) == 2
    assert "1s is too short" in capsys.readouterr().err and not out.exists()
    assert main([*words, f"--out={out}", "--budget=600m", "--baselines=false"]) == 0
    kept = json.loads((out / "budget.json").read_text())
    assert kept["fitted"] == ["measure", "teach", "candidates", "train"]
    config = RunDirectory(out).read_config()
    assert config.budget is None and 32 <= config.candidates.score_images <= 256


def test_a_short_budget_takes_away(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    config = RunConfig(model="small_models:residual", data="digits", image_size=16)
    problem: Any = problem_of(config, Reporter(quiet=True), directory)
    session: Any = Session(config, problem, directory, reporter=Reporter(quiet=True))
    session.runtime_object = FakeRuntime()
    speeds = {"step": 0.05, "image": 0.01, "crowd": 1.0}
    fitted = MODEL_FITS["measure"](session, 20.0, speeds).measure
    assert fitted.network_rounds < config.measure.network_rounds and fitted.networks > 8
    assert MODEL_FITS["candidates"](session, 60.0, speeds).candidates.score_images < 256
    assert MODEL_FITS["measure"](session, 1e6, speeds) == config


def test_the_image_size_is_chosen_too(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [w for w in WORDS if "image-size" not in w and "train" not in w]
    words += ["--image-size=12,16", "--baselines=false", "--train.epochs=2"]
    assert main(["run", *words, MODEL, "--target-latency=0.7x", f"--out={out}"]) == 0
    tried = json.loads((out / "sizes.json").read_text())["tried"]
    config, summary = (
        RunDirectory(out).read_config(),
        json.loads((out / "summary.json").read_text()),
    )
    best = min(tried, key=lambda size: tried[size]["loss"])
    assert tried.keys() == {"12", "16"} and config.image_size == int(best)
    assert config.train.learning_rate < 0.004  # of the road, not the default of from scratch
    assert summary["measured_latency_ms"] <= summary["target_latency_ms"] * (1 + 1e-9)


def test_predict_names_the_code_that_it_imports(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Image.new("L", (20, 20)).save(tmp_path / "black.png")
    image = str(tmp_path / "black.png")
    assert main(["predict", str(run), image]) == 2
    assert "--space small_models:residual" in capsys.readouterr().err
    assert main(["predict", str(run), image, "--space=small_models:residual"]) == 0
    assert "%" in capsys.readouterr().out
    assert main(["run", "--resume", f"--out={run}", "--quiet"]) == 2
    assert "--model small_models:residual" in capsys.readouterr().err


def test_weights_that_fit_the_classes_are_the_teacher(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The taught network of another run, as a file of weights; then with its classes shuffled."""
    tensors, _ = RunDirectory(run).load_tensors("teacher.safetensors")
    plain = {f"module.{n.removeprefix('model.')}": t for n, t in tensors.items()}
    torch.save({"state_dict": plain}, tmp_path / "taught.pth")
    words = [*WORDS[:4], *WORDS[5:], MODEL, "--target-latency=0.85x", "--baselines=false"]
    file = f"--weights={tmp_path / 'taught.pth'}"
    assert main(["run", *words, file, f"--out={tmp_path / 'one'}"]) == 0
    assert "knows these classes" in capsys.readouterr().err
    teacher, _ = RunDirectory(tmp_path / "one").load_tensors("teacher.safetensors")
    assert all(torch.equal(t, tensors[n]) for n, t in teacher.items())
    for name in ("module.9.weight", "module.9.bias"):
        plain[name] = plain[name].flip(0)
    torch.save(plain, tmp_path / "taught.pth")
    assert main(["run", *words, file, f"--out={tmp_path / 'other'}"]) == 0
    assert "in another order than yours; it is taught anew" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    "packed",
    [
        lambda s: {"model_state_dict": s, "optimizer": {"state": {}, "lr": 0.1}},
        lambda s: {"net": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {"best": {f"backbone._orig_mod.{k}": v for k, v in s.items()}, "acc": 0.9},
        lambda s: {"ema": {k: v + 1 for k, v in s.items()}, "model": {"state_dict": s}},
    ],
)
def test_weights_as_training_scripts_save_them(packed: Any, tmp_path: Path) -> None:
    state = small_models.residual().state_dict()
    torch.save(packed(state), tmp_path / "last.pth")
    loaded = load_model("small_models:residual", str(tmp_path / "last.pth")).model
    assert all(torch.equal(state[k], v) for k, v in loaded.state_dict().items())


def hostile(path: Path) -> Path:
    class Hostile:
        def __reduce__(self) -> Any:
            return (Path.touch, (path.with_name("ran"),))

    path.write_bytes(pickle.dumps({"weight": Hostile()}))
    return path


def other(path: Path) -> Path:
    state = small_models.residual().state_dict()
    state["stem.weight"] = state.pop("0.weight")
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model=resnet18"], "write timm:resnet18, torchvision:resnet18, or module:factory"),
        (["--model=torchvision:resnet81"], "no model 'resnet81' .*; did you mean resnet18"),
        (["--model=torchvision:fcn_resnet50"], "no model 'fcn_resnet50'"),
        (["--model=small_model:residual"], "cannot import 'small_model' .* No module named"),
        (["--model=small_models:resdual"], "no function 'resdual'; did you mean residual"),
        (["--model=small_models:number"], "returned int, not a torch module"),
        (["--model=small_models:with_argument"], "cannot be called without arguments"),
        (["--model=small_models:pooled"], "does not end in a linear layer"),
        (["--model=small_models:pair"], "returns .*float32.* not logits"),
        (["--model=small_models:branch"], "cannot be read as a graph of operations"),
        (["--model=small_models:only_linear"], "nothing to narrow in Sequential"),
        (["--model=small_models:residual", "--weights=nowhere.pth"], "cannot read the weights"),
        (["--model=small_models:residual", "--weights=OTHER"], "0.weight .* is missing .* stem.we"),
        (["--model=small_models:residual", "--weights=HOSTILE"], "may run code|is refused"),
        (["--model=small_models:residual", "--limit=macs=1M"], "limits is .*, which --model"),
        (["--model=small_models:residual", "--table=x.json"], "table is x.json, which --model"),
        (
            ["--model=small_models:residual", "--search.epochs=3"],
            "search.epochs is 3.*scores alone",
        ),
        (["--weights=x.pth"], "there is no model to take them"),
        (
            ["--model=small_models:residual", "--target-latency=0.01x"],
            r"keeps .* ms: the reachable range is .*x to 1x\); give a higher limit, or fewer pi",
        ),
    ],
)
def test_one_line_says_what_is_wrong(
    words: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = {"OTHER": other(tmp_path / "other.pth"), "HOSTILE": hostile(tmp_path / "hostile.pth")}
    for name, path in files.items():
        words = [word.replace(name, str(path)) for word in words]
    out = tmp_path / "run"
    latency = ["--target-latency=0.8x"]
    assert main(["run", *WORDS, *latency, *words, f"--out={out}"]) == 2
    error = capfd.readouterr().err.strip()
    assert "\n" not in error and re.search(message, error), error
    assert not (tmp_path / "ran").exists()
    assert not (out / "stages" / "teach.json").exists()  # refused before anything is learned


def test_without_a_latency(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", *WORDS, MODEL, f"--out={tmp_path / 'run'}"]) == 2
    assert "give --target-latency" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_random_weights_are_said_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*WORDS[:4], *WORDS[5:], "--target-latency=0.01x", f"--out={tmp_path / 'run'}"]
    assert main(["run", *words, "--model=torchvision:resnet18", "--weights=none"]) == 2
    assert "WARNING: the weights are RANDOM" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run")

    def offline(*_: Any, **__: Any) -> nn.Module:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models.get_model", offline)
    assert main(["run", *words, "--model=torchvision:resnet18"]) == 2
    assert "cannot be downloaded (no network); give a file" in capsys.readouterr().err


def test_gray_images_as_if_they_were_expanded() -> None:
    loaded = load_model("small_models:coloured")
    gray = for_gray(load_model("small_models:coloured"))
    pixels = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v)[:, None, None] for v in (loaded.input.mean, loaded.input.std))
    with torch.no_grad():
        expected = loaded.model[0]((pixels.expand(2, 3, 16, 16) - mean) / std)
        actual = gray.model[0]((pixels - gray.input.mean[0]) / gray.input.std[0])
    torch.testing.assert_close(actual[..., 1:, 1:], expected[..., 1:, 1:], atol=1e-5, rtol=1e-5)


def test_the_classifier_is_found_and_replaced() -> None:
    network = headed(load_model("torchvision:mobilenet_v3_small", "none"), torch.rand(2, 3, 32, 32))
    x = torch.rand(3, 3, 32, 32)
    assert network.path == "classifier.3" and network.features(x).shape == (3, 1024)
    with torch.no_grad():
        torch.testing.assert_close(network.classifier(network.features(x)), network(x))
    network.replace_classifier(nn.Linear(1024, 5))
    assert network(x).shape == (3, 5)
    with pytest.raises(SupernetError, match=r"fails on images of 3x32x32.*--image-size 224"):
        headed(load_model("torchvision:vit_b_16", "none"), torch.rand(2, 3, 32, 32))
