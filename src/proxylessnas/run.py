"""One run's parts, each made once when it is first needed: data, supernet, table, prices."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import objective as objectives
from .architecture import InputInfo
from .config import RunConfig, SearchSettings, parse_latency
from .data import Batches, ImageData, load_data
from .errors import ConfigError, RunError
from .hardware.cost import Cost, latency_cost, macs_cost, parameters_cost, peak_memory
from .hardware.measure import NetworkReport, canary_of, measure_networks
from .hardware.runtimes import Runtime, make
from .hardware.table import LatencyTable
from .hardware.trace import Trace, trace
from .machine import Machine, make_machine
from .objective import Prices
from .progress import Reporter, duration
from .runs import RunDirectory
from .seeds import derive_seed
from .spaces import build_supernet
from .supernet import Supernet
from .task import Task

MIB = 1 << 20


class Signal:
    """Whether the process was asked to stop; the stages look now and then."""

    requested = False


class Run:
    """A configuration, a directory, and what follows from the two."""

    def __init__(self, config: RunConfig, directory: RunDirectory, reporter: Reporter) -> None:
        self.config, self.directory, self.reporter = config, directory, reporter
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
        return make_machine(self.config.machine)

    @cached_property
    def supernet(self) -> Supernet:
        """The space with this run's fresh weights; candidates over the memory limit are out."""
        torch.manual_seed(derive_seed(self.config.seed, "weights"))
        supernet = build_supernet(
            self.config.space, self.config.space_settings, input=self.input
        )
        limit = self.config.max_peak_memory
        if limit is not None:
            peak = peak_memory(supernet, trace(supernet, self.example()))
            supernet.forbid(peak > limit * MIB, f"all need more than {limit:g} MiB at their peak")
        return supernet

    def example(self) -> tuple[Tensor, ...]:
        """The input that is measured: one batch of noise of the real shape."""
        shape = (self.config.measure.batch, *self.input.shape)
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(shape, generator=generator),)

    @cached_property
    def trace(self) -> Trace:
        return trace(self.supernet, self.example())

    @cached_property
    def runtime(self) -> Runtime:
        return make(self.config.runtime, threads=self.config.measure.threads)

    @cached_property
    def table(self) -> LatencyTable:
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

    # --- costs and limits ---

    @cached_property
    def latency(self) -> Cost:
        return latency_cost(self.supernet, self.trace, self.table)

    @cached_property
    def target_ms(self) -> float | None:
        """The latency limit in milliseconds."""
        if self.config.target_latency is None:
            return None
        value, relative = parse_latency(self.config.target_latency)
        return value * self.largest_ms if relative else value

    @property
    def largest_ms(self) -> float:
        """The measured latency of the space's largest network."""
        choices = dict(self.supernet.architecture(self.largest).choices)
        entries = [n for n in self.table.networks if dict(n.choices) == choices]
        return entries[0].measurement.median_ms if entries else self.latency.of(self.largest)

    @cached_property
    def macs(self) -> Cost:
        """MACs of one example."""
        cost, batch = macs_cost(self.supernet, self.trace), self.config.measure.batch
        return replace(cost, per_candidate=cost.per_candidate / batch, fixed=cost.fixed / batch)

    @cached_property
    def parameters(self) -> Cost:
        return parameters_cost(self.supernet, self.trace)

    @cached_property
    def largest(self) -> tuple[int, ...]:
        """The network with the most MACs, the first among equals."""
        return self.macs.extremes(self.supernet.mask)[1]

    @cached_property
    def prices(self) -> Prices:
        """All costs, limited or not."""
        config = self.config
        costs = (self.latency, self.macs, self.parameters)
        limits = (self.target_ms, config.max_macs, config.max_parameters)
        prices = Prices(
            names=tuple(cost.name for cost in costs),
            units=tuple(cost.unit for cost in costs),
            per_candidate=torch.stack([cost.per_candidate for cost in costs]),
            fixed=torch.tensor([cost.fixed for cost in costs], dtype=torch.float64),
            limits=torch.tensor(
                [math.inf if limit is None else limit for limit in limits], dtype=torch.float64
            ),
        )
        prices.check_reachable(self.supernet.mask)
        return prices

    # --- batches ---

    def batches(self, part: str, size: int, *, training: bool = False) -> Batches:
        return self.data.batches(
            part, size, augment=training, shuffle=training, seed=self.config.seed
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
            table=self.table,
            canary=canary_of(self.supernet, self.table),
            progress=progress,
            seed=self.config.seed,
        )

    # --- finished stages ---

    def done(self, stage: str) -> bool:
        """Whether a stage's record is there, and its files are what it left."""
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
        record = self.record(stage)
        if record is None or not self.done(stage):
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
        self.reporter.say(f"{name}: {title}")
        start = time.monotonic()
        facts: dict[str, Any] = {"files": ()}
        with self.reporter.warnings_as_lines():
            yield facts
        seconds = time.monotonic() - start + self._spent_before(name)
        files = {file: self.directory.digest(file) for file in facts.pop("files")}
        record = {**facts, "seconds": round(seconds, 3), "files": files}
        self.directory.write_json(f"stages/{name}.json", record)
        self.reporter.say(f"  done in {duration(seconds)}")

    def _spent_before(self, stage: str) -> float:
        """Seconds that a killed process had already put into this stage, as it logged."""
        return 0.0


def make_objective(
    settings: SearchSettings, prices: Prices, arch_steps: int
) -> objectives.Objective:
    """The objective that the settings name.

    Raises:
        ConfigError: the paper's objectives need a latency target or a weight and have none.
    """
    name, weight = settings.objective, settings.cost_weight
    if name == "constraint" or name == "reward":
        rate = settings.dual_rate or DUAL_TRAVEL / max(1, arch_steps)
        return objectives.Constraint(prices.limits.tolist(), rate=rate)
    if name == "linear":
        if weight is None:
            raise ConfigError("the objective linear needs --search.cost-weight, per millisecond")
        return objectives.Linear(weight, index=prices.names.index("latency"))
    target = float(prices.limits[prices.names.index("latency")])
    if not math.isfinite(target):
        raise ConfigError(f"the objective {name} needs --target-latency")
    if name == "mul_log":
        return objectives.MulLog(target, **({} if weight is None else {"scale": weight}))
    return objectives.AddLinear(target, **({} if weight is None else {"scale": weight}))


DUAL_TRAVEL = 20.0  # rate x steps of the multiplier, at a latency of twice the limit


def make_reward(
    settings: SearchSettings, prices: Prices
) -> Callable[[float, Sequence[int]], float] | None:
    """ACC·(T/LAT)^w on predicted latency, for the objective `reward`.

    Raises:
        ConfigError: another estimator than reinforce, or no latency target.
    """
    if settings.objective != "reward":
        return None
    if settings.estimator != "reinforce":
        raise ConfigError(
            f"the objective reward has no gradient: it needs --search.estimator reinforce, "
            f"not {settings.estimator}"
        )
    latency = prices.names.index("latency")
    target = float(prices.limits[latency])
    if not math.isfinite(target):
        raise ConfigError("the objective reward needs --target-latency")
    power = 0.1 if settings.cost_weight is None else settings.cost_weight

    def of(accuracy: float, indices: Sequence[int]) -> float:
        return objectives.reward(accuracy, prices.of(indices)[latency], target, power)

    return of
