"""A full disk: one clear line, nothing damaged, and on it goes when there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked_runs import ForkServer
from tiny_run import assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 16 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def resized(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def assert_one_line(code: int, lines: list[str], reason: str) -> None:
    assert code == 2, lines
    last = " ".join(lines).rpartition("proxylessnas: ")[2]
    assert "cannot write" in last and reason in last, lines
    assert "Traceback" not in " ".join(lines)


def test_a_full_disk(server: ForkServer, finished_run: Path, small_disk: Path) -> None:
    """Full at several points of the run, then room."""
    out = small_disk / "run"
    for size in ("16k", "80k", "200k"):
        resized(small_disk, size)
        code, lines = server.run(out)
        assert_one_line(code, lines, "No space left on device")
    resized(small_disk, "8m")
    code, lines = server.run(out)
    assert code == 0, lines
    assert_same_run(out, finished_run)


@pytest.mark.parametrize("limit", [800, 3_000, 20_000])
def test_a_file_that_may_not_grow(
    server: ForkServer, finished_run: Path, tmp_path: Path, limit: int
) -> None:
    """Without root: the kernel refuses to write a longer file."""
    out = tmp_path / f"limit{limit}"
    code, lines = server.run(out, largest_file=limit)
    assert_one_line(code, lines, "File too large")
    code, lines = server.run(out)
    assert code == 0, lines
    assert_same_run(out, finished_run)
