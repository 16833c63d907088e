"""Returning to an anchor in the run directory, also where a run is killed on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diverging import diverging_search
from toys import After, changed, snapshot

from proxylessnas.core.search import Search
from proxylessnas.errors import UserError
from proxylessnas.io.console import Reporter
from proxylessnas.io.stopping import Signal
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.session import checkpoints as saving
from proxylessnas.session.checkpoints import StoreCheckpoints
from proxylessnas.training import faults as recovery
from proxylessnas.training.loop import run_loop

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Killed(BaseException):
    pass


def stage(folder: Path, job: Search, die_at: int | None = None) -> None:
    """A search as the stage drives it, a checkpoint a step; killed before its n-th step ends."""
    directory = RunDirectory(folder)
    checkpoints = StoreCheckpoints(directory, "search", Signal())
    checkpoints.resume(job, Reporter(quiet=True))
    steps = 0

    def after(_: Search) -> None:
        nonlocal steps
        steps += 1
        if steps == die_at:
            raise Killed
        directory.log(stage="search", step=job.step, rate_factor=job.recovery.factor)

    run_loop(job, checkpoints, [After(job, after)])


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("every", [-1.0, 1e9])  # seconds between checkpoints
def test_killed_around_a_return_is_the_same_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float
) -> None:
    monkeypatch.setattr(saving, "CHECKPOINT_SECONDS", every)
    whole = diverging_search(monkeypatch)
    stage(tmp_path / "whole", whole)
    (back,) = [line for line in lines(tmp_path / "whole") if "back_to" in line]
    assert (back["back_to"], back["rate_factor"]) == (6, 0.5)
    for die_at in (4, 9, 12, 14, 20, 27):
        folder = tmp_path / f"killed{die_at}"
        with pytest.raises(Killed):
            stage(folder, diverging_search(monkeypatch), die_at)
        resumed = diverging_search(monkeypatch)
        stage(folder, resumed)
        assert lines(folder) == lines(tmp_path / "whole")
        assert changed(resumed.model, snapshot(whole.model)) == set()
        assert torch.equal(resumed.supernet.alpha, whole.supernet.alpha)


def test_the_anchor_outlives_the_checkpoints_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(recovery, "MAX_BAD_STEPS", 10**6)
    stage(tmp_path, diverging_search(monkeypatch))
    kept = sorted(p.stem for p in (tmp_path / "checkpoints").glob("*.safetensors"))
    assert kept == [f"search-{step:08d}" for step in (24, 30, 31, 32)]


def test_a_damaged_anchor_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = diverging_search(monkeypatch)
    keep = StoreCheckpoints.keep

    def damaging(self: StoreCheckpoints, job: Search) -> None:
        keep(self, job)
        (tmp_path / self.last).write_bytes(b"damaged")

    monkeypatch.setattr(StoreCheckpoints, "keep", damaging)
    with pytest.raises(UserError, match="damaged"):
        stage(tmp_path, job)
