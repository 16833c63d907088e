"""One job: a problem, settings and a store, and what follows from the three.

The stages (`measuring.py`, `searching.py`, `deriving.py`, `finishing.py`, `exporting.py`) are
functions of a session. Both doors, the Python call and the command line, use them, so they
cannot drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture
from proxylessnas.config import RunConfig, TrainSettings
from proxylessnas.core.decode import Indices
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import Supernet
from proxylessnas.data import Batches
from proxylessnas.errors import ArchitectureError
from proxylessnas.io.stopping import Signal
from proxylessnas.selection.predictor import Array
from proxylessnas.session.budget import Budget
from proxylessnas.session.checkpoints import StoreCheckpoints
from proxylessnas.session.costed import Costed
from proxylessnas.session.memory import fit_memory
from proxylessnas.training.callbacks import Callback, Callbacks
from proxylessnas.training.evaluate import Score
from proxylessnas.training.job import Job
from proxylessnas.training.optimizers import load_model
from proxylessnas.training.task import Task
from proxylessnas.training.train import Training

MAX_ARCHITECTURE_BYTES = 8 << 20


@dataclass(eq=False, repr=False)
class Session(Costed):
    """One job, on one of the ranks.

    callbacks: see `training.callbacks`. signal: whether the process was asked to stop. budget: the
    time that is left for it; None without one. scores: of networks with the finished search's
    weights. figures: of networks untrained. calibrations: images for int8, gathered once; see
    `deploying.calibration`. right: which test images the network is right about, where this process
    has evaluated it; of several ranks, of this one's share.
    """

    callbacks: Callbacks = field(default_factory=lambda: Callbacks(()), kw_only=True)
    signal: Signal = field(default_factory=Signal, kw_only=True)
    budget: Budget | None = field(default=None, kw_only=True)
    search: Search | None = field(default=None, init=False)
    scores: dict[Any, Score] = field(default_factory=dict, init=False)
    figures: dict[Indices, Array] = field(default_factory=dict, init=False)
    calibrations: dict[Any, list[tuple[Tensor, ...]]] = field(default_factory=dict, init=False)
    right: Tensor | None = field(default=None, init=False)

    def settle(self, config: RunConfig) -> None:
        """Other settings of how it computes, and of stages that have not begun."""
        self.config = config
        self.__dict__.pop("machine", None)

    def configured(self, config: RunConfig) -> Session:
        """The same job under other settings, before any of its stages has begun."""
        return replace(self, config=config)

    # --- loops ---

    def new_search(self) -> Search:
        """The search of this session, at its first step."""
        train = self.problem.batches("search", self.config)
        return Search.from_settings(
            self.config.search,
            costs=self.costs,
            train=train,
            valid=self.problem.batches("valid", self.config),
            supernet=self.supernet,
            task=self.problem.task,
            reward=self.problem.reward,
            seed=self.config.seed,
            machine=self.machine,
            ranks=self.ranks,
            **self.problem.search_parts(self.config, self.supernet, self.costs, len(train)),
        )

    def training(
        self, network: nn.Module, task: Task, train: Batches, settings: TrainSettings, **how: Any
    ) -> Training:
        """The training of a network in place, as this session computes. how: see `Training`."""
        how = {"seed": self.config.seed, "machine": self.machine, "ranks": self.ranks, **how}
        return Training(network=network, task=task, train=train, settings=settings, **how)

    def drive(self, stage: str, job: Job, words: str, *more: Callback) -> str:
        """Take a job's steps; returns the name of its last checkpoint, "" in memory.

        more: callbacks besides.
        """
        before = partial(fit_memory, job, stage, self.config.memory, self.reporter.say)
        callbacks = [*more, *self.callbacks.callbacks]
        return self.records.drive(stage, job, words, callbacks, before=before, signal=self.signal)

    def finished_supernet(self) -> Supernet:
        """The supernet as the search left it, which needs no batches.

        Raises:
            RunError: the search has not ended.
        """
        if self.search is None:
            self.records.require("search")
            checkpoints = StoreCheckpoints(self.store, "search", self.signal)
            checkpoints.load_finished(_Finished(self.supernet))
        return self.supernet

    def finished_search(self) -> Search:
        """The search as it ended.

        Raises:
            RunError: it has not.
        """
        self.records.require("search")
        if self.search is None:
            job = self.new_search()
            StoreCheckpoints(self.store, "search", self.signal).load_finished(job)
            self.search = job
        return self.search

    def described(self, indices: Sequence[int]) -> Architecture:
        """The architecture that is written, trained and exported for a choice of candidates."""
        return self.problem.architecture(self.supernet.architecture(indices), self.config)

    def load_architecture(self, name: str) -> Architecture:
        """An architecture of the store.

        Raises:
            RunError, ArchitectureError: it is missing, or damaged.
        """
        text = self.store.read(name, MAX_ARCHITECTURE_BYTES)
        try:
            return Architecture.from_json(text)
        except ArchitectureError as error:
            raise ArchitectureError(f"{self.store.file(name)}: {error}") from None


@dataclass(frozen=True, eq=False)
class _Finished:
    """What a search's checkpoint says of its supernet alone."""

    supernet: Supernet

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        load_model(self.supernet.model, tensors)
        with torch.no_grad():
            self.supernet.alpha.copy_(tensors["alpha"])
