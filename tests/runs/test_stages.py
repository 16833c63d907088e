"""Stopping and going on: the end is the same, to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import SAME, WORDS

from proxylessnas.cli.main import main
from proxylessnas.core import search as loop
from proxylessnas.core.search import Search
from proxylessnas.runs.stages import keeping
from proxylessnas.training.train import Training


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert main(["run", *WORDS, f"--out={out}"]) == 0
    return out


@pytest.mark.parametrize(("kind", "step"), [("search", 3), ("search", 9), ("train", 4)])
def test_killed_and_resumed_is_the_same_to_the_bit(
    undisturbed: Path,
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
    monkeypatch.setattr(keeping, "CHECKPOINT_SECONDS", -1.0)
    out = tmp_path / "run"
    with pytest.raises(Killed):
        main(["run", *WORDS, f"--out={out}"])
    monkeypatch.undo()
    assert main(["run", "--resume", f"--out={out}", "--quiet"]) == 0
    for file in SAME:
        assert (out / file).read_bytes() == (undisturbed / file).read_bytes(), file


def test_a_polite_stop_saves_and_says_how_to_go_on(
    undisturbed: Path,
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
    assert main(["run", *WORDS, f"--out={out}"]) == 130
    monkeypatch.undo()
    assert f"--out {out} --resume" in capsys.readouterr().err
    assert list((out / "checkpoints").glob("search-00000006.safetensors"))
    assert main(["run", "--resume", f"--out={out}", "--quiet"]) == 0
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGINT, before[1])
    for file in SAME:
        assert (out / file).read_bytes() == (undisturbed / file).read_bytes(), file


def test_a_stage_whose_file_was_damaged_is_done_again(undisturbed: Path, tmp_path: Path) -> None:
    import shutil

    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    (out / "model.onnx").write_bytes(b"damaged")
    assert main(["run", "--resume", f"--out={out}", "--quiet"]) == 0
    assert (out / "model.onnx").read_bytes() == (undisturbed / "model.onnx").read_bytes()


@pytest.mark.slow
def test_kill_9_and_resume(undisturbed: Path, tmp_path: Path) -> None:
    """A real process, killed for real, at three moments."""
    command = [sys.executable, "-m", "proxylessnas", "run", f"--out={tmp_path / 'run'}"]
    for delay in (6.0, 8.0, 10.0):
        process = subprocess.Popen(
            [*command, "--resume", *WORDS], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        process.kill()
        process.wait()
    result = subprocess.run([*command, "--resume", *WORDS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for file in SAME:
        assert (tmp_path / "run" / file).read_bytes() == (undisturbed / file).read_bytes(), file


def test_every_stage_is_a_verb(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["measure", *WORDS, f"--out={out}"]) == 0
    for verb in ("search", "derive", "train", "evaluate", "export"):
        assert main([verb, str(out), "--quiet"]) == 0
    for file in SAME:
        assert (out / file).read_bytes() == (undisturbed / file).read_bytes(), file
    for form, name in (("python", "python/network.py"), ("torch", "network.pt2")):
        assert main(["export", str(out), "--format", form, "--quiet"]) == 0
        assert (out / name).stat().st_size > 0


def test_the_record_of_a_run_names_its_limit(undisturbed: Path) -> None:
    facts = json.loads((undisturbed / "stages" / "derive.json").read_text())
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert facts["predicted"]["latency"] <= summary["target_latency_ms"]
