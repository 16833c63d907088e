"""Stopping and going on: the end is the same, to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from tiny_run import TINY_RUN, assert_same_run

from proxylessnas.cli.main import main
from proxylessnas.core import search as loop
from proxylessnas.core.search import Search
from proxylessnas.session import checkpoints
from proxylessnas.training.train import Training


@pytest.mark.parametrize(("kind", "step"), [("search", 3), ("search", 9), ("train", 4)])
def test_killed_and_resumed_is_the_same_to_the_bit(
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    step: int,
) -> None:
    """Killed a step after a checkpoint: what came after it is done again."""
    job = Search if kind == "search" else Training
    take = job.weight_step if kind == "search" else job.take_step  # type: ignore[attr-defined]

    class Killed(BaseException):
        pass

    def dying(self: Search | Training) -> None:
        if self.step == step:
            raise Killed
        take(self)

    name = "weight_step" if kind == "search" else "take_step"
    monkeypatch.setattr(job, name, dying)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", -1.0)
    out = tmp_path / "run"
    with pytest.raises(Killed):
        main(["run", *TINY_RUN, f"--out={out}"])
    monkeypatch.undo()
    assert main(["run", "--resume", f"--out={out}", "--quiet"]) == 0
    assert_same_run(out, finished_run)


def test_a_polite_stop_saves_and_says_how_to_go_on(
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    take = loop.Search.weight_step

    def stopping(self: Search) -> None:
        take(self)
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(loop.Search, "weight_step", stopping)
    out = tmp_path / "run"
    assert main(["run", *TINY_RUN, f"--out={out}"]) == 130
    monkeypatch.undo()
    assert f"--out {out} --resume" in capsys.readouterr().err
    assert list((out / "checkpoints").glob("search-00000006.safetensors"))
    assert main(["run", "--resume", f"--out={out}", "--quiet"]) == 0
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGINT, before[1])
    assert_same_run(out, finished_run)


def test_every_stage_is_a_verb(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["measure", *TINY_RUN, f"--out={out}"]) == 0
    for verb in ("search", "derive", "train", "evaluate", "export"):
        assert main([verb, str(out), "--quiet"]) == 0
    assert_same_run(out, finished_run)
    for form, name in (("python", "python/network.py"), ("torch", "network.pt2")):
        assert main(["export", str(out), "--format", form, "--quiet"]) == 0
        assert (out / name).stat().st_size > 0


def test_the_record_of_a_run_names_its_limit(finished_run: Path) -> None:
    facts = json.loads((finished_run / "stages" / "derive.json").read_text())
    summary = json.loads((finished_run / "summary.json").read_text())
    assert facts["predicted"]["latency"] <= summary["target_latency_ms"]


def test_a_budget_at_the_end_changes_nothing_and_says_so(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(finished_run, tmp_path / "run"))
    assert main(["run", "--resume", "--budget=2h", f"--out={out}"]) == 0
    said = capsys.readouterr()
    assert "the epochs stay as they are" in " ".join((said.out + said.err).split())
    assert_same_run(out, finished_run)
