"""The Python call: put a `MixedOp` into any model and search that.

result = search(Net(), train=loader, valid=loader, loss=fn, example_inputs=(x,),
                target_latency="12ms")
net = result.derive()          # plain PyTorch, with the weights the search trained
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture
from proxylessnas.config import (
    DeriveSettings,
    MachineSettings,
    MeasureSettings,
    SearchSettings,
    check_seed,
)
from proxylessnas.core.adapt import adapt
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Indices
from proxylessnas.core.derive import Choice, choose
from proxylessnas.core.estimators import RewardOf
from proxylessnas.core.objective import check_objective
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import Supernet
from proxylessnas.data.batches import LoaderBatches
from proxylessnas.errors import ConfigError, LimitError
from proxylessnas.hardware.costs import (
    CostFunction,
    absolute_limits,
    all_costs,
    check_names,
    forbid_over_peak_memory,
    largest_costs,
)
from proxylessnas.hardware.count import check_shapes
from proxylessnas.hardware.measure import canary_of, describe, measure_networks, measure_table
from proxylessnas.hardware.runtimes import Runtime, make
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.trace import trace
from proxylessnas.io.console import Reporter
from proxylessnas.limits import Limit, all_limits, check_limit_names, parse_latency, parse_limit
from proxylessnas.runs.calibrate import settled
from proxylessnas.runs.stages.keeping import Progress
from proxylessnas.seeds import derive_seed
from proxylessnas.training.device import make_machine
from proxylessnas.training.evaluate import evaluate, recalibrate
from proxylessnas.training.loop import run_loop
from proxylessnas.training.ranks import ALONE, Ranks
from proxylessnas.training.task import Task


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished search.

    architecture: the chosen network. predicted: its costs by name (ms, counts).
    measured_ms: its latency on the runtime, where there was a limit to keep and the table is
        not another device's.
    costs: what all networks of the space cost, see `Costs`. limits: what the network may cost,
        as it was written.
    machine: the settings it computed with, among them the memory format that was chosen. With
        them, and the same table, the same seed gives the same search.
    """

    architecture: Architecture
    predicted: dict[str, float]
    measured_ms: float | None
    machine: MachineSettings
    limits: Mapping[str, Limit]
    job: Search = field(repr=False)
    costs: Costs = field(repr=False)
    _derivation: _Derivation = field(repr=False)

    @property
    def supernet(self) -> Supernet:
        return self.job.supernet

    @property
    def probabilities(self) -> Tensor:
        """[mixed operations, candidates]; a pad is 0."""
        return self.job.supernet.probabilities()

    def derive(self, latency: str | None = None) -> nn.Module:
        """The chosen network as a plain module, or the one for another latency limit.

        The search's other limits hold there too. α learns on under the new limit first, for
        `derive.arch_steps` steps on the validation batches; the search's own α stays.

        It has the supernet's weights, and BN statistics of its own: the supernet's are a mixture
        over its paths.

        Raises:
            LimitError: no network keeps that limit, or the latency was not measured.
        """
        if latency is None:
            return self._derivation.network(self.supernet.indices(self.architecture))
        if "latency" not in self.costs:
            raise LimitError(
                "this search measured no latency: give search() a target_latency, or a table"
            )
        parse_latency(latency)
        limits = {**self.limits, "latency": latency}
        return self._derivation.network(self._derivation.choose(limits).chosen.indices)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Derivation:
    """From a finished search to networks.

    costs: without limits. largest: of the largest network, see `largest_costs`.
    here: whether networks can be measured on the table's device.
    """

    job: Search
    costs: Costs
    largest: Mapping[str, float]
    table: LatencyTable | None
    inputs: tuple[Any, ...]
    device: Runtime
    here: bool
    measure: MeasureSettings
    derive: DeriveSettings
    reward: RewardOf | None
    reporter: Reporter

    def network(self, indices: Indices) -> nn.Module:
        """With the supernet's weights and statistics of its own."""
        job = self.job
        network = job.supernet.derive(indices)
        images = self.derive.recalibrate_images
        recalibrate(network, job.train, images, job.machine, job.ranks)
        return network

    def limited(self, limits: Mapping[str, Limit]) -> Costs:
        """The costs under limits as they were written.

        Raises:
            LimitError: a limit is under what any network of the space costs.
        """
        costs = self.costs.limited(absolute_limits(limits, self.costs, self.largest))
        costs.check_reachable(self.job.supernet.mask)
        return costs

    def choose(self, limits: Mapping[str, Limit]) -> Choice:
        """The best of the most probable networks; under other limits α learns on first."""
        job, costs = self.job, self.limited(limits)
        if not torch.equal(costs.limits, job.costs.limits):
            steps = self.derive.arch_steps
            with self.reporter.bar("learning alpha under this limit") as update:
                progress = [Progress(update)]
                job = adapt(job, costs, steps=steps, reward=self.reward, callbacks=progress)
        return choose(
            job.supernet,
            costs,
            self.derive,
            score=self._score,
            measure=(lambda n: job.ranks.of_main(lambda: self._measured(n))) if self.here else None,
            learned=job.estimator.learns,
            seed=derive_seed(job.seed, "proposals"),
        )

    def _score(self, indices: Indices) -> tuple[float, tuple[float, ...]]:
        job, images = self.job, self.derive.score_images
        network = self.network(indices)
        return evaluate(
            network, job.task, job.valid, job.machine, examples=images, ranks=job.ranks
        ).value

    def _measured(self, networks: Sequence[Indices]) -> list[tuple[float, float]]:
        supernet, table = self.job.supernet, self.table
        assert table is not None
        derived = {str(i): supernet.derive(n).cpu() for i, n in enumerate(networks)}
        report = measure_networks(
            derived,
            self.device,
            self.inputs,
            self.measure,
            canary=canary_of(supernet, table, self.costs.space),
            seed=self.job.seed,
        )
        return [report[name].value for name in derived]


