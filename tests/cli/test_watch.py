"""The terminal's view of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxylessnas.cli.main import main
from proxylessnas.cli.watch import sparkline


def test_a_finished_and_an_unfinished_run(
    finished_run: Path, run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", str(finished_run)]) == 0
    out = capsys.readouterr().out
    assert (
        "finished" in out and "search, step" in out and "(limit " in out and "test accuracy" in out
    )
    (run_copy / "stages" / "export.json").unlink()
    with (run_copy / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "train", "st')  # a line that is being written
    assert main(["watch", str(run_copy), "--once"]) == 0
    assert "to come: export" in capsys.readouterr().out
    assert main(["watch", "/nowhere"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_curves() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline(list(range(1000)), width=8) == "▁▂▃▄▅▆▇█"
