"""Tiny runs, each a process of its own that tests can stop, kill or starve of disk space."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_run import OPTIONS


@dataclass
class StartedRun:
    """A run that was started; log: the file of all that it prints."""

    pid: int
    log: Path
    server: ForkServer

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
        (code,) = self.server.answer()
        return code


class ForkServer:
    """Starts tiny runs, ranks and scripts, one at a time; see `fork_server`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, out: Path, verb: str = "run", **options: Any) -> StartedRun:
        log = self.folder / f"{out.name}.log"
        words = [verb, *OPTIONS, f"--out={out}", "--resume"]
        (pid,) = self._fork([{"words": words, "log": str(log), **options}])
        return StartedRun(pid, log, self)

    def run(self, out: Path, **options: Any) -> tuple[int, list[str]]:
        """Exit status and the lines printed."""
        started = self.start(out, **options)
        code = started.code()
        return code, started.log.read_text().strip().splitlines()

    def start_script(self, path: Path, *words: str, directory: Path) -> StartedRun:
        """A Python script, as by `python path words...` in the directory."""
        log = self.folder / f"{path.stem}.log"
        request = {"script": str(path), "words": words, "directory": str(directory)}
        (pid,) = self._fork([{**request, "log": str(log)}])
        return StartedRun(pid, log, self)

    def run_script(self, path: Path, *words: str, directory: Path) -> tuple[int, str]:
        """Exit status and output of a Python script."""
        started = self.start_script(path, *words, directory=directory)
        code = started.code()
        return code, started.log.read_text()

    def run_ranks(self, *words: str, ranks: int = 2) -> list[tuple[int, str]]:
        """Exit status and output of each rank; words: see `ranks_worker.start`."""
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused.getsockname()[1])}
        sizes = {"WORLD_SIZE": f"{ranks}", "LOCAL_WORLD_SIZE": f"{ranks}", "GROUP_WORLD_SIZE": "1"}
        common = {
            **address,
            **sizes,
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_RUN_ID": "forked",
        }
        logs = [self.folder / f"rank{rank}.log" for rank in range(ranks)]
        requests = [
            {
                "ranks_worker": words,
                "log": str(log),
                "environment": {**common, "RANK": f"{rank}", "LOCAL_RANK": f"{rank}"},
            }
            for rank, log in enumerate(logs)
        ]
        self._fork(requests)
        return list(zip(self.answer(), [log.read_text() for log in logs], strict=True))

    def run_elastic(self, *words: str, restarts: int) -> tuple[int, str]:
        """Exit status and output of two ranks that torchrun's agent starts again where one dies."""
        log = self.folder / "elastic.log"
        self._fork([{"ranks_worker": words, "restarts": restarts, "log": str(log)}])
        (code,) = self.answer()
        return code, log.read_text()

    def _fork(self, requests: list[dict[str, Any]]) -> list[int]:
        """The ids of the processes."""
        for request in requests:
            Path(request["log"]).write_text("")
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(requests) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> list[int]:
        """The numbers of the next line that the server writes."""
        assert self.process.stdout is not None
        return [int(number) for number in self.process.stdout.readline().split()]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
