"""SIGTERM and Ctrl-C in every stage: out within seconds, with the command that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked_runs import ForkServer
from tiny_run import STAGES, TINY_RUN, assert_same_run

from proxylessnas.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SIGNALS = {stage: (signal.SIGTERM, signal.SIGINT)[i % 2] for i, stage in enumerate(STAGES)}


def test_a_run_that_is_stopped_in_every_stage(
    server: ForkServer, finished_run: Path, tmp_path: Path
) -> None:
    """One run, stopped six times: each time it says how to go on, and it ends the same."""
    out = tmp_path / "stopped"
    stopped = 0
    for stage, number in SIGNALS.items():
        started = server.start(out)
        if not started.wait_for(f"{stage}: "):
            assert started.code() == 0
            continue
        try:
            os.kill(started.pid, number)
        except ProcessLookupError:
            assert started.code() == 0
            continue
        code = started.code()
        assert code in (0, 130), started.log.read_text()  # 0: the stage was over that fast
        if code == 130:
            stopped += 1
            line = started.log.read_text().strip().splitlines()[-1]
            assert f"proxylessnas run --out {out} --resume" in line
            assert "Traceback" not in started.log.read_text()
    assert stopped >= 4
    code, lines = server.run(out)
    assert code == 0, lines
    assert_same_run(out, finished_run)


@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_a_stage_that_saves_nothing_is_not_waited_for(
    server: ForkServer, run_copy: Path, verb: str
) -> None:
    for stage in ("evaluate", "export"):
        (run_copy / "stages" / f"{stage}.json").unlink(missing_ok=True)
    if verb == "export":
        assert main(["evaluate", str(run_copy), "--quiet"]) == 0
    started = server.start(run_copy, verb, stops_in=verb)
    code = started.code()
    assert code == 130, started.log.read_text()
    assert f"proxylessnas {verb} --out {run_copy} --resume" in started.log.read_text()
    assert not (run_copy / "stages" / f"{verb}.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_before_anything_was_begun_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    """The real command, while it imports."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "proxylessnas", "run", *TINY_RUN, f"--out={out}"],
        stderr=subprocess.PIPE,
        text=True,
    )
    status = Path(f"/proc/{process.pid}/status")
    while not _handles(status.read_text(), number):
        time.sleep(0.002)
    process.send_signal(number)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 130
    assert error.strip() == "proxylessnas: stopped"
    assert not out.exists()


def _handles(status: str, number: signal.Signals) -> bool:
    """Whether a process has our handler; Python has one of its own for SIGINT, not SIGTERM."""
    (caught,) = [line for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_second_process_on_the_directory_is_refused(
    server: ForkServer, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shared"
    started = server.start(out)
    assert started.wait_for("search: ")
    assert main(["run", *TINY_RUN, f"--out={out}", "--resume"]) == 2
    assert "another process works in" in capsys.readouterr().err
    assert started.code() == 0
    assert_same_run(out, finished_run)
