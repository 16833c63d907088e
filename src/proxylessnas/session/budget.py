"""A budget: what a run may take by the clock, divided anew among the stages that are left.

The clock starts with the command, and everything counts: reading, trials, measuring, deriving.
Whatever an earlier stage took too much or too little is shared by those that come after it.

How a stage joins: it has a share in its road's `shares`, whose order is that of the stages. When
it begins it asks `budget.seconds_for(STAGE)`, fits its settings to these seconds, and records them
with `budget.keep(...)`, so that a run that goes on does not fit them again (`fitting.py` does that
for the stages of a search from scratch). What a stage takes at least, and what an export takes
whatever is fitted, is set aside: `budget.reserve(STAGE, seconds)`; only the rest is divided.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxylessnas.config import parse_minutes
from proxylessnas.errors import RunError
from proxylessnas.schema import from_plain
from proxylessnas.session.store import Store
from proxylessnas.training.callbacks import Callback, StepMetrics, StopStage
from proxylessnas.training.job import Job

FILE = "budget.json"
FROM_SCRATCH = {"measure": 0.1, "search": 0.38, "derive": 0.11, "train": 0.41}
LONGER, ENOUGH = 1.15, 0.5  # of its seconds and of its steps: a search that took both ends
MARGIN = 0.02  # of what is left: the noise of all estimates
# Python's end takes about a fifth of its start, which is heard of when the budget is opened.
ENDING, MOST_ENDING = 0.2, 0.03  # of these seconds, and of the budget
QUARTERS, WORTH_A_CHANGE = (0.25, 0.5, 0.75), 0.03
KEPT = {"fitted": list[str], "reserved": dict[str, float], "speeds": dict[str, float]}


@dataclass(kw_only=True)
class Budget:
    """What is left of the time that a run may take.

    total: seconds that were asked for. shares: of every stage that is fitted, in their order.
    started: when the command began, in seconds of `clock`. before: seconds that the run had taken
    by then, in processes that were stopped. fitted: the stages whose settings are decided.
    reserved: seconds that are kept for stages, by their names. speeds: seconds of whatever was
    timed for the fits, for a run that goes on. fits: of the stages' settings, see `fitting.fit`.
    """

    total: float
    shares: Mapping[str, float]
    started: float
    before: float = 0.0
    fitted: list[str] = field(default_factory=list)
    reserved: dict[str, float] = field(default_factory=dict)
    speeds: dict[str, float] = field(default_factory=dict)
    fits: Mapping[str, Any] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic

    @property
    def spent(self) -> float:
        """Seconds since the command began, and what the run took in earlier processes."""
        return self.before + self.clock() - self.started

    @property
    def left(self) -> float:
        """Seconds; negative where the budget is exceeded."""
        return self.total - self.spent

    @property
    def spare(self) -> float:
        """Seconds that no stage to come needs."""
        return self._free(self.fitted)

    def _free(self, stages: Sequence[str]) -> float:
        """Seconds that are left for these stages: what is kept for others is taken off."""
        kept = sum(seconds for name, seconds in self.reserved.items() if name not in stages)
        return self.left * (1 - MARGIN) - kept

    def seconds_for(self, stage: str) -> float:
        """Seconds of what is left that are this stage's, with all stages from it on to come.

        At least 0: what is kept for it, and its share of what nothing is kept for.
        """
        names = list(self.shares)
        begun, coming = names[: names.index(stage) + 1], names[names.index(stage) :]
        free = max(0.0, self._free(begun))
        least = min(free, self.reserved.get(stage, 0.0))
        return least + (free - least) * self.shares[stage] / sum(self.shares[n] for n in coming)

    def reserve(self, stage: str, seconds: float) -> None:
        """Keep seconds for a stage, in place of what was kept for it before."""
        self.reserved[stage] = seconds

    def keep(self, store: Store, fitted: str | None = None) -> None:
        """Write down what was spent and fitted, for a run that is stopped and goes on."""
        if fitted is not None:
            self.fitted.append(fitted)
        store.write_json(FILE, {"spent": self.spent, **{k: getattr(self, k) for k in KEPT}})


class Pace(Callback):
    """Fits the steps of a stage anew at each quarter: they may take longer than at first.

    job: the stage's. grows: whether it may become longer, too.
    """

    def __init__(self, budget: Budget, stage: str, job: Job, *, grows: bool) -> None:
        self.budget, self.stage, self.job, self.grows = budget, stage, job, grows
        self.began: tuple[int, float] | None = None  # a step, and the clock after it
        self.marks = [share * job.total for share in QUARTERS]

    def on_step(self, metrics: StepMetrics) -> None:
        job, now = self.job, self.budget.clock()
        if self.began is None:
            self.began = job.step, now
        due = [mark for mark in self.marks if job.step >= mark]
        if not due or job.step == self.began[0]:
            return
        self.marks = self.marks[len(due) :]
        each = (now - self.began[1]) / (job.step - self.began[0])
        fitted = job.step + max(1, round(self.budget.seconds_for(self.stage) / max(each, 1e-9)))
        if not self.grows:
            fitted = min(fitted, job.total)
        if abs(fitted / job.total - 1) > WORTH_A_CHANGE:
            job.total = fitted


class Deadline(Callback):
    """Ends a search whose steps take longer than they were timed: what follows needs the time."""

    def __init__(self, budget: Budget, stage: str, job: Job) -> None:
        self.budget, self.job = budget, job
        self.end = budget.clock() + LONGER * budget.seconds_for(stage)
        self.least = job.step + ENOUGH * (job.total - job.step)

    def on_step(self, metrics: StepMetrics) -> None:
        if self.budget.clock() > self.end and self.job.step >= self.least:
            raise StopStage


def open_budget(
    text: str | None,
    store: Store,
    started: float,
    shares: Mapping[str, float] = FROM_SCRATCH,
    fits: Mapping[str, Any] | None = None,
) -> Budget | None:
    """The budget of a run that begins or goes on; None without one.

    text: as the settings have it, `10m`. started: when the command began (`time.monotonic`).
    shares, fits: of the road that the run takes; default: from scratch.

    Raises:
        RunError: what an earlier process wrote down is damaged.
    """
    if text is None:
        return None
    total = 60 * parse_minutes(text)
    budget = Budget(total=total, shares=shares, started=started, fits=fits or {})
    budget.reserve("exit", min(ENDING * budget.spent, MOST_ENDING * total))
    if store.has(FILE):
        values, where = store.read_json(FILE), str(store.file(FILE))
        if not isinstance(values, dict) or values.keys() != {"spent", *KEPT}:
            raise RunError(f"{where} is damaged: remove it, and what is to come is fitted anew")
        budget.before = from_plain(float, values["spent"], f"{where}: spent", RunError)
        for name, kind in KEPT.items():
            setattr(budget, name, from_plain(kind, values[name], f"{where}: {name}", RunError))
    return budget
