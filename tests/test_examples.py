"""The examples run as a user runs them; `--quick` keeps each to seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("audio1d", "test accuracy"),
        ("segmentation", "of the test pixels right"),
        ("transformer", "test accuracy"),
    ],
)
def test_example_runs(name: str, says: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), "--quick"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
