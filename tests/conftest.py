"""One thread, seeded weights, an amount of examples, and a finished run that tests share."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Two workers share two cores, so neither they nor the processes that they start take more than one.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
import torch
from amounts import examples
from forked_runs import ForkServer
from tiny_run import TINY_RUN, made_once

torch.set_num_threads(1)
hypothesis.settings.register_profile("tests", examples(40))
hypothesis.settings.load_profile("tests")
FORKING = (
    *("tests/faults/", "tests/session/test_doors.py"),
    *("tests/training/test_ranks.py", "tests/test_examples.py"),
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests go to one worker, and all that fork runs to the worker of the fork server."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "fork server" if nodeid.startswith(FORKING) else super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Fresh weights are the same whatever test ran before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _as_wide_as_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are not cut to the width of the terminal that the tests were started from."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="module", autouse=True)
def _imported_for_good() -> None:
    """Garbage collections, of which trials of weight steps make many, pass by what is imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny run, by the real command, that nothing disturbed.

    All workers share it: files are read from it, commands are given a copy.
    """

    def make(directory: Path) -> None:
        command = [sys.executable, "-m", "proxylessnas", "run", *TINY_RUN, f"--out={directory}"]
        subprocess.run(command, check=True, capture_output=True)

    return made_once(tmp_path_factory, "finished_run", make)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Starts runs as processes of their own, without the seconds that imports take."""
    server = ForkServer(tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to go on from or to be damaged."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
