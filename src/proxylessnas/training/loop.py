"""The one loop under search and training: steps, checkpoints, recovery, callbacks.

A `Job` knows what one step is and what its state is; the loop decides when to take steps, when
to keep a state to go back to, what to do where numbers are not finite, and whom to tell. A
search whose schedule has weight steps alone, or architecture steps alone, is a job as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from proxylessnas.training.callbacks import Callbacks, StopStage
from proxylessnas.training.faults import MAX_BAD_STEPS, Diverged, State, explained
from proxylessnas.training.job import Job


class Checkpoints(Protocol):
    """Where a job's states are kept."""

    def keep(self, job: Job) -> None:
        """Keep an anchor: a state to go back to, see `faults.Recovery`."""

    def back(self, job: Job) -> State:
        """The state of the last anchor."""

    def after_step(self, job: Job) -> None:
        """Save if that is due; raises `Stopped` where the process was asked to stop."""


class MemoryCheckpoints:
    """The last anchor in memory, of a job whose state is saved nowhere."""

    def keep(self, job: Job) -> None:
        tensors, values = job.state()
        self.state = {k: v.detach().cpu().clone() for k, v in tensors.items()}, values

    def back(self, job: Job) -> State:
        return self.state

    def after_step(self, job: Job) -> None:
        pass


def run_loop(
    job: Job,
    checkpoints: Checkpoints | None = None,
    callbacks: Sequence[Any] | Callbacks = (),
    *,
    before: Callable[[], object] = lambda: None,
) -> None:
    """Take the steps that are left.

    before: called once the model is in the state in which it takes steps.

    Raises:
        UserError: numbers that are not finite again and again, or too little memory; both in
            one line that says what to change.
    """
    checkpoints = checkpoints or MemoryCheckpoints()
    callbacks = callbacks if isinstance(callbacks, Callbacks) else Callbacks(callbacks)
    undo = job.prepare()
    try:
        before()
        while job.step < job.total:
            if _step(job, checkpoints):
                _tell(job, callbacks)
                checkpoints.after_step(job)
    except Diverged as failure:
        if not job.give_up():
            raise
        warnings.warn(f"{failure}; the best weights so far are the result", stacklevel=2)
    finally:
        undo()


def _step(job: Job, checkpoints: Checkpoints) -> bool:
    """One step; False where the job went back to an anchor instead."""
    with explained(lambda: job.batch, job.retry):
        recovery = job.recovery
        if recovery.anchor_due(job.step):
            checkpoints.keep(job)
        job.take_step()
        # A GPU's verdict on a step is read one step later, so that the host need not wait.
        recovery.read(but=1 if job.step + 1 < job.total else 0)
        if recovery.lost:
            _go_back(job, checkpoints)
            return False
        job.step += 1
    return True


def _go_back(job: Job, checkpoints: Checkpoints) -> None:
    """Let the job be what it was at its last anchor, but for the learning rate."""
    recovery, step = job.recovery, job.step
    recovery.count_return(step, job.rate)
    job.load(*checkpoints.back(job))
    job.recovery.returns = recovery.returns
    warnings.warn(
        f"{recovery.failure} {MAX_BAD_STEPS} times in a row: back from step {step} to step "
        f"{job.step}, with {recovery.factor:g} of the learning rate",
        stacklevel=2,
    )


def _tell(job: Job, callbacks: Callbacks) -> None:
    """Call the callbacks; where one raises `StopStage`, this was the job's last step."""
    if not callbacks:
        return
    stop = False
    try:
        if (architecture := job.architecture_metrics()) is not None:
            callbacks.on_architecture_step(architecture)
        if (metrics := job.metrics()) is not None:
            callbacks.on_step(metrics)
    except StopStage:
        stop = True
    if job.ranks.any(stop):  # all ranks take the same steps
        job.stop()
