"""`run --pretrained`: from trained weights to a smaller network, and what one would do by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from pretrained import WORDS, trained_run

from proxylessnas.architecture import Architecture
from proxylessnas.cli.main import main
from proxylessnas.config import DataSettings, RunConfig
from proxylessnas.io.console import Reporter
from proxylessnas.runs.begin import problem_of
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.session.store import MemoryStore
from proxylessnas.spaces import build

FILES = ("architecture.json", "weights.safetensors", "teacher.safetensors", "model.onnx")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def specialised(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("specialised") / "run"
    words = [*WORDS, "--from-scratch=true"]
    assert main(["run", *words, f"--pretrained={trained}", f"--out={out}"]) == 0
    return out


def test_the_summary_says_what_one_would_do_by_hand(specialised: Path) -> None:
    summary = json.loads((specialised / "summary.json").read_text())
    for name in ("teacher", "linear", "majority", "test"):
        assert 0 <= summary[f"{name}_accuracy"] <= 1
    named = {"teacher", "smaller_input", "uniform", "from_scratch"}
    assert {"teacher", "from_scratch"} <= summary["baselines"].keys() <= named
    for row in summary["baselines"].values():
        assert 0 <= row["test_accuracy"] <= 1 and row["measured_latency_ms"] > 0
        assert row["macs"] > 0
    teacher = summary["baselines"]["teacher"]
    for name in {"uniform", "smaller_input"} & summary["baselines"].keys():
        assert summary["baselines"][name]["macs"] < teacher["macs"]
    assert summary["macs"] < teacher["macs"]
    assert summary["found_ms"] > 0  # in the same rounds
    stages = ["teach", "candidates", "measure", "search", "derive", "train", "evaluate", "export"]
    assert all(summary["seconds"][stage] >= 0 for stage in [*stages, "by-hand"])
    assert summary["predicted_latency_ms"] <= summary["target_latency_ms"] * 1.001
    teacher_ms = summary["largest_network_ms"]
    assert summary["target_latency_ms"] == pytest.approx(0.8 * teacher_ms)


def test_networks_made_by_hand_are_files_that_can_be_deployed(specialised: Path) -> None:
    """Of the accuracy and the input that the summary says, with the classes in them."""
    summary = json.loads((specialised / "summary.json").read_text())
    directory = RunDirectory(specialised)
    problem = problem_of(directory.read_config(), Reporter(quiet=True), directory)
    for name, row in summary["baselines"].items():
        assert ("file" in row) == (name != "teacher")
        if name == "teacher":
            continue
        session = onnxruntime.InferenceSession(specialised / row["file"])
        said = session.get_modelmeta().custom_metadata_map
        shape = session.get_inputs()[0].shape
        assert shape[2:] == [row["image_size"]] * 2 == json.loads(said["shape"])[1:]
        assert json.loads(said["classes"]) == list(problem.data.info.classes)
        if row["image_size"] == problem.data.info.shape[1]:
            right = total = 0
            for images, labels in problem.batches("test", problem.config).epoch(0):
                for image, label in zip(images, labels, strict=True):
                    (logits,) = session.run(
                        None, {session.get_inputs()[0].name: image[None].numpy()}
                    )
                    right, total = right + int(logits.argmax() == int(label)), total + 1
            assert right / total == pytest.approx(row["test_accuracy"])


def test_without_a_share_of_the_loss_the_teacher_is_not_asked(specialised: Path) -> None:
    directory = RunDirectory(specialised)
    config = directory.read_config()
    problem = problem_of(config, Reporter(quiet=True), directory)
    alone = replace(config, train=replace(config.train, teacher_share=0.0))
    assert problem.training_task(config).distil_loss is not None
    assert problem.training_task(alone).distil_loss is None


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


def test_fine_tuning_that_led_away_is_done_again_with_gradients_cut(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    wild = [*WORDS[:-1], "--teach.learning-rate=30", "--baselines=false"]
    assert main(["run", *wild, f"--pretrained={trained}", f"--out={out}"]) == 0
    config = RunDirectory(out).read_config()
    assert config.teach.clip_norm == config.train.clip_norm == 2
    record = json.loads((out / "stages" / "teach.json").read_text())
    assert record["teacher_valid_accuracy"] >= record["linear_valid_accuracy"]
    assert "cut to a norm of 2" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("clip_norm", ["0", "1000"])  # done once more, or undone at once
def test_a_network_that_fine_tuning_led_away_keeps_what_it_had(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], clip_norm: str
) -> None:
    out = tmp_path / "run"
    wild = ["--target-latency=0.99x", "--train.learning-rate=30", "--train.average-decay=0"]
    wild += [f"--train.clip-norm={clip_norm}", "--teach.clip-norm=5", "--baselines=false"]
    assert main(["run", *WORDS[:-1], *wild, f"--pretrained={trained}", f"--out={out}"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert json.loads((out / "stages" / "train.json").read_text())["led_away"] is True
    assert ("that it began with: once more" in said) == (clip_norm == "0")
    if clip_norm != "0":
        weights, inherited = (out / f"{n}.safetensors" for n in ("weights", "inherited"))
        assert weights.read_bytes() == inherited.read_bytes() and "those stay" in said


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
    from proxylessnas.runs.defaults import with_defaults

    assert with_defaults({"pretrained": "none"}) == {"pretrained": "none"}
    assert not RunConfig(pretrained="none").is_specialised
    assert RunConfig(pretrained="efficientnet_lite0").is_specialised


@pytest.mark.parametrize(("side", "images"), [(32, 250), (128, 64), (512, 16)])
def test_batches_that_score_have_fewer_images_where_these_are_large(side: int, images: int) -> None:
    """Activations of 250 images of 128 pixels took a gigabyte in one layer."""
    config = RunConfig(data="digits", image_size=side, loading=DataSettings(limit=300))
    problem = problem_of(config, Reporter(quiet=True), MemoryStore())
    inputs, _ = next(iter(problem.batches("test", config).epoch(0)))
    assert len(inputs) == images
