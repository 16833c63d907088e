"""One run's parts, each made once when it is first needed: data, supernet, table, prices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import InputInfo
from .config import RunConfig
from .data import Batches, ImageData, load_data
from .errors import ConfigError, RunError
from .hardware.measure import NetworkReport, canary_of, measure_networks
from .hardware.published import published_cost, read_published_table
from .hardware.runtimes import Runtime, make
from .hardware.table import LatencyTable
from .machine import Machine, make_machine
from .objective import Prices
from .pricing import Limits, Pricing
from .progress import Reporter, duration
from .ranks import ALONE, Ranks
from .runs import RunDirectory
from .seeds import derive_seed
from .spaces import build_supernet
from .supernet import Supernet
from .task import Task


def is_published(table: str) -> bool:
    """Whether a table is one of the authors' YAML files."""
    return Path(table).suffix in (".yaml", ".yml")


class Signal:
    """Whether the process was asked to stop; the stages look now and then."""

    requested = False


class Run:
    """A configuration, a directory, and what follows from the two, on one of the ranks."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        reporter: Reporter,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.directory, self.reporter = config, directory, reporter
        self.ranks = ranks
        self.started = time.monotonic()
        self.signal = Signal()

    # --- parts ---

    @cached_property
    def data(self) -> ImageData:
        config, loading = self.config, self.config.loading
        with self.reporter.bar("reading the data") as update:
            return load_data(
                config.data,
                image_size=config.image_size,
                valid_fraction=loading.valid_fraction,
                test_fraction=loading.test_fraction,
                workers=loading.workers,
                limit=loading.limit,
                augment=loading.augment,
                seed=config.seed,
                progress=update,
            )

    @property
    def input(self) -> InputInfo:
        info = self.data.info
        return InputInfo(
            shape=info.input_shape,
            mean=info.mean,
            std=info.std,
            classes=info.classes,
            central_share=info.central_share,
        )

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

    @cached_property
    def pricing(self) -> Pricing:
        """What networks cost, before anything is measured; `table` is set when it is."""
        pricing = Pricing(supernet=self.supernet, example_inputs=self.example())
        pricing.forbid_over(self.config.max_peak_memory)
        return pricing

    def example(self) -> tuple[Tensor, ...]:
        """The input that is measured: one batch of noise of the real shape."""
        shape = (self.config.measure.batch, *self.input.shape)
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(shape, generator=generator),)

    @cached_property
    def runtime(self) -> Runtime:
        return make(self.config.runtime, threads=self.config.measure.threads)

    @cached_property
    def priced(self) -> Pricing:
        """What networks cost, latency included."""
        if self.config.table is not None and is_published(self.config.table):
            published = read_published_table(self.config.table)
            self.pricing.published = published_cost(self.supernet, published)
        else:
            self.pricing.table = self.table()
        return self.pricing

    @property
    def device_is_here(self) -> bool:
        """Whether networks can be measured, or a table has to be believed."""
        return self.config.table is None

    def table(self) -> LatencyTable:
        """The latency table in the directory.

        Raises:
            RunError: there is none. MeasurementError: it is of another device.
        """
        if self.config.table is not None:
            return LatencyTable.load(self.config.table)
        path = self.directory.file("latency_table.json")
        if not path.exists():
            raise RunError(
                f"{self.directory.path} has no latency table: run "
                f"proxylessnas measure --out {self.directory.path} first"
            )
        table = LatencyTable.load(path)
        table.check(self.runtime.describe(), self.config.measure.batch)
        return table

    @cached_property
    def task(self) -> Task:
        return Task.classification(self.config.search.label_smoothing)

    # --- limits ---

    @property
    def limits(self) -> Limits:
        c = self.config
        return Limits(
            latency=c.target_latency,
            macs=c.max_macs,
            parameters=c.max_parameters,
            peak_memory=c.max_peak_memory,
        )

    @cached_property
    def prices(self) -> Prices:
        return self.priced.prices(self.limits)

    @property
    def target_ms(self) -> float | None:
        """The latency limit in milliseconds."""
        limit = self.config.target_latency
        return None if limit is None else self.priced.milliseconds(limit)

    # --- batches ---

    def batches(
        self, part: str, size: int, *, augment: bool = False, shuffle: bool = False
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
        return measure_networks(
            networks,
            self.runtime,
            self.example(),
            self.config.measure,
            table=self.priced.table,
            canary=canary_of(self.supernet, self.table()),
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
        if record is None:
            return False
        return all(
            self.directory.digest(name) == digest for name, digest in record["files"].items()
        )

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
        self.reporter.say(f"{name}: {title}")
        start = time.monotonic()
        facts: dict[str, Any] = {"files": ()}
        with self.reporter.warnings_as_lines():
            yield facts
        seconds = time.monotonic() - start + self._spent_before(name)
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

    def _spent_before(self, stage: str) -> float:
        """Seconds that a killed process had already put into this stage, as it logged."""
        return 0.0
