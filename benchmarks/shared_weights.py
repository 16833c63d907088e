"""Shared weights of a supernet, trained once and kept: for the benchmarks whose answers are known.

A search is judged under many limits and by many tables, while the weights that all of them share
take most of its time. So these are trained by themselves, with uniform paths, and a file keeps
them. Images may be halved, which takes a quarter of the time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from torch.nn import functional

from proxylessnas.config import SearchSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import Supernet
from proxylessnas.data import Batches
from proxylessnas.io.console import Reporter
from proxylessnas.io.stopping import Signal
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.session.checkpoints import StoreCheckpoints
from proxylessnas.training.callbacks import ProgressBar
from proxylessnas.training.device import Machine
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import Task

BATCH = 64
TRIED = 24  # steps that tell how many fit into the minutes
STAGE = "shared"


def partial_of(file: Path) -> Path:
    """Where a training goes on that is to leave a file of weights."""
    return file.with_suffix(".part")


@dataclass(frozen=True)
class Halved:
    """Batches of images of half the side: the averages of four pixels."""

    batches: Batches

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for images, target in self.batches.epoch(*args, **kwargs):
            yield functional.avg_pool2d(images, 2), target


@dataclass(frozen=True, kw_only=True)
class SharedWeights:
    """How a supernet's weights are trained.

    train, valid: batches of `BATCH` images. paths: the candidates of a step, by its number; None:
    every candidate once a shuffled round. facts: what else the weights depend on, kept beside them.
    """

    supernet: Supernet
    train: Batches
    valid: Batches
    machine: Machine
    seed: int
    minutes: float
    paths: Callable[[int], Sequence[int]] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def load(self, file: Path) -> dict[str, Any]:
        """The weights of a file into the supernet; trained and written where it is missing.

        Returns what the file says of their training. A training that was interrupted goes on.

        Raises:
            SystemExit: the file's weights were trained with other facts.
        """
        store = RunDirectory(file.parent)
        if not file.exists():
            made = self._train(RunDirectory(partial_of(file)))
            made |= self.facts
            store.save_tensors(file.name, self.supernet.model.state_dict(), made)
            shutil.rmtree(partial_of(file))
        made = store.load_tensors(file.name)[1]
        for name, value in self.facts.items():
            if made.get(name, value) != value:
                raise SystemExit(
                    f"{file} was trained with {name} {made[name]}, not {value}: give the same "
                    "option, or another file"
                )
        store.load_weights(file.name, self.supernet.model)
        return made

    def _train(self, store: RunDirectory) -> dict[str, Any]:
        if not store.has("steps.json"):
            store.write_json("steps.json", self._steps())
        job, reporter, start = self._job(store.read_json("steps.json")), Reporter(), process_time()
        checkpoints = StoreCheckpoints(store, STAGE, Signal())
        checkpoints.resume(job, reporter)
        with reporter.bar("shared weights") as update:
            run_loop(job, checkpoints, [ProgressBar(update)])
        return {"steps": job.total, "seed": self.seed, "cpu_s": process_time() - start}

    def _steps(self) -> int:
        """How many fit into the minutes, by a few that are tried."""
        before = {k: v.clone() for k, v in self.supernet.model.state_dict().items()}
        start = perf_counter()
        run_loop(self._job(TRIED))
        each = (perf_counter() - start) / TRIED
        self.supernet.model.load_state_dict(before)
        return max(1, round(60 * self.minutes / each))

    def _job(self, steps: int) -> Search:
        settings = SearchSettings(
            learning_rate=0.05,
            batch_size=BATCH,
            label_smoothing=0.0,
            weight_decay=1e-4,
            estimator="random",
        )
        return Search.from_settings(
            settings,
            supernet=self.supernet,
            task=Task.classification(),
            train=self.train,
            valid=self.valid,
            costs=Costs.free(*self.supernet.mask.shape),
            schedule=Schedule(warmup=steps, total=steps, arch_every=1, arch_from=steps),
            seed=self.seed,
            machine=self.machine,
            uniform_gates=self.paths,
        )
