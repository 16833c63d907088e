"""Checkpoints of a loop in a store: saving now and then, going on, stopping politely."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from proxylessnas.errors import RunError, UserError, one_line
from proxylessnas.io.console import Reporter
from proxylessnas.io.stopping import Signal, Stopped
from proxylessnas.session.store import MALFORMED, Store, checkpoint_name
from proxylessnas.training.faults import State
from proxylessnas.training.job import Job

CHECKPOINT_SECONDS = 30.0


class Loads(Protocol):
    """What takes a checkpoint's state: a job, or a part of one."""

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None: ...


class StoreCheckpoints:
    """A stage's states in a directory; see `training.loop.Checkpoints`.

    clock: seconds that only grow.
    """

    def __init__(
        self, store: Store, stage: str, signal: Signal, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.store, self.stage, self.signal, self.clock = store, stage, signal, clock
        self.saved_at, self.last = clock(), ""

    def after_step(self, job: Job) -> None:
        if job.ranks.any(self.signal.requested):
            self.save(job)
            job.ranks.wait()  # torchrun ends all when the first has ended
            raise Stopped
        if self.clock() - self.saved_at > CHECKPOINT_SECONDS:
            self.save(job)

    def save(self, job: Job) -> str:
        """Write the job's state; returns the file's name."""
        self.last = self.store.save_checkpoint(
            self.stage, job.step, job.state(), keep=job.recovery.anchors
        )
        self.saved_at = self.clock()
        return self.last

    def keep(self, job: Job) -> None:
        self.save(job)

    def back(self, job: Job) -> State:
        """The state of the last anchor; what came after it is forgotten."""
        recovery, step = job.recovery, job.recovery.anchors[-1]
        state = self.store.load_tensors(checkpoint_name(self.stage, step))
        job.ranks.wait()  # all have read it
        self.store.remove_checkpoints(self.stage, after=step)
        self.store.log(stage=self.stage, step=job.step, back_to=step, rate_factor=recovery.factor)
        return state

    # --- going on ---

    def resume(self, job: Job, reporter: Reporter) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        state = self.store.load_checkpoint(self.stage)
        if state is None:
            job.ranks.check_agreed("the checkpoint", "none")
            self.store.cut_metrics_of(self.stage)
            return
        job.ranks.check_agreed("the checkpoint", str(state[1].get("step")))
        self._load(job, state)
        self.store.cut_metrics(int(state[1]["metrics_size"]))
        reporter.say(f"  goes on at step {job.step}")

    def load_finished(self, job: Loads) -> None:
        """The state in which a finished stage ended; the store is only read.

        Raises:
            RunError: there is none that is whole.
        """
        state = self.store.load_checkpoint(self.stage)
        if state is None:
            raise RunError(
                f"{self.store.path} has no whole checkpoint of {self.stage}: do it again"
            )
        self._load(job, state)

    def _load(self, job: Loads, state: State) -> None:
        """Raises RunError where the checkpoint is not of this run."""
        try:
            if not 0 <= int(state[1]["metrics_size"]) < 1 << 62:
                raise ValueError("its metrics_size is out of range")
            job.load(*state)
            if isinstance(job, Job) and (unlike := _unlike(state, job.state())):
                raise ValueError(f"its {unlike} is another's")
        except UserError:
            raise
        except (*MALFORMED, RuntimeError) as error:  # torch: shapes that differ
            raise RunError(
                f"the checkpoint of {self.stage} in {self.store.path} is not of this run "
                f"({one_line(error)}): remove it, or choose another directory"
            ) from None


def _unlike(given: State, loaded: State) -> str:
    """What a job did not take as it stands, by its name; "" where all is there again."""
    values = {name: json.dumps(value) for name, value in loaded[1].items()}
    for name in given[0].keys() ^ loaded[0].keys():
        return name
    for name, value in values.items():
        if json.dumps(given[1].get(name)) != value:
            return name
    pairs = ((name, tensor, loaded[0][name]) for name, tensor in given[0].items())
    return next((name for name, a, b in pairs if not _same_bits(a, b)), "")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Of two tensors wherever they are; NaN is NaN."""
    one, other = (t.detach().cpu().contiguous() for t in (one, other))
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (one, other)))
