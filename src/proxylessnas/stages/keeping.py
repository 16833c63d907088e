"""Checkpoints of the stages that train: saving now and then, going on, stopping politely."""

from __future__ import annotations

import time

from ..errors import RunError
from ..loop import Search
from ..run import Run
from ..train import Training

CHECKPOINT_SECONDS = 30.0


class Stopped(BaseException):
    """SIGTERM or Ctrl-C came; the state was saved."""


class Keeper:
    """Saves a stage's state now and then, and when the process is asked to stop."""

    def __init__(self, run: Run, stage: str) -> None:
        self.run, self.stage, self.last = run, stage, ""
        self.saved = time.monotonic()

    def save_if_due(self, job: Search | Training) -> None:
        if self.run.asked_to_stop():
            self.save(job)
            self.run.ranks.wait()  # torchrun ends all when the first has ended
            raise Stopped
        if time.monotonic() - self.saved > CHECKPOINT_SECONDS:
            self.save(job)

    def save(self, job: Search | Training) -> None:
        self.last = self.run.directory.save_checkpoint(self.stage, job.step, *job.state())
        self.saved = time.monotonic()


def load_finished(run: Run, stage: str, job: Search | Training) -> None:
    """The state in which a finished stage ended; the run directory is only read."""
    saved = run.directory.load_checkpoint(stage)
    if saved is None:
        raise RunError(f"{run.directory.path} has no whole checkpoint of {stage}: do it again")
    job.load(*saved)


def resume(run: Run, stage: str, job: Search | Training) -> None:
    """Go on from the newest whole checkpoint, if there is one."""
    saved = run.directory.load_checkpoint(stage)
    if saved is None:
        run.ranks.check_agreed("the checkpoint", "none")
        run.directory.cut_metrics_of(stage)
        return
    tensors, values = saved
    run.ranks.check_agreed("the checkpoint", values["step"])
    run.directory.cut_metrics(values["metrics_size"])
    job.load(tensors, values)
    run.reporter.say(f"  goes on at step {job.step}")
