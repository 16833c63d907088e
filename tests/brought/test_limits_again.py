"""Networks for other limits: steps in proportion to the search, within a budget, scores shared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxylessnas.cli.main import main
from proxylessnas.io.stopping import Stopped
from proxylessnas.runs import job
from proxylessnas.session import deriving
from proxylessnas.session.session import Session


def test_alpha_learns_on_for_no_longer_than_the_search_took(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not 200 steps after a search of a few."""
    steps: list[int] = []
    adapt = deriving.adapt

    def counted(*arguments: object, **options: object) -> object:
        steps.append(options["steps"])  # type: ignore[arg-type]
        return adapt(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(deriving, "adapt", counted)
    record = json.loads((run_copy / "stages" / "search.json").read_text())
    assert main(["derive", str(run_copy), "--latencies=0.5x", "--quiet"]) == 0
    assert steps == [record["architecture_steps"]] and steps[0] < 200


def test_a_network_that_two_limits_propose_is_scored_once(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits that bind nothing propose the same networks."""
    scored: list[object] = []
    evaluate = deriving.evaluate

    def counted(*arguments: object, **options: object) -> object:
        scored.append(arguments)
        return evaluate(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(deriving, "evaluate", counted)
    own = ["--derive.arch-steps=0", "--derive.rounds=1", "--quiet"]
    assert main(["derive", str(run_copy), "--latencies=0.9x", *own]) == 0
    once = len(scored)
    scored.clear()
    assert main(["derive", str(run_copy), "--latencies=0.91x,0.9100001x", *own]) == 0
    assert 0 < len(scored) <= once


def test_a_budget_of_deriving_takes_fewer_steps_and_scores(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["derive", str(run_copy), "--latencies=0.5x,0.9x", "--budget=1s"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert said.count("budget: 0:0") == 2
    facts = json.loads((run_copy / "stages" / "derive-0.9x.json").read_text())
    assert len(facts["proposals"]) <= 3


def test_the_command_that_goes_on_names_the_limits(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(session: Session, *_: object) -> None:
        raise Stopped

    monkeypatch.setattr(job, "derive_latencies", stopped)
    assert main(["derive", str(run_copy), "--latencies=0.5x,0.9x", "--budget=3m"]) == 130
    said = capsys.readouterr().err
    assert f"proxylessnas derive {run_copy} --latencies=0.5x,0.9x --budget=3m" in said
