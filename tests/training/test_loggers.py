"""Trackers are told what metrics.jsonl says, offline; each is skipped where it is not installed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_run import OPTIONS

from proxylessnas.cli.main import main
from proxylessnas.training.callbacks import EndMetrics, MetricsLog, RunMetrics
from proxylessnas.training.loggers import Tracker, trackers


class Kept(Tracker):
    """Keeps what a tracker is told."""

    def begin(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        self.settings, self.rows, self.facts = settings, [], None

    def record(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self.rows.append((stage, step, values))

    def finish(self, facts: Mapping[str, float]) -> None:
        self.facts = facts


def test_a_tracker_is_told_numbers_alone() -> None:
    tracker = Kept()
    tracker._line(stage="early", step=1, loss=1.0)  # of a trial, before the run
    tracker.on_start(RunMetrics(settings={"seed": 3, "search": {"epochs": 2}, "limits": {}}))
    tracker._line(stage="search", step=20, loss=0.5, multipliers=[1.0, 2.0], probabilities=[[1.0]])
    tracker.on_end(EndMetrics(status="finished", facts={"test_accuracy": 0.9, "ok": True, "b": {}}))
    assert tracker.settings == {"seed": 3, "search.epochs": 2, "limits": {}}
    values = {"loss": 0.5, "multipliers_0": 1.0, "multipliers_1": 2.0}
    assert tracker.rows == [("search", 20, values)]
    assert tracker.facts == {"test_accuracy": 0.9}


def test_names_are_checked_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ["run", *OPTIONS, f"--out={tmp_path}/run", "--quiet"]
    assert main([*command, "--log", "tensorbord"]) == 2
    assert "did you mean tensorboard?" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    assert main([*command, "--log", "wandb"]) == 2
    assert "pip install 'proxylessnas[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def begun(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A tracker that was told a run's lines and its end; the lines."""
    pytest.importorskip(name, reason=f"{name} is not installed")
    for variable in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    (tracker,) = trackers(name)
    assert isinstance(tracker, MetricsLog)
    tracker.on_start(RunMetrics(settings={"seed": 0}, directory=str(run)))
    told = lines(run)
    for line in told:
        tracker.write(**line)
    tracker.on_end(EndMetrics(status="finished", facts={"test_accuracy": 0.5}))
    return told


def test_tensorboard(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = begun("tensorboard", run_copy, monkeypatch)
    events = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    read = events.EventAccumulator(str(run_copy / "tensorboard"))
    read.Reload()
    losses = [(e.step, e.value) for e in read.Scalars("search/loss")]
    expected = [(r["step"], r["loss"]) for r in told if r["stage"] == "search"]
    assert [step for step, _ in losses] == [step for step, _ in expected]
    assert [v for _, v in losses] == pytest.approx([v for _, v in expected], rel=1e-6)
    assert read.Scalars("summary/test_accuracy")[0].value == 0.5


@pytest.mark.slow
def test_mlflow(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = begun("mlflow", run_copy, monkeypatch)
    mlflow = importlib.import_module("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{run_copy.resolve()}/mlflow.db")
    experiment = client.get_experiment_by_name("proxylessnas")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"seed": "0"}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    expected = [(r["step"], r["loss"]) for r in told if r["stage"] == "train"]
    assert [(m.step, m.value) for m in history] == expected
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_wandb_offline(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun("wandb", run_copy, monkeypatch)
    assert list((run_copy / "wandb").glob("offline-run-*/*.wandb"))
