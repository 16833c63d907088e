"""Finished stages: a record each, whose files' checksums prove that it is still true."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from annotated_types import Ge, Le

from proxylessnas.errors import RunError
from proxylessnas.io.console import Reporter, duration
from proxylessnas.io.stopping import Signal
from proxylessnas.schema import Hint, from_plain
from proxylessnas.session import STAGES
from proxylessnas.session.checkpoints import StoreCheckpoints
from proxylessnas.session.store import MODEL, Store
from proxylessnas.training.callbacks import (
    Callback,
    Callbacks,
    MetricsLog,
    ProgressBar,
    StageMetrics,
)
from proxylessnas.training.job import Job
from proxylessnas.training.loop import run_loop
from proxylessnas.training.ranks import Ranks

BASELINES = ("largest", "random")
_BASELINE_STAGES = tuple(f"{s}-{name}" for name in BASELINES for s in ("train", "evaluate"))
# What later stages and the summary take from a record, which may have been edited by hand.
_Count = Annotated[int, Ge(0)]
_Share = Annotated[float, Ge(0), Le(1)]
_Seconds = Annotated[float, Ge(0), Le(1e9)]
FACTS: dict[str, dict[str, Hint]] = {
    "search": {
        **{"entropy": _Share, "straightness": float | None, "architecture_steps": _Count},
    },
    "derive": {"predicted": dict[str, float], "measured_ms": float | None},
    "evaluate": {
        **{"accuracy": _Share | None, "loss": float | None, "examples": _Count},
        "training_accuracy": _Share | None,
    },
    "export": {
        **dict.fromkeys(("measured_ms", "measured_raw_ms"), float | None),
        **dict.fromkeys(("canary_drift", "noise_pct"), float | None),
        **{"largest_difference": float, "baselines_ms": dict[str, float | None]},
    },
}
_ORDER = (*STAGES[:-1], *_BASELINE_STAGES, "by-hand", STAGES[-1])


class Records:
    """The records of a store's stages, on one of the ranks."""

    def __init__(self, store: Store, ranks: Ranks, reporter: Reporter) -> None:
        self.store, self.ranks, self.reporter = store, ranks, reporter

    def done(self, stage: str) -> bool:
        """Whether a stage's record is there, and its files are what it left.

        Rank 0 looks, for all: another one may already see what rank 0 does next.
        """

        def look() -> bool:
            record = self.read(stage)
            return record is not None and not self.damaged(record)

        return self.ranks.of_main(look)

    def damaged(self, record: Mapping[str, Any]) -> list[str]:
        """The files of a record that are missing, or not what the stage left."""
        digests: dict[str, Any] = record["files"]
        now = {name: self.store.digest(name) for name in digests}
        return [name for name, digest in now.items() if digest is None or digest != digests[name]]

    def read(self, stage: str) -> dict[str, Any] | None:
        name = _name(stage)
        if not self.store.has(name):
            return None
        record = self.store.read_json(name)
        if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
            raise RunError(
                f"{self.store.file(name)} is damaged; remove it, and {self._going_on} does it again"
            )
        return record

    def require(self, stage: str) -> dict[str, Any]:
        """A finished stage's record.

        Raises:
            RunError: the stage is not finished, or its record is not what the stage wrote.
        """
        record = self.read(stage) if self.done(stage) else None
        if record is None:
            self.check_files(stage)
            where = self.store.path
            place = "" if where is None else f" of {where}"
            remedy = "" if where is None else f": {self._to_do(stage)} first"
            raise RunError(f"the stage {stage}{place} is not finished{remedy}")
        try:
            for name, hint in {
                **FACTS.get(stage.partition("-")[0], {}),
                "seconds": _Seconds,
            }.items():
                record[name] = from_plain(hint, record.get(name), name, RunError)
        except RunError as error:
            raise RunError(
                f"{self.store.file(_name(stage))} is damaged: {error}; remove it, and "
                f"{self._going_on} does {stage} and what follows again"
            ) from None
        return record

    def check_files(self, stage: str) -> None:
        """Raises RunError where a finished stage's file is no longer what the stage left."""

        def look() -> list[str]:
            record = self.read(stage)
            return [] if record is None else self.damaged(record)

        for file in self.ranks.of_main(look):
            raise RunError(
                f"{self.store.file(file)} is missing or was changed since the stage {stage} wrote "
                f"it: put it back, or {self._to_do(stage)} again"
            )

    @property
    def _going_on(self) -> str:
        return "the same call of search(out=...)" if self.store.has(MODEL) else "--resume"

    def _to_do(self, stage: str) -> str:
        """How a person has a stage done."""
        if self.store.has(MODEL):
            return f"make {self._going_on}"
        return f"run proxylessnas {stage} --out {self.store.path}"

    @contextmanager
    def stage(
        self, name: str, title: str, callbacks: Callbacks | None = None
    ) -> Iterator[dict[str, Any]]:
        """One stage: a title, then the facts that the block puts into its record, timed.

        The record's `files` are names in the store; they are kept as checksums.
        """
        self.ranks.check_agreed("what is done already", name)
        if self.ranks.is_main:
            self._begin(name)
        self.reporter.say(f"{name}: {title}")
        start = time.monotonic()
        facts: dict[str, Any] = {"files": ()}
        with self.reporter.warnings_as_lines():
            yield facts
        seconds = round(time.monotonic() - start, 3)
        files = {file: self.store.digest(file) for file in facts.pop("files")}
        self.store.write_json(_name(name), {**facts, "seconds": seconds, "files": files})
        if not self.store.keeps_checkpoints:
            self.store.drop_checkpoints(name, but=files)
        self.ranks.wait()  # nobody looks for this record before it is there
        self.reporter.say(f"  done in {duration(seconds)}")
        if callbacks is not None:
            callbacks.on_stage_end(StageMetrics(stage=name, facts=facts, seconds=seconds))

    def _begin(self, stage: str) -> None:
        """What later stages made of an earlier end of this one must not be taken for its own.

        Raises:
            RunError: a file of this stage was changed after later ones used it. Their work may
                be worth days, so the user says whether it goes.
        """
        later = self._later(stage)
        record = self.read(stage)
        if later and record is not None:
            (first, *_) = self.damaged(record) or ["a file"]
            raise RunError(
                f"{self.store.file(first)} is missing or was changed after {later[0]} used it: "
                f"put it back, or remove {self.store.file(_name(stage))} to do it and what "
                "follows again"
            )
        for name in later:
            self.store.remove(_name(name))
            self.store.remove_checkpoints(name)

    def drive(
        self,
        stage: str,
        job: Job,
        words: str,
        callbacks: Sequence[Callback] = (),
        *,
        before: Callable[[], object] = lambda: None,
        signal: Signal | None = None,
    ) -> str:
        """Take a stage's steps, on from the checkpoint that there is.

        before: see `run_loop`. signal: of a process that was asked to stop.
        Returns the name of the last checkpoint, "" in memory.
        """
        with self.reporter.bar(words) as update:
            callbacks, signal = [ProgressBar(update), *callbacks], signal or Signal()
            if self.store.path is None:
                run_loop(job, callbacks=callbacks, before=before)
                return ""
            checkpoints = StoreCheckpoints(self.store, stage, signal)
            checkpoints.resume(job, self.reporter)
            with signal.looked_at():
                log = MetricsLog(self.store.log)
                run_loop(job, checkpoints, [log, *callbacks], before=before)
            return checkpoints.save(job)

    def below(self, folder: str) -> Records:
        """Records of a store within this one."""
        return Records(self.store.below(folder), self.ranks, self.reporter)

    def undo(self, stage: str) -> list[str]:
        """Forget a stage and all that was done upon it; returns what was done of these."""
        stages = [stage, *self._later(stage)]
        done = self.ranks.of_main(lambda: [name for name in stages if self.read(name) is not None])
        if self.ranks.is_main:
            for name in stages:
                self.store.remove(_name(name))
                self.store.remove_checkpoints(name)
        self.ranks.wait()
        return done

    def _later(self, stage: str) -> list[str]:
        """Stages that were done, or begun, upon this one."""
        if stage not in _ORDER:
            return []
        following = _ORDER[_ORDER.index(stage) + 1 :]
        later = [s for s in following if self.read(s) is not None or self.store.checkpoints(s)]
        if stage in ("measure", "search"):  # networks for other limits
            later += self.other_limits()
        return later

    def other_limits(self) -> list[str]:
        """The stages that derived networks for other limits."""
        stages = (re.fullmatch(r"stages/(derive-.*)\.json", name) for name in self.store.names())
        return [match[1] for match in stages if match]


def _name(stage: str) -> str:
    return f"stages/{stage}.json"
