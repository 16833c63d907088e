"""Starts runs as processes of their own, without paying for the imports each time.

Reads requests from stdin, a JSON object a line; answers with the process's id, and with its exit
status when it has ended. Each process is forked from this one, which did a run once: what the
libraries load when they are first used is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch

from proxylessnas.cli.main import main
from proxylessnas.runs.run import Run
from proxylessnas.runs.stages import keeping
from proxylessnas.training import faults as recovery  # imported here, once for all

WORDS = [
    "--data=digits",
    "--space=macro",
    "--space-settings={widths: [8, 8], depths: [1, 2], stem: 8, head: 16}",
    "--runtime=fake",
    "--target-latency=0.7x",
    "--search.warmup-epochs=2",
    "--search.epochs=6",
    "--train.epochs=8",
    "--derive.top-k=4",
    "--loading.limit=200",
    "--machine.memory-format=contiguous",
    "--machine.threads=1",
]


def warm_up() -> None:
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # stdout carries the answers
    with tempfile.TemporaryDirectory() as folder:
        assert main(["run", *WORDS, "--quiet", f"--out={folder}/run"]) == 0
    sys.stdout.flush()
    os.dup2(saved, 1)


def run(request: dict[str, Any]) -> int:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    torch.set_num_threads(1)
    keeping.CHECKPOINT_SECONDS = 0.03
    recovery.ANCHOR_EVERY = 10
    if (limit := request.get("largest_file")) is not None:
        if request.get("dies"):  # in the middle of the write, by the kernel's hand
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if (syncs := request.get("dies_at_sync")) is not None:
        _die_at_sync(syncs)
    if (stage := request.get("stops_in")) is not None:
        _stop_in(stage)
    return main(request["words"])


def _stop_in(stage: str) -> None:
    """SIGTERM comes while the stage is at its work."""
    real = Run.stage

    @contextlib.contextmanager
    def stopping(self: Run, name: str, title: str) -> Iterator[dict[str, Any]]:
        with real(self, name, title) as facts:
            if name == stage:
                os.kill(os.getpid(), signal.SIGTERM)
            yield facts

    Run.stage = stopping  # type: ignore[method-assign]


def _die_at_sync(syncs: int) -> None:
    """Between the writing of a file and its renaming, or after the renaming."""
    real, left = os.fsync, [syncs]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = fsync


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm_up()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = run(json.loads(line))
            except BaseException as error:
                import traceback

                traceback.print_exception(error)
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
