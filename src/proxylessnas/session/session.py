"""One job: a problem, settings and a store, and what follows from the three.

The stages (`measuring.py`, `searching.py`, `deriving.py`, `finishing.py`, `exporting.py`) are
functions of a session. Both doors, the Python call and the command line, use them, so they
cannot drift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture
from proxylessnas.config import RunConfig, TrainSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import Supernet
from proxylessnas.data import Batches
from proxylessnas.errors import ArchitectureError, ConfigError, MeasurementError
from proxylessnas.hardware.costs import all_costs, counted_costs
from proxylessnas.hardware.count import check_shapes
from proxylessnas.hardware.limiting import absolute_limits, forbid_over_peak_memory, largest_costs
from proxylessnas.hardware.measure import describe
from proxylessnas.hardware.published_table import (
    PublishedTable,
    is_published,
    published_cost,
    read_published_table,
)
from proxylessnas.hardware.runtimes import Runtime, make
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.trace import Trace
from proxylessnas.hardware.trace import trace as trace_of
from proxylessnas.hardware.whole_networks import NetworkReport, canary_of, measure_networks
from proxylessnas.io.console import Reporter
from proxylessnas.io.stopping import Signal
from proxylessnas.limits import Limit, all_limits, parse_limit
from proxylessnas.session.budget import Budget
from proxylessnas.session.checkpoints import StoreCheckpoints
from proxylessnas.session.memory import fit_memory
from proxylessnas.session.problem import Problem
from proxylessnas.session.records import Records
from proxylessnas.session.store import BROUGHT_TABLE, Store
from proxylessnas.training.callbacks import Callback, Callbacks, MetricsLog, ProgressBar
from proxylessnas.training.device import Machine, make_machine
from proxylessnas.training.job import Job
from proxylessnas.training.loop import run_loop
from proxylessnas.training.optimizers import load_model
from proxylessnas.training.ranks import ALONE, Ranks
from proxylessnas.training.task import Task
from proxylessnas.training.train import Training

TABLE = "latency_table.json"
MAX_ARCHITECTURE_BYTES, MAX_TABLE_BYTES = 8 << 20, 64 << 20


@dataclass(eq=False, repr=False)
class Session:
    """One job, on one of the ranks.

    callbacks: see `training.callbacks`. signal: whether the process was asked to stop.
    runtime_object, table_object: what the settings' `runtime` and `table` stand for, where the
    user gave objects. force: use a latency table of another device all the same. budget: the time
    that is left for it; None without one. scores: of networks with the finished search's weights.
    """

    config: RunConfig
    problem: Problem
    store: Store
    reporter: Reporter = field(default_factory=lambda: Reporter(quiet=True), kw_only=True)
    ranks: Ranks = field(default=ALONE, kw_only=True)
    callbacks: Callbacks = field(default_factory=lambda: Callbacks(()), kw_only=True)
    signal: Signal = field(default_factory=Signal, kw_only=True)
    runtime_object: Runtime | None = field(default=None, kw_only=True)
    table_object: LatencyTable | None = field(default=None, kw_only=True)
    force: bool = field(default=False, kw_only=True)
    budget: Budget | None = field(default=None, kw_only=True)
    search: Search | None = field(default=None, init=False)
    scores: dict[Any, tuple[float, tuple[float, ...]]] = field(default_factory=dict, init=False)

    def settle(self, config: RunConfig) -> None:
        """Other settings of how it computes, and of stages that have not begun."""
        self.config = config
        self.__dict__.pop("machine", None)

    def configured(self, config: RunConfig) -> Session:
        """The same job under other settings, before any of its stages has begun."""
        return replace(self, config=config)

    # --- parts, each made once when it is first needed ---

    @cached_property
    def records(self) -> Records:
        return Records(self.store, self.ranks, self.reporter)

    @cached_property
    def machine(self) -> Machine:
        machine = make_machine(self.config.machine)
        if self.ranks.world > 1 and machine.device.index is not None:
            raise ConfigError(
                f"machine.device is {machine.device}, for {self.ranks.world} ranks; with "
                "cuda each takes one of its node's GPUs"
            )
        return machine

    @cached_property
    def inputs(self) -> tuple[Any, ...]:
        """The arguments of the forward pass that is measured."""
        return self.problem.example_inputs(self.config)

    @cached_property
    def _supernet_and_trace(self) -> tuple[Supernet, Trace]:
        supernet = self.problem.supernet(self.config)
        trace = trace_of(supernet, self.inputs)
        check_shapes(supernet, trace)
        if "peak_memory" in self.limits:
            mib, _ = parse_limit("peak_memory", self.limits["peak_memory"], "MiB")
            forbid_over_peak_memory(supernet, trace, mib)
        return supernet, trace

    @property
    def supernet(self) -> Supernet:
        """The model that is searched, without the candidates that no limit allows."""
        return self._supernet_and_trace[0]

    @property
    def trace(self) -> Trace:
        return self._supernet_and_trace[1]

    @cached_property
    def runtime(self) -> Runtime:
        """What latencies are measured on."""
        if self.runtime_object is not None:
            return self.runtime_object
        return make(
            self.config.runtime,
            threads=self.config.measure.threads,
            precision=self.config.precision,
        )

    @property
    def is_int8(self) -> bool:
        """Whether what ships, and what is measured and scored, is an int8 file."""
        return self.runtime.describe()["precision"] == "int8"

    # --- what networks cost ---

    @property
    def limits(self) -> dict[str, Limit]:
        """The limits as they were written, by the cost's name."""
        return all_limits(self.config.limits, self.config.target_latency)

    @cached_property
    def published_table(self) -> PublishedTable | None:
        """The table that the settings name, if others published it."""
        path = self.config.table
        return read_published_table(path) if path is not None and is_published(path) else None

    @cached_property
    def brought_table(self) -> LatencyTable | None:
        """The table that the user brought, if it is one of ours."""
        path, table = self.config.table, self.table_object
        if table is None and path is not None and not is_published(path):
            stored = path == BROUGHT_TABLE
            table = self._stored_table(path) if stored else LatencyTable.load(path)
        if table is not None:
            table.check_precision(self.config.precision)
        return table

    @property
    def is_local(self) -> bool:
        """Whether networks can be measured on the table's device, or the table is believed."""
        return not self.not_local

    @cached_property
    def not_local(self) -> str:
        """Why networks cannot be measured as the table was; empty where they can."""
        table = self.brought_table
        if table is None:
            published = self.published_table
            return "" if published is None else f"the {published.device} is not here"
        # Rank 0 measures, so its machine counts: another rank's may have another CPU.
        return self.ranks.of_main(lambda: table.differs_from(describe(self.runtime, self.inputs)))

    @property
    def table(self) -> LatencyTable | None:
        """The latency table: the user's, or the one in the store; None where there is none.

        Raises:
            MeasurementError: it is of another device or batch, or incomplete.
        """
        batch = int(describe(self.runtime, self.inputs)["batch"])
        table = self.brought_table
        if table is not None:
            table.check(table.device, batch, force=self.force)  # of whatever device it is
            return table
        if self.config.table is not None or not self.store.has(TABLE):
            return None
        table = self._stored_table(TABLE)
        table.check(self.runtime.describe(), batch, force=self.force)
        return table

    def _stored_table(self, name: str) -> LatencyTable:
        try:
            return LatencyTable.from_json(self.store.read(name, MAX_TABLE_BYTES))
        except MeasurementError as error:
            raise MeasurementError(f"{self.store.file(name)}: {error}") from None

    @cached_property
    def costs(self) -> Costs:
        """Every cost, with the limits that the settings name.

        Raises:
            LimitError: a limit is under what any network of the space costs.
        """
        return self.within(self.limits)

    @cached_property
    def unlimited_costs(self) -> Costs:
        """Every cost, without a limit."""
        published = self.published_table
        return all_costs(
            self.supernet,
            self.trace,
            table=self.table,
            published=None if published is None else published_cost(self.supernet, published),
            counted=self.counted_costs,
        )

    @cached_property
    def counted_costs(self) -> Costs:
        """The costs that are known before anything is measured: counts, and the user's own."""
        return counted_costs(self.supernet, self.trace, self.problem.functions)

    @cached_property
    def largest(self) -> dict[str, float]:
        """The costs of the network of the most MACs; latency limits like `0.6x` are of it."""
        return largest_costs(self.supernet, self.unlimited_costs, self.table)

    def check_limits(self) -> None:
        """Refuse limits that no network of the space keeps, before anything is spent on them.

        Raises:
            LimitError: a limit is out of reach. MeasurementError: the table is of something else.
        """
        _ = self.costs  # kept for later

    def check_counted_limits(self) -> None:
        """As `check_limits`, of what is not measured, before anything is.

        Raises:
            LimitError: a limit is out of reach.
        """
        counted = self.counted_costs
        limits = {name: limit for name, limit in self.limits.items() if name in counted}
        largest = largest_costs(self.supernet, counted)
        counted.limited(absolute_limits(limits, counted, largest)).check_reachable(
            self.supernet.mask
        )

    def within(self, limits: Mapping[str, Limit]) -> Costs:
        """The costs under these limits, which a network of the space can keep.

        Raises:
            LimitError: none can. ConfigError: the memory limit is not the search's.
        """
        if limits.get("peak_memory") != self.limits.get("peak_memory"):
            raise ConfigError(
                "peak_memory decides which candidates are searched, so that it cannot change "
                "afterwards: search again with this limit"
            )
        costs = self.unlimited_costs
        costs = costs.limited(absolute_limits(limits, costs, self.largest))
        costs.check_reachable(self.supernet.mask)
        return costs

    @property
    def target_ms(self) -> float | None:
        """The latency limit in milliseconds."""
        limit = self.costs.limit("latency")
        return limit if math.isfinite(limit) else None

    def measure_networks(
        self,
        networks: Mapping[str, nn.Module | Path],
        progress: Callable[[int, int], None] | None = None,
    ) -> NetworkReport:
        """Whole networks or exported files now, interleaved with the table's canary."""
        table = self.table
        return measure_networks(
            networks,
            self.runtime,
            self.inputs,
            self.config.measure,
            canary=canary_of(self.supernet, table, self.costs.space) if table else None,
            progress=progress,
            seed=self.config.seed,
        )

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
        with self.reporter.bar(words) as update:
            callbacks = [ProgressBar(update), *more, *self.callbacks.callbacks]
            before = partial(fit_memory, job, stage, self.config.memory, self.reporter.say)
            if self.store.path is None:
                run_loop(job, callbacks=callbacks, before=before)
                return ""
            checkpoints = StoreCheckpoints(self.store, stage, self.signal)
            checkpoints.resume(job, self.reporter)
            with self.signal.looked_at():
                log = MetricsLog(self.store.log)
                run_loop(job, checkpoints, [log, *callbacks], before=before)
            return checkpoints.save(job)

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
