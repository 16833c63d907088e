"""The process that starts runs, and the run that nothing happens to."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_server import WORDS
from forked_runs import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("logs"))
    yield server
    assert server.process.stdin is not None
    server.process.stdin.close()
    server.process.wait()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to, by the real command."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    command = [sys.executable, "-m", "proxylessnas", "run", *WORDS, f"--out={out}"]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))