def search(
    model: nn.Module,
    *,
    train: Any,
    valid: Any,
    loss: Callable[[Any, Any], Tensor],
    example_inputs: Sequence[Any],
    target_latency: str | None = None,
    limits: Mapping[str, Limit] | None = None,
    costs: Mapping[str, CostFunction] | None = None,
    runtime: str | Runtime = "onnxruntime",
    table: str | Path | LatencyTable | None = None,
    correct: Callable[[Any, Any], Tensor] | None = None,
    reward: Callable[[float, Sequence[int]], float] | None = None,
    settings: SearchSettings | None = None,
    measure: MeasureSettings | None = None,
    derive: DeriveSettings | None = None,
    machine: MachineSettings | None = None,
    seed: int = 0,
    quiet: bool = False,
    ranks: Ranks = ALONE,
) -> Result:
    """Search a model that holds mixed operations; it is trained in place.

    train, valid: sized iterables of (inputs, target), such as DataLoaders, over different
        examples. Inputs may be a tensor, a tuple (spread over the arguments) or a dict.
    loss: (model output, target) -> scalar.
    example_inputs: the arguments of one forward pass; their shapes are what is measured.
    target_latency: `12ms`, `800us`, or `0.6x` of the largest network; measured on `runtime`
        unless `table` is given. The short form of limits["latency"].
    limits: by the cost's name: latency, macs and parameters (of one example), peak_memory (MiB of
        any one candidate's activations), a column of the table, or a cost of `costs`. A number,
        or as `12ms`, `600M`, `0.6x`.
    costs: costs of your own by name, functions of a candidate module (or a whole network) and its
        inputs to a number that adds up over the network, see `hardware.costs.function_costs`.
    table: a latency table, of these inputs' batch. Where it was measured on `runtime`, on this
        machine and with as many threads, the last candidates are measured too and correct its
        predictions; the table of another device is used as it is, and nothing is measured here.
    correct: (output, target) -> how many of the batch are right; lets the final choice go by
        accuracy rather than by loss.
    reward: (accuracy, candidate indices) -> R, for the estimator `reinforce`; the objective's
        limits hold besides.
    ranks: of `with open_ranks() as ranks`, in a script that torchrun starts. All ranks give the
        same batches, of which each takes its slice; rank 0's weights are what counts.

    Raises:
        UserError: the model, the data, a limit or a setting is not usable; the message says how.
    """
    settings, measure = settings or SearchSettings(), measure or MeasureSettings()
    _check(model, loss, example_inputs, runtime, table, seed)
    limits = all_limits(limits or {}, target_latency)
    check_names(list(costs or {}))
    has_latency = "latency" in limits
    check_objective(
        settings,
        measured=has_latency or table is not None,
        limited=has_latency,
        own_reward=reward is not None,
    )
    derive = derive or DeriveSettings()
    reporter = Reporter(quiet=quiet or not ranks.is_main)
    training = LoaderBatches(train, name="train", seed=seed)
    validation = LoaderBatches(valid, name="valid", seed=seed)
    machine = machine or MachineSettings()
    make_machine(machine)  # for its error, before anything is measured
    supernet = Supernet(model)
    inputs = tuple(example_inputs)
    found = trace(supernet, inputs)
    check_shapes(supernet, found)
    if "peak_memory" in limits:
        mib, _ = parse_limit("peak_memory", limits["peak_memory"], "MiB")
        forbid_over_peak_memory(supernet, found, mib)
    device = make(runtime, threads=measure.threads) if isinstance(runtime, str) else runtime
    if isinstance(table, str | Path):
        table = LatencyTable.load(table)
    check_limit_names(limits, [*(costs or {}), *(table.columns if table is not None else {})])
    if table is None and has_latency:
        table = _measured_table(supernet, inputs, device, measure, seed, reporter, ranks)
    here = table is not None and _is_here(table, device, inputs, ranks)
    if table is not None and not here:
        reporter.say(f"the latency table is of {table.device.get('device')}: it is used as it is")
    every = all_costs(supernet, found, table=table, functions=costs)
    largest = largest_costs(supernet, every, table)
    within = every.limited(absolute_limits(limits, every, largest))
    within.check_reachable(supernet.mask)
    task = Task(loss=loss, correct=correct)
    machine = settled(
        machine, supernet, task, training, settings, seed=seed, reporter=reporter, ranks=ranks
    )
    on = make_machine(machine)
    job = Search.from_settings(
        settings,
        supernet=supernet,
        task=task,
        train=training,
        valid=validation,
        costs=within,
        reward=reward,
        seed=seed,
        machine=on,
        ranks=ranks,
    )
    with reporter.bar("searching") as update:
        run_loop(job, callbacks=[Progress(update)])

    derivation = _Derivation(
        job=job,
        costs=every,
        largest=largest,
        table=table,
        inputs=inputs,
        device=device,
        here=here,
        measure=measure,
        derive=derive,
        reward=reward,
        reporter=reporter,
    )
    choice = derivation.choose(limits)
    names = choice.costs.names
    return Result(
        architecture=supernet.architecture(choice.chosen.indices),
        predicted=dict(zip(names, choice.costs.of(choice.chosen.indices), strict=True)),
        measured_ms=choice.chosen.measured_ms,
        machine=machine,
        limits=limits,
        job=job,
        costs=every,
        _derivation=derivation,
    )


