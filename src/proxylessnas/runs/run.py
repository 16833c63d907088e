"""One run's parts, each made once when it is first needed: data, supernet, table, costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture, InputInfo
from proxylessnas.config import RunConfig
from proxylessnas.core.costs import Costs
from proxylessnas.core.supernet import Supernet
from proxylessnas.data import Batches, ImageData, load_data
from proxylessnas.errors import ConfigError, RunError
from proxylessnas.hardware.costs import (
    absolute_limits,
    all_costs,
    forbid_over_peak_memory,
    largest_costs,
)
from proxylessnas.hardware.measure import NetworkReport, canary_of, measure_networks
from proxylessnas.hardware.published_table import published_cost, read_published_table
from proxylessnas.hardware.runtimes import Runtime, make
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.trace import Trace, trace
from proxylessnas.io.console import Reporter, duration
from proxylessnas.io.stopping import Signal
from proxylessnas.limits import Limit, all_limits, parse_limit
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.seeds import derive_seed
from proxylessnas.spaces import build_supernet, complete_settings
from proxylessnas.training.device import Machine, make_machine
from proxylessnas.training.ranks import ALONE, Ranks
from proxylessnas.training.task import Task


def is_published(table: str) -> bool:
    """Whether a table is one of the authors' YAML files."""
    return Path(table).suffix in (".yaml", ".yml")


STAGES = (
    *("measure", "search", "derive", "train", "evaluate"),
    *("train-largest", "evaluate-largest", "train-random", "evaluate-random", "export"),
)


