"""What training offers works from scratch and from trained weights alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from image_folders import make_folder, whole_part
from pretrained import WORDS, trained_run
from tiny_run import OPTIONS
from torch.nn.functional import cross_entropy

from proxylessnas.cli.main import main
from proxylessnas.config import RunConfig, TrainSettings
from proxylessnas.data import ImageData
from proxylessnas.io.console import Reporter
from proxylessnas.runs.configured import ConfiguredProblem
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.session import checkpoints, store

EVERYTHING = [
    "--train.epochs=4",
    "--train.optimizer=adamw",
    "--train.learning-rate=0.001",
    "--train.warmup-epochs=0.5",
    "--train.average-decay=0.9",
    "--train.label-smoothing=0.2",
    "--train.augment=shift+randaugment",
    "--train.mix=mixup",
    "--train.keep-best=epochs",
    "--train.patience=1",
    "--train.class-weights=balanced",
]


def run(road: str, out: Path, *words: str, trained: Path | None = None) -> RunDirectory:
    of_road = OPTIONS if road == "scratch" else [*WORDS, f"--pretrained={trained}"]
    assert main(["run", *of_road, *words, "--quiet", f"--out={out}"]) == 0
    return RunDirectory(out)


@pytest.mark.parametrize("road", ["scratch", "pretrained"])
def test_all_of_it_at_once_trains_and_goes_on_to_the_same_bits(
    road: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With early stopping on a validation part that is not trained on."""
    pytest.importorskip("torchvision")
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)  # after every step
    monkeypatch.setattr(store, "KEPT_CHECKPOINTS", 1000)
    (tmp_path / "trained").mkdir()
    trained = trained_run(tmp_path / "trained")
    words = [*EVERYTHING, "--loading.limit=120", "--keep-checkpoints"]
    whole = run(road, tmp_path / "run", *words, trained=trained)
    config = whole.read_config()
    assert config.train == TrainSettings(
        **{
            **{f: getattr(config.train, f) for f in ("batch_size", "inherit", "clip_norm")},
            **{"frozen_statistics": road == "pretrained", "epochs": 4, "optimizer": "adamw"},
            **{"learning_rate": 0.001, "warmup_epochs": 0.5, "average_decay": 0.9},
            **{"label_smoothing": 0.2, "augment": "shift+randaugment", "mix": "mixup"},
            **{"keep_best": "epochs", "patience": 1, "class_weights": "balanced"},
        }
    )
    weights = whole.read("weights.safetensors", 1 << 30)
    (tmp_path / "run" / "stages" / "train.json").unlink()
    steps = whole.checkpoints("train")
    assert len(steps) >= 4
    whole.remove_checkpoints("train", after=len(steps) // 2)
    assert main(["train", str(tmp_path / "run"), "--quiet"]) == 0
    assert whole.read("weights.safetensors", 1 << 30) == weights


def problem_of(tmp_path: Path, **train: Any) -> tuple[ConfiguredProblem, RunConfig]:
    """An unbalanced folder: 20 cats and 5 dogs."""
    make_folder(tmp_path, classes=("cat",), count=20)
    make_folder(tmp_path, classes=("dog",), count=5, first=5000)
    config = RunConfig(data=str(tmp_path), train=TrainSettings(**train))
    return ConfiguredProblem(config, Reporter(quiet=True)), config


def test_the_trainings_label_smoothing_is_its_own(tmp_path: Path) -> None:
    problem, config = problem_of(tmp_path, label_smoothing=0.3)
    logits, labels = torch.randn(6, 2), torch.arange(6) % 2
    loss = problem.training_task(config).weight_loss(logits, labels, None)
    torch.testing.assert_close(loss, cross_entropy(logits, labels, label_smoothing=0.3))


def test_balanced_classes_count_alike_in_the_training(tmp_path: Path) -> None:
    problem, config = problem_of(tmp_path, class_weights="balanced", label_smoothing=0.0)
    assert isinstance(problem.data, ImageData)
    _, labels = whole_part(problem.data, "train")
    assert problem.data.class_counts("train") == torch.bincount(labels).tolist()
    logits = torch.randn(len(labels), 2)
    loss = problem.training_task(config).weight_loss(logits, labels, None)
    of_class = [cross_entropy(logits[labels == c], labels[labels == c]) for c in (0, 1)]
    torch.testing.assert_close(loss, torch.stack(of_class).mean())


def test_a_validation_part_that_chooses_weights_is_not_trained_on(tmp_path: Path) -> None:
    problem, config = problem_of(tmp_path)
    assert len(problem.batches("train", config).rows) == problem.data.size("train")  # type: ignore[attr-defined]
    problem, config = problem_of(tmp_path / "again", keep_best="end")
    assert len(problem.batches("train", config).rows) == problem.data.size("search")  # type: ignore[attr-defined]


@pytest.mark.parametrize("stage", ["train", "teach", "loading"])
def test_an_augmentation_that_there_is_not_is_refused_at_once(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = [*WORDS, f"--pretrained={trained_run(tmp_path)}", f"--{stage}.augment=trivialaugmnt"]
    assert main(["run", *words, f"--out={out}"]) == 2
    assert "did you mean trivialaugment or randaugment?" in capsys.readouterr().err
    assert not out.exists()
