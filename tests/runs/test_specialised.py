"""`run --pretrained`: from trained weights to a smaller network, and what one would do by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from proxylessnas.architecture import Architecture, InputInfo
from proxylessnas.cli.main import main
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.spaces import build, build_supernet

TINY = {
    "input_shape": [3, 32, 32],
    "classes": 4,
    "stem": 8,
    "first": 8,
    "widths": [8, 16],
    "depths": [2, 2],
    "strides": [2, 1],
    "head": 32,
}
WORDS = [
    "--data=digits",
    "--image-size=32",
    "--runtime=fake",
    "--target-latency=0.8x",
    "--loading.limit=240",
    "--teach.epochs=1",
    "--train.epochs=1",
    "--measure.networks=4",
    "--derive.top-k=3",
    "--machine.threads=1",
    "--quiet",
]
FILES = ("architecture.json", "weights.safetensors", "teacher.safetensors", "model.onnx")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a network of inverted bottlenecks; its weights are random."""
    directory = RunDirectory(tmp_path_factory.mktemp("trained"))
    supernet = build_supernet("mobile", TINY)
    chosen = [next(n for n in names if n != "zero") for names in supernet.candidates]
    architecture = Architecture(
        space="mobile",
        settings=supernet.settings,
        choices=dict(zip(supernet.names, chosen, strict=True)),
        input=InputInfo(shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3),
    )
    torch.manual_seed(0)
    directory.write("architecture.json", architecture.to_json().encode())
    directory.save_tensors("weights.safetensors", build(architecture).state_dict())
    return directory.path


@pytest.fixture(scope="module")
def specialised(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("specialised") / "run"
    assert main(["run", *WORDS, f"--pretrained={trained}", f"--out={out}"]) == 0
    return out


def test_the_summary_says_what_one_would_do_by_hand(specialised: Path) -> None:
    summary = json.loads((specialised / "summary.json").read_text())
    for name in ("teacher", "linear", "majority", "test"):
        assert 0 <= summary[f"{name}_accuracy"] <= 1
    assert summary["baselines"].keys() <= {"teacher", "smaller_input", "uniform"}
    for row in summary["baselines"].values():
        assert 0 <= row["test_accuracy"] <= 1 and row["measured_latency_ms"] > 0
    assert summary["found_ms"] > 0  # in the same rounds
    stages = ["teach", "candidates", "measure", "search", "derive", "train", "evaluate", "export"]
    assert all(summary["seconds"][stage] >= 0 for stage in [*stages, "by-hand"])
    assert summary["predicted_latency_ms"] <= summary["target_latency_ms"] * 1.001
    teacher_ms = summary["largest_network_ms"]
    assert summary["target_latency_ms"] == pytest.approx(0.8 * teacher_ms)


def test_nothing_is_recalibrated_and_alpha_begins_at_its_prior(specialised: Path) -> None:
    config = RunDirectory(specialised).read_config()
    assert config.derive.recalibrate_images == 0 and config.train.frozen_statistics
    search = json.loads((specialised / "stages" / "search.json").read_text())
    assert search["weight_steps"] == 0 < search["architecture_steps"]
    candidates, _ = RunDirectory(specialised).load_tensors("candidates.safetensors")
    newest = sorted((specialised / "checkpoints").glob("search-*.safetensors"))[-1]
    tensors, _ = RunDirectory(specialised).load_tensors(f"checkpoints/{newest.name}")
    for name, value in candidates.items():  # weights and statistics are the teacher's
        assert torch.equal(tensors[f"model.{name}"], value), name


def test_it_goes_on_to_the_same_bits(specialised: Path, trained: Path, tmp_path: Path) -> None:
    """Everything behind the teacher is done again, from the files that were left."""
    out = tmp_path / "run"
    shutil.copytree(specialised, out)
    for path in (out / "stages").glob("*.json"):
        if path.stem != "teach" and path.stem != "measure":
            path.unlink()
    shutil.rmtree(out / "checkpoints")
    for file in (
        *FILES[:2],
        "candidates.safetensors",
        "scores.json",
        "scores_within.json",
        "model.onnx",
    ):
        (out / file).unlink()
    assert main(["run", "--resume", f"--out={out}", "--quiet"]) == 0
    for file in FILES:
        assert (out / file).read_bytes() == (specialised / file).read_bytes(), file


def test_the_result_is_used_as_any_other(specialised: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(specialised, out)
    assert main(["derive", str(out), "--latencies=0.9x", "--quiet"]) == 0
    assert main(["export", str(out), "--format=torch", "--quiet"]) == 0
    assert main(["measure", str(out / "architecture.json"), "--runtime=fake", "--quiet"]) == 0
    architecture = Architecture.load(out / "architecture.json")
    network = build(architecture)
    RunDirectory(out).load_weights("weights.safetensors", network)
    assert architecture.input is not None
    shape = architecture.input.shape
    assert network.eval()(torch.randn(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pretrained=efficientnet_lite"], "did you mean efficientnet_lite"),
        (["--pretrained=torchvision:resnet18"], "resnet18"),
        (["--pretrained=efficientnet_lite0", "--budget=10m"], "leave it out"),
    ],
)
def test_what_cannot_be_specialised_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--data=digits", *words, f"--out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_none_trains_from_scratch(tmp_path: Path) -> None:
    from proxylessnas.config import RunConfig
    from proxylessnas.runs.specialised import with_defaults

    assert with_defaults({"pretrained": "none"}) == {"pretrained": "none"}
    assert not RunConfig(pretrained="none").is_specialised
    assert RunConfig(pretrained="efficientnet_lite0").is_specialised
