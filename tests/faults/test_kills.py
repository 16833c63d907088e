"""Killed anywhere, by SIGKILL, and resumed: the end is that of a run never killed, to the bit."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from amounts import seeds
from forked_runs import ForkServer
from tiny_run import STAGES, assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SECONDS = {  # about what the stages take, and a little more
    **{"measure": 0.4, "search": 0.6, "derive": 0.4},
    **{"train": 0.3, "evaluate": 0.05, "export": 0.3},
}
KILLS = 3


@pytest.mark.parametrize("seed", seeds(12, few=4))
def test_killed_at_random_moments(
    server: ForkServer, finished_run: Path, tmp_path: Path, seed: int
) -> None:
    """Three kills in a row, in stages that come in order; two seeds give every stage its turn."""
    chance = random.Random(seed)
    stages = sorted({STAGES[(seed + 2 * i) % 6] for i in range(KILLS)}, key=STAGES.index)
    stages += [stages[-1]] * (KILLS - len(stages))
    out = tmp_path / f"run{seed}"
    killed = 0
    for stage in stages:
        started = server.start(out)
        if started.wait_for(f"{stage}: "):
            time.sleep(chance.random() * SECONDS[stage])
        with contextlib.suppress(ProcessLookupError):  # it was done
            os.kill(started.pid, signal.SIGKILL)
        killed += started.code() == -signal.SIGKILL
    code, lines = server.run(out)
    assert code == 0, lines
    assert killed
    assert_same_run(out, finished_run)


@pytest.mark.parametrize("seed", seeds(5, few=3))
def test_killed_in_the_middle_of_writing_a_file(
    server: ForkServer, finished_run: Path, tmp_path: Path, seed: int
) -> None:
    """The kernel kills the process at a byte of the first file that is longer."""
    chance = random.Random(seed)
    sizes = sorted(p.stat().st_size for p in finished_run.rglob("*") if p.is_file())
    out = tmp_path / f"write{seed}"
    for _ in range(3):
        largest = 200 + int(chance.random() * (chance.choice(sizes[len(sizes) // 2 :]) - 1))
        code, lines = server.run(out, largest_file=largest, dies=True)
        assert code in (0, -signal.SIGXFSZ), lines
    code, lines = server.run(out)
    assert code == 0, lines
    assert_same_run(out, finished_run)


@pytest.mark.parametrize("seed", seeds(5, few=3))
def test_killed_between_writing_and_renaming(
    server: ForkServer, finished_run: Path, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    out = tmp_path / f"sync{seed}"
    for _ in range(3):
        code, lines = server.run(out, dies_at_sync=chance.randrange(1, 60))
        assert code in (0, -signal.SIGKILL), lines
    code, lines = server.run(out)
    assert code == 0, lines
    assert_same_run(out, finished_run)


@pytest.mark.parametrize(
    ("stage", "damage"),
    [("train", "cut"), ("search", "flip"), ("train", "no checksum"), ("search", "all")],
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    server: ForkServer, finished_run: Path, tmp_path: Path, stage: str, damage: str
) -> None:
    out = tmp_path / "run"
    started = server.start(out)
    started.wait_for(f"{stage}: ")
    folder = out / "checkpoints"
    while len(found := sorted(folder.glob(f"{stage}-*.safetensors"))) < 3:
        assert Path(f"/proc/{started.pid}/exe").exists(), "it ended too soon"
        time.sleep(0.002)
    os.kill(started.pid, signal.SIGKILL)
    started.code()
    found = sorted(folder.glob(f"{stage}-*.safetensors"))
    for newest in found if damage == "all" else found[-1:]:
        data = bytearray(newest.read_bytes())
        if damage == "flip":
            data[random.Random(0).randrange(len(data))] ^= 16
        if damage == "no checksum":
            newest.with_name(newest.name + ".sha256").unlink(missing_ok=True)
        newest.write_bytes(data[: len(data) // 2] if damage in ("cut", "all") else data)
    code, lines = server.run(out)
    assert code == 0, lines
    text = " ".join(lines)
    assert ("the stage begins again" if damage == "all" else "the one before is used") in text
    assert_same_run(out, finished_run)
