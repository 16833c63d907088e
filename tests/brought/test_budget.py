"""A budget that holds: it counts from the command, and what is left is divided anew each time."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from clock import Clock

from proxylessnas.cli.main import main
from proxylessnas.config import RunConfig
from proxylessnas.errors import RunError
from proxylessnas.session import durations, fitting
from proxylessnas.session.budget import FILE, MARGIN, Budget, Deadline, Pace, open_budget
from proxylessnas.session.store import MemoryStore
from proxylessnas.training.callbacks import StopStage

SHARES = {"search": 0.4, "derive": 0.2, "train": 0.4}


def budget(clock: Clock, **more: float) -> Budget:
    return Budget(total=1000.0, shares=SHARES, started=clock(), clock=clock, **more)


def test_what_is_left_is_divided_among_the_stages_that_are_left() -> None:
    """A stage that takes longer leaves less for all that follow, in their proportions."""
    clock = Clock()
    mine = budget(clock)
    assert mine.seconds_for("search") == pytest.approx(400 * (1 - MARGIN))
    clock.sleep(700)  # measuring and a search that took long
    assert mine.seconds_for("derive") == pytest.approx(100 * (1 - MARGIN))
    clock.sleep(50)  # less than its share
    assert mine.seconds_for("train") == pytest.approx(250 * (1 - MARGIN))


def test_the_last_stage_takes_all_but_what_is_kept_for_the_end() -> None:
    clock = Clock()
    mine = budget(clock)
    mine.reserve("export", 30)
    mine.reserve("export", 80)  # a better estimate
    assert mine.seconds_for("train") == pytest.approx(1000 * (1 - MARGIN) - 80)
    clock.sleep(2000)
    assert mine.seconds_for("train") == 0
    assert mine.left == -1000


def test_every_stage_has_its_least_and_only_the_rest_is_divided() -> None:
    """A stage that took too long takes from the rest alone, as long as there is any."""
    clock = Clock()
    mine = budget(clock)
    for stage, seconds in {"search": 100, "derive": 60, "train": 150, "exit": 10}.items():
        mine.reserve(stage, seconds)
    rest = 1000 * (1 - MARGIN) - 320
    assert mine.spare == pytest.approx(rest)
    assert mine.seconds_for("search") == pytest.approx(100 + 0.4 * rest)
    mine.fitted.append("search")
    assert mine.seconds_for("search") == pytest.approx(100 + 0.4 * rest)  # while it goes on
    assert mine.spare == pytest.approx(rest + 100)
    clock.sleep(780)
    assert mine.seconds_for("derive") == pytest.approx(220 * (1 - MARGIN) - 160)  # and no more
    assert mine.spare == pytest.approx(220 * (1 - MARGIN) - 220)
    clock.sleep(150)
    assert mine.seconds_for("train") == pytest.approx(70 * (1 - MARGIN) - 10)  # what there is


def test_a_run_that_goes_on_counts_what_it_took_before() -> None:
    """The time between two processes does not count, and a fitted stage is not fitted again."""
    clock, store = Clock(), MemoryStore()
    mine = budget(clock)
    clock.sleep(300)
    mine.speeds = {"weight": 0.5}
    mine.reserve("export", 20)
    mine.keep(store, "search")
    again = open_budget("1000s", store, clock(), SHARES)
    assert again is not None
    assert (again.before, again.fitted, round(again.total)) == (300, ["search"], 1000)
    assert (again.speeds, again.reserved) == ({"weight": 0.5}, {"export": 20})


@pytest.mark.parametrize(
    ("seconds", "grows", "least", "most"),
    [
        (2.0, True, 480, 515),  # twice as long as it was timed: half as many steps
        (0.5, True, 1900, 2045),
        (0.5, False, 1000, 1000),
        (1.0, True, 1000, 1000),
    ],
)
def test_a_training_keeps_to_its_time_though_steps_take_another_one(
    seconds: float, grows: bool, least: int, most: int
) -> None:
    clock = Clock()
    mine = Budget(total=1000 / (1 - MARGIN), shares={"train": 1.0}, started=0.0, clock=clock)
    job: Any = SimpleNamespace(step=0, total=1000)
    pace = Pace(mine, "train", job, grows=grows)
    while job.step < job.total:
        clock.sleep(seconds)
        job.step += 1
        pace.on_step(None)  # type: ignore[arg-type]
    assert least <= job.total <= most
    assert clock() <= 1025


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [
        (0.4, 1000),  # as it was timed
        (0.5, 920),  # at 1.15 times its seconds
        (2.0, 500),  # half of the steps are taken whatever happens
    ],
)
def test_a_search_that_takes_longer_than_it_was_timed_ends(seconds: float, steps: int) -> None:
    clock = Clock()
    mine = Budget(total=1000 / (1 - MARGIN), shares=SHARES, started=0.0, clock=clock)
    job: Any = SimpleNamespace(step=0, total=1000)
    end = Deadline(mine, "search", job)
    with contextlib.suppress(StopStage):
        while job.step < job.total:
            clock.sleep(seconds)
            job.step += 1
            end.on_step(None)  # type: ignore[arg-type]
    assert abs(job.step - steps) <= 1


@pytest.mark.parametrize(
    ("seconds", "rounds", "networks", "network_rounds"),
    [(1000.0, 10, 10, 20), (10 + 50.0, 5, 7, 14), (5.0, 3, 4, 3)],
)
def test_measuring_is_shortened_to_its_time(
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    rounds: int,
    networks: int,
    network_rounds: int,
) -> None:
    """110 seconds in all, of which 10 load sessions, which nothing shortens."""
    session: Any = SimpleNamespace(
        config=RunConfig(data="digits"), trace=SimpleNamespace(units=[None] * 100)
    )
    monkeypatch.setattr(fitting, "table_seconds", lambda *_: 110.0)
    m = fitting.fit_measure(session, seconds, {}).measure
    assert (m.rounds, m.networks, m.network_rounds) == (rounds, networks, network_rounds)
    given = RunConfig(data="digits", table="t.json")
    session.config = given
    assert fitting.fit_measure(session, seconds, {}) == given


@pytest.mark.parametrize("content", ["[]", "{}", '{"spent": "much", "fitted": []}'])
def test_a_damaged_record_of_the_budget_is_one_line(content: str) -> None:
    store = MemoryStore()
    store.write(FILE, content.encode())
    with pytest.raises(RunError, match=r"budget\.json"):
        open_budget("10m", store, 0.0)


def test_a_budget_that_cannot_be_kept_is_refused_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    """The line says how long the least useful run takes; no directory is left."""
    out = f"{tmp_path}/run"
    words = ["run", "--data=digits", "--runtime=fake", "--budget=1s", f"--out={out}"]
    assert main([*words, "--machine.threads=1"]) == 2
    error = capsys.readouterr().err
    line = error.strip().splitlines()[-1]
    assert "the budget 1s is too short: the least useful run of these settings takes about" in line
    assert "--pretrained" in line
    assert "measure:" not in error


def test_the_clock_starts_with_the_process() -> None:
    """Of a process that waits before it asks; where the system does not tell, by its CPU time."""
    code = (
        "import time; from pathlib import Path; from proxylessnas.io.process import began; "
        "start = time.monotonic(); time.sleep(0.3); "
        "print(start - began(), time.process_time() - time.monotonic() + began(Path('none')))"
    )
    before = time.monotonic()
    words = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    passed = time.monotonic() - before
    since, cpu = map(float, words.split())
    assert 0 < since < passed - 0.3 + 0.02
    assert abs(cpu) < 0.05


def test_cold_steps_that_take_long_are_not_timed_to_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A budget that is far too short is refused soon: the faster of two steps has to do."""
    clock, job = Clock(), SimpleNamespace(step=0)
    monkeypatch.setattr(durations.time, "perf_counter", clock)
    seconds = iter([9.0, 5.0, 1.0, 1.0, 2.0])
    step = lambda: clock.sleep(next(seconds))  # noqa: E731
    assert durations.mean_seconds(step, 2, job, warmup=3, most=10) == 5  # type: ignore[arg-type]
    assert (job.step, clock()) == (2, 14)
    seconds = iter([9.0, 5.0, 1.0, 1.0, 2.0])
    assert durations.mean_seconds(step, 2, job, warmup=3) == 1.5  # type: ignore[arg-type]
