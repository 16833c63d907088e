"""A job's parts, each made once when it is first needed, and the costs within its limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from proxylessnas.config import RunConfig
from proxylessnas.core.costs import Costs
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import ConfigError, MeasurementError
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
from proxylessnas.limits import Limit, all_limits, parse_limit
from proxylessnas.session.problem import Problem
from proxylessnas.session.records import Records
from proxylessnas.session.store import BROUGHT_TABLE, Store
from proxylessnas.training.device import Machine, make_machine
from proxylessnas.training.ranks import ALONE, Ranks

TABLE = "latency_table.json"
MAX_TABLE_BYTES = 64 << 20


@dataclass(eq=False, repr=False)
class Costed:
    """What a job computes with, on one of the ranks, and what networks cost there.

    runtime_object, table_object: what the settings' `runtime` and `table` stand for, where the
    user gave objects. force: use a latency table of another device all the same.
    """

    config: RunConfig
    problem: Problem
    store: Store
    reporter: Reporter = field(default_factory=lambda: Reporter(quiet=True), kw_only=True)
    ranks: Ranks = field(default=ALONE, kw_only=True)
    runtime_object: Runtime | None = field(default=None, kw_only=True)
    table_object: LatencyTable | None = field(default=None, kw_only=True)
    force: bool = field(default=False, kw_only=True)

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
