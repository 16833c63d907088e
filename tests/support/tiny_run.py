"""The options of a run of about a second, the files that runs must agree on, and sharing."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Where an option is given twice, the later one counts.
OPTIONS = (
    "--data=digits",
    "--space=macro",
    "--space-settings={widths: [8, 16], depths: [1, 2], stem: 8, head: 16}",
    "--runtime=fake",
    "--target-latency=0.7x",
    "--measure.networks=4",
    "--search.batch-size=32",
    "--search.warmup-epochs=1",
    "--search.epochs=2",
    "--train.batch-size=32",
    "--train.epochs=2",
    "--derive.top-k=3",
    "--loading.limit=300",
    "--machine.memory-format=contiguous",
    "--machine.depthwise-strips=false",
    "--machine.threads=1",
)
TINY_RUN = (*OPTIONS, "--quiet")
STAGES = ("measure", "search", "derive", "train", "evaluate", "export")
REPEATABLE = (
    *("architecture.json", "weights.safetensors", "inherited.safetensors", "metrics.jsonl"),
    "model.onnx",
)


def assert_same_run(directory: Path, other: Path) -> None:
    """The architecture, the weights, every step's metrics and the exported file: equal bytes."""
    for name in REPEATABLE:
        assert (directory / name).read_bytes() == (other / name).read_bytes(), name
    unfinished = [p for p in directory.rglob(".*") if p.name != ".lock"]
    assert unfinished == []


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A directory that the first pytest-xdist worker to ask for makes, and all of them read."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    directory, complete = shared / name, shared / f"{name}.complete"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            make(directory)
            complete.touch()
    return directory
