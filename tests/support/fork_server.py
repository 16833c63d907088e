"""The process that `forked_runs.ForkServer` starts: it forks one for every run asked of it.

It reads from stdin, a line at a time, a JSON list of requests whose processes run side by side
(ranks), and answers with a line of their ids, then with a line of their exit statuses. A forked
process has imported everything, and has loaded what libraries load at their first use, as this
one has done a run before: a run takes one second in place of eight.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import runpy
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import Any

import ranks_worker
import torch
from tiny_run import TINY_RUN
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from proxylessnas.cli.main import main
from proxylessnas.session import checkpoints
from proxylessnas.session.records import Records
from proxylessnas.training import faults


def warm_up() -> None:
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # stdout carries the answers
    with tempfile.TemporaryDirectory() as folder:
        assert main(["run", *TINY_RUN, f"--out={folder}/run"]) == 0
    sys.stdout.flush()
    os.dup2(saved, 1)


def run(request: dict[str, Any]) -> int:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    torch.set_num_threads(1)
    os.environ.update(request.get("environment", {}))
    if (script := request.get("script")) is not None:
        return run_script(script, request["words"], request["directory"])
    if (worker := request.get("ranks_worker")) is not None:
        restarts = request.get("restarts")
        if restarts is None:
            return ranks_worker.start(worker)
        return run_elastic(worker, restarts)
    checkpoints.CHECKPOINT_SECONDS = 0.03
    faults.ANCHOR_EVERY = 10
    if (limit := request.get("largest_file")) is not None:
        if request.get("dies"):  # in the middle of the write, by the kernel's hand
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if (syncs := request.get("dies_at_sync")) is not None:
        _die_at_sync(syncs)
    if (stage := request.get("stops_in")) is not None:
        _stop_in(stage)
    return main(request["words"])


def run_script(path: str, words: list[str], directory: str) -> int:
    """As `python path words...` in the directory."""
    os.chdir(directory)
    sys.argv = [path, *words]
    sys.path[0] = os.path.dirname(path)
    runpy.run_path(path, run_name="__main__")
    return 0


def run_elastic(words: list[str], restarts: int) -> int:
    """Two ranks under torchrun's agent, which starts them again where one dies; it forks them."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.1,
        start_method="fork",
    )
    codes = elastic_launch(config, ranks_worker.start)(words)
    return max(codes.values())


def _stop_in(stage: str) -> None:
    """SIGTERM comes while the stage is at its work."""
    real = Records.stage

    @contextlib.contextmanager
    def stopping(self: Records, name: str, title: str, *rest: Any) -> Iterator[dict[str, Any]]:
        with real(self, name, title, *rest) as facts:
            if name == stage:
                os.kill(os.getpid(), signal.SIGTERM)
            yield facts

    Records.stage = stopping  # type: ignore[method-assign]


def _die_at_sync(syncs: int) -> None:
    """Between the writing of a file and its renaming, or after the renaming."""
    real, left = os.fsync, [syncs]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = fsync


def fork(request: dict[str, Any]) -> int:
    """The id of a process that does what is asked for, and ends."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        code = run(request)
    except BaseException as error:
        traceback.print_exception(error)
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm_up()
    for line in sys.stdin:
        processes = [fork(request) for request in json.loads(line)]
        print(*processes, flush=True)
        print(*(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in processes), flush=True)
