"""Checkpoints of the stages that train: saving now and then, going on, stopping politely."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from proxylessnas.core.search import Search
from proxylessnas.errors import RunError, UserError
from proxylessnas.io.stopping import Stopped
from proxylessnas.runs.directory import MALFORMED, checkpoint_name
from proxylessnas.runs.run import Run
from proxylessnas.training.callbacks import Callback, StepMetrics
from proxylessnas.training.faults import State
from proxylessnas.training.loop import run_loop
from proxylessnas.training.train import Training

CHECKPOINT_SECONDS = 30.0


class Keeper:
    """Saves a stage's state now and then, and when the process is asked to stop."""

    def __init__(self, run: Run, stage: str) -> None:
        self.run, self.stage, self.last = run, stage, ""
        self.saved = time.monotonic()

    def drive(self, job: Search | Training, callbacks: Sequence[Callback]) -> None:
        """Take the steps that are left."""
        with self.run.signal.looked_at():
            run_loop(job, self, callbacks)

    def after_step(self, job: Any) -> None:
        if self.run.asked_to_stop():
            self.save(job)
            self.run.ranks.wait()  # torchrun ends all when the first has ended
            raise Stopped
        if time.monotonic() - self.saved > CHECKPOINT_SECONDS:
            self.save(job)

    def save(self, job: Search | Training) -> None:
        self.last = self.run.directory.save_checkpoint(
            self.stage, job.step, *job.state(), keep=job.recovery.anchors
        )
        self.saved = time.monotonic()

    # --- where a search that diverges goes back to, see `recovery` ---

    def keep(self, job: Any) -> None:
        self.save(job)

    def back(self, job: Any) -> State:
        """The state of the last anchor; what came after it is forgotten."""
        directory, recovery = self.run.directory, job.recovery
        step = recovery.anchors[-1]
        state = directory.load_tensors(checkpoint_name(self.stage, step))
        self.run.ranks.wait()  # all have read it
        directory.remove_checkpoints(self.stage, after=step)
        directory.log(stage=self.stage, step=job.step, back_to=step, rate_factor=recovery.factor)
        return state


class Progress(Callback):
    """A stage's steps as a progress bar."""

    def __init__(self, update: Callable[..., None]) -> None:
        self.update = update

    def on_step(self, metrics: StepMetrics) -> None:
        self.update(metrics.step, metrics.total, metrics.phase)


def load_finished(run: Run, stage: str, job: Search | Training) -> None:
    """The state in which a finished stage ended; the run directory is only read."""
    saved = run.directory.load_checkpoint(stage)
    if saved is None:
        raise RunError(f"{run.directory.path} has no whole checkpoint of {stage}: do it again")
    _load(run, stage, job, saved)


def resume(run: Run, stage: str, job: Search | Training) -> None:
    """Go on from the newest whole checkpoint, if there is one."""
    saved = run.directory.load_checkpoint(stage)
    if saved is None:
        run.ranks.check_agreed("the checkpoint", "none")
        run.directory.cut_metrics_of(stage)
        return
    run.ranks.check_agreed("the checkpoint", str(saved[1].get("step")))
    _load(run, stage, job, saved)
    run.directory.cut_metrics(int(saved[1]["metrics_size"]))
    run.reporter.say(f"  goes on at step {job.step}")


def _load(run: Run, stage: str, job: Search | Training, saved: State) -> None:
    """Raises RunError where the checkpoint is not of this run."""
    try:
        if not 0 <= int(saved[1]["metrics_size"]) < 1 << 62:
            raise ValueError("its metrics_size is out of range")
        job.load(*saved)
    except UserError:
        raise
    except (*MALFORMED, RuntimeError) as error:  # torch: shapes that differ
        raise RunError(
            f"the checkpoint of {stage} in {run.directory.path} is not of this run "
            f"({type(error).__name__}): remove it, or choose another --out"
        ) from None
