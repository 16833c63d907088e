"""SIGTERM while worker processes decode images: no traceback, nobody is waited for in vain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from image_folders import make_folder, mixed_size

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("whom", ["the group", "the workers too"])
def test_a_run_whose_workers_decode_stops_like_any_other(tmp_path: Path, whom: str) -> None:
    """A terminal and `timeout` signal the group, a service manager every process."""
    data = make_folder(tmp_path / "photos", count=60, size=mixed_size)
    command = [
        *(sys.executable, "-m", "proxylessnas", "run", f"--data={data}", "--image-size=16"),
        *("--space=macro", "--space-settings={widths: [16], depths: [1], stem: 16, head: 16}"),
        *("--runtime=fake", f"--out={tmp_path}/run", "--search.batch-size=8", "--measure.rounds=1"),
        *("--search.epochs=2000", "--loading.workers=2", "--machine.threads=1"),
        "--machine.memory-format=contiguous",
    ]
    log = tmp_path / "log"
    with log.open("w") as file:
        run = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        while "search: " not in log.read_text():
            assert run.poll() is None, log.read_text()
            time.sleep(0.05)
        time.sleep(1)
        if whom == "the group":
            os.killpg(run.pid, signal.SIGTERM)
        else:
            for child in children(run.pid):
                os.kill(child, signal.SIGTERM)
            run.terminate()
        assert run.wait(120) == 130, log.read_text()
    finally:
        run.kill()
    said = log.read_text()
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].endswith(f"proxylessnas run --out {tmp_path}/run --resume")
    assert list((tmp_path / "run" / "checkpoints").glob("search-*.safetensors"))


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