def _check(model: Any, loss: Any, example_inputs: Any, runtime: Any, table: Any, seed: Any) -> None:
    """Refuse arguments of the wrong kind, which would fail later in torch's words.

    Raises:
        ConfigError: one is.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is {type(model).__name__}, not a torch module")
    if not callable(loss):
        raise ConfigError(f"loss is {loss!r}, not a function (output, target) -> scalar")
    if not isinstance(example_inputs, tuple | list) or not example_inputs:
        raise ConfigError(
            f"example_inputs is {type(example_inputs).__name__}, not a tuple of the arguments of "
            "one forward pass: write (x,) for a single tensor"
        )
    if not isinstance(runtime, str) and not callable(getattr(runtime, "load", None)):
        raise ConfigError(f"runtime is {runtime!r}, neither a name (onnxruntime) nor a runtime")
    if not isinstance(table, str | Path | LatencyTable | None):
        raise ConfigError(f"table is {type(table).__name__}, neither a path nor a LatencyTable")
    check_seed(seed)


def _is_here(table: LatencyTable, device: Runtime, inputs: tuple[Any, ...], ranks: Ranks) -> bool:
    """Whether networks can be measured on the table's device, or the table has to be believed.

    Raises:
        MeasurementError: it is of another batch, or incomplete.
    """
    described = describe(device, inputs)
    table.check(table.device, int(described["batch"]))  # of whatever device it is
    # Rank 0 measures, so it is its machine that counts: another rank's may have another CPU.
    return ranks.of_main(lambda: table.is_of(described))


def _measured_table(
    supernet: Supernet,
    inputs: tuple[Any, ...],
    device: Runtime,
    measure: MeasureSettings,
    seed: int,
    reporter: Reporter,
    ranks: Ranks,
) -> LatencyTable:
    """Rank 0's, on every rank."""
    given = supernet, device, inputs, measure
    with reporter.bar("measuring") as update:
        content = ranks.of_main(lambda: measure_table(*given, seed=seed, progress=update).to_json())
    return LatencyTable.from_dict(json.loads(content))


__all__ = ["Result", "search"]