class Run:
    """A configuration, a directory, and what follows from the two, on one of the ranks.

    force: use a latency table that was measured otherwise all the same.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        reporter: Reporter,
        ranks: Ranks = ALONE,
        *,
        force: bool = False,
    ) -> None:
        self.config, self.directory, self.reporter = config, directory, reporter
        self.ranks, self.force = ranks, force
        self.started = time.monotonic()
        self.signal = Signal()

    # --- parts ---

    @cached_property
    def data(self) -> ImageData:
        config = self.config
        self.reporter.say(f"data: {config.data}")
        with self.reporter.bar("reading the data") as update:
            data = load_data(
                config.data,
                config.loading,
                image_size=config.image_size,
                seed=config.seed,
                progress=update,
            )
        self.reporter.say(f"  {data.summary}")
        if config.train.augment is not None:
            data.parse(config.train.augment)  # for its error, before the search is paid for
        return data

    @property
    def input(self) -> InputInfo:
        return self.data.info

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
    def supernet(self) -> Supernet:
        """The space with this run's fresh weights."""
        torch.manual_seed(derive_seed(self.config.seed, "weights"))
        return build_supernet(self.config.space, self.config.space_settings, input=self.input)

    def found(self, indices: Sequence[int]) -> Architecture:
        """The architecture that is derived, trained and exported for one choice of candidates.

        Its settings are the search's, but for dropout and the like of the training.
        """
        architecture = self.supernet.architecture(indices).with_input(self.input)
        settings = {**self.supernet.settings, **self.config.train.space_settings}
        return replace(architecture, settings=complete_settings(self.config.space, settings, None))

    @cached_property
    def trace(self) -> Trace:
        """The distinct candidates; those over the limit of peak memory leave the supernet."""
        found = trace(self.supernet, self.example())
        if "peak_memory" in self.limits:
            mib, _ = parse_limit("peak_memory", self.limits["peak_memory"], "MiB")
            forbid_over_peak_memory(self.supernet, found, mib)
        return found

    def example(self) -> tuple[Tensor, ...]:
        """The input that is measured: one batch of noise of the real shape."""
        shape = (self.config.measure.batch, *self.input.shape)
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(shape, generator=generator),)

    @cached_property
    def runtime(self) -> Runtime:
        return make(self.config.runtime, threads=self.config.measure.threads)

    @cached_property
    def all_costs(self) -> Costs:
        """What networks cost, without limits."""
        found = self.trace  # first: it may take candidates out
        if self.config.table is not None and is_published(self.config.table):
            published = published_cost(self.supernet, read_published_table(self.config.table))
            return all_costs(self.supernet, found, published=published)
        return all_costs(self.supernet, found, table=self.table())

    @cached_property
    def largest_costs(self) -> dict[str, float]:
        """What the largest network costs; its latency as measured where the table has it."""
        published = self.config.table is not None and is_published(self.config.table)
        table = None if published else self.table()
        return largest_costs(self.supernet, self.all_costs, table)

    @property
    def device_is_here(self) -> bool:
        """Whether networks can be measured, or a table has to be believed."""
        return self.config.table is None

    def table(self) -> LatencyTable:
        """The latency table in the directory.

        Raises:
            RunError: there is none. MeasurementError: it is of another device.
        """
        batch = self.config.measure.batch
        if self.config.table is not None:
            table = LatencyTable.load(self.config.table)
            table.check(table.device, batch, force=self.force)  # of whatever device it is
            return table
        path = self.directory.file("latency_table.json")
        if not path.exists():
            raise RunError(
                f"{self.directory.path} has no latency table: run "
                f"proxylessnas measure --out {self.directory.path} first"
            )
        table = LatencyTable.load(path)
        table.check(self.runtime.describe(), batch, force=self.force)
        return table

    @cached_property
    def task(self) -> Task:
        return Task.classification(self.config.search.label_smoothing)

    # --- limits ---

    @property
    def limits(self) -> dict[str, Limit]:
        """The limits as they were written, by the cost's name."""
        return all_limits(self.config.limits, self.config.target_latency)

    @cached_property
    def costs(self) -> Costs:
        """What networks cost, within the limits.

        Raises:
            LimitError: a limit is under what any network of the space costs.
        """
        limits = absolute_limits(self.limits, self.all_costs, self.largest_costs)
        costs = self.all_costs.limited(limits)
        costs.check_reachable(self.supernet.mask)
        return costs

    @property
    def target_ms(self) -> float | None:
        """The latency limit in milliseconds."""
        limits = {k: v for k, v in self.limits.items() if k == "latency"}
        return absolute_limits(limits, self.all_costs, self.largest_costs).get("latency")

    # --- batches ---

    def batches(
        self, part: str, size: int, *, augment: bool | str = False, shuffle: bool = False
    ) -> Batches:
        return self.data.batches(
            part, size, augment=augment, shuffle=shuffle, seed=self.config.seed
        )

    # --- measuring networks ---

    def measure(
        self,
        networks: Mapping[str, nn.Module | Path],
        progress: Callable[[int, int], None] | None = None,
    ) -> NetworkReport:
        """Whole networks or exported files, interleaved with the table's canary."""
        table = self.table()
        return measure_networks(
            networks,
            self.runtime,
            self.example(),
            self.config.measure,
            canary=canary_of(self.supernet, table, self.all_costs.space),
            progress=progress,
            seed=self.config.seed,
        )

    # --- finished stages ---

    def done(self, stage: str) -> bool:
        """Whether a stage's record is there, and its files are what it left.

        Rank 0 looks, for all: another one may already see what rank 0 does next.
        """
        return self.ranks.of_main(lambda: self._done(stage))

    def _done(self, stage: str) -> bool:
        record = self.record(stage)
        return record is not None and not self.damaged(record)

    def damaged(self, record: Mapping[str, Any]) -> list[str]:
        """The files of a record that are missing, or not what the stage left."""
        files: dict[str, Any] = record["files"]
        found = {name: self.directory.digest(name) for name in files}
        return [name for name, digest in found.items() if digest is None or digest != files[name]]

    def record(self, stage: str) -> dict[str, Any] | None:
        name = f"stages/{stage}.json"
        if not self.directory.has(name):
            return None
        record = self.directory.read_json(name)
        if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
            raise RunError(f"{self.directory.file(name)} is damaged; remove it and --resume")
        return record

    def require(self, stage: str) -> dict[str, Any]:
        record = self.record(stage) if self.done(stage) else None
        if record is None:
            raise RunError(
                f"the stage {stage} of {self.directory.path} is not finished: run "
                f"proxylessnas {stage} --out {self.directory.path} first"
            )
        return record

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[dict[str, Any]]:
        """One stage: a title, then the facts that the block puts into its record, timed.

        The record's `files` are names in the run directory; they are kept as checksums.
        """
        self.ranks.check_agreed("what is done already", name)
        if self.ranks.is_main:
            self._begin(name)
        self.reporter.say(f"{name}: {title}")
        start = time.monotonic()
        facts: dict[str, Any] = {"files": ()}
        with self.reporter.warnings_as_lines():
            yield facts
        seconds = time.monotonic() - start
        files = {file: self.directory.digest(file) for file in facts.pop("files")}
        record = {**facts, "seconds": round(seconds, 3), "files": files}
        self.directory.write_json(f"stages/{name}.json", record)
        self.ranks.wait()  # nobody looks for this record before it is there
        self.reporter.say(f"  done in {duration(seconds)}")

    def by_main(self, stage: Callable[[Run], object]) -> None:
        """A stage that rank 0 does alone, while the others wait."""
        ranks = self.ranks
        if ranks.is_main:
            self.ranks = ALONE
            try:
                stage(self)
            finally:
                self.ranks = ranks
        ranks.wait()

    def asked_to_stop(self) -> bool:
        """Whether some rank's process was; all learn it at the same step."""
        return self.ranks.any(self.signal.requested)

    def _begin(self, stage: str) -> None:
        """What later stages made of an earlier end of this one must not be taken for its own.

        Raises:
            RunError: a file of this stage was changed after later ones used it. Their work may
                be worth days, so the user says whether it goes.
        """
        later = self._later(stage)
        record = self.record(stage)
        if later and record is not None:
            (first, *_) = self.damaged(record) or ["a file"]
            raise RunError(
                f"{self.directory.file(first)} is missing or was changed after "
                f"{later[0]} used it: put it back, or remove "
                f"{self.directory.file(f'stages/{stage}.json')} to do it and what follows again"
            )
        for name in later:
            self.directory.file(f"stages/{name}.json").unlink(missing_ok=True)
            self.directory.remove_checkpoints(name)

    def _later(self, stage: str) -> list[str]:
        """Stages that were done, or begun, upon this one."""
        if stage not in STAGES:
            return []
        found = [
            s
            for s in STAGES[STAGES.index(stage) + 1 :]
            if self.record(s) is not None or self.directory.has_checkpoints(s)
        ]
        if stage in ("measure", "search"):  # networks for other limits
            paths = self.directory.file("stages").glob("derive-*.json")
            found += sorted(path.stem for path in paths)
        return found
