"""A run of a second, and a way to start it as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fork_server import WORDS

HERE = Path(__file__).parent
STAGES = ("measure", "search", "derive", "train", "evaluate", "export")
SAME = (
    *("architecture.json", "weights.safetensors", "inherited.safetensors", "metrics.jsonl"),
    "model.onnx",
)


@dataclass
class Started:
    """A run that goes on; `log` is what it prints."""

    pid: int
    log: Path
    server: Server

    def wait_for(self, text: str) -> bool:
        """Whether the run printed the text before it ended."""
        end = time.monotonic() + 250  # a busy machine is slow
        while time.monotonic() < end:
            if text in self.log.read_text(errors="replace"):
                return True
            if not Path(f"/proc/{self.pid}/exe").exists():
                return text in self.log.read_text(errors="replace")
            time.sleep(0.002)
        raise AssertionError(f"{text!r} never came: {self.log.read_text()}")

    def code(self) -> int:
        """The exit status; minus the signal where one killed it."""
        assert self.server.process.stdout is not None
        return int(self.server.process.stdout.readline())


class Server:
    """One run at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, out: Path, verb: str = "run", **options: Any) -> Started:
        log = self.folder / f"{out.name}.log"
        words = [verb, *WORDS, f"--out={out}", "--resume"]
        request = {"words": words, "log": str(log), **options}
        assert self.process.stdin is not None and self.process.stdout is not None
        log.write_text("")
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Started(int(self.process.stdout.readline()), log, self)

    def run(self, out: Path, **options: Any) -> tuple[int, list[str]]:
        """Exit status and the lines printed."""
        started = self.start(out, **options)
        code = started.code()
        return code, started.log.read_text().strip().splitlines()


def assert_same(out: Path, undisturbed: Path) -> None:
    for name in SAME:
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name
    left = [p for p in out.rglob(".*") if p.name != ".lock"]
    assert left == []
