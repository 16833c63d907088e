"""The Python door: put a `MixedOp` into any model and search that.

    result = search(Net(), train=loader, valid=loader, loss=fn, example_inputs=(x,),
                    target_latency="12ms", out="runs/mine")
    net = result.derive()          # plain PyTorch, with the weights the search trained
    result = load("runs/mine", model=Net())    # later, in another process

What happens is the session's, see `session/`: the command line uses the same one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from proxylessnas.architecture import Architecture
from proxylessnas.config import (
    DeriveSettings,
    MachineSettings,
    MeasureSettings,
    RunConfig,
    SearchSettings,
)
from proxylessnas.core.costs import Costs
from proxylessnas.core.objective import check_objective
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import Supernet
from proxylessnas.data import Batches, LoaderBatches
from proxylessnas.errors import ConfigError, LimitError, RunError
from proxylessnas.hardware.costs import CostFunction, check_names
from proxylessnas.hardware.runtimes import Runtime
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.io.console import Reporter
from proxylessnas.limits import Limit, all_limits
from proxylessnas.runs.configured import ConfiguredProblem
from proxylessnas.runs.directory import RunDirectory, begun, held
from proxylessnas.runs.opening import opened
from proxylessnas.session.deriving import derive_within, inherited_network
from proxylessnas.session.identity import check_identity, save_identity
from proxylessnas.session.inputs import flatten, unflatten
from proxylessnas.session.pipeline import find_network, told
from proxylessnas.session.problem import ModelProblem, Problem
from proxylessnas.session.session import BROUGHT_TABLE, Session
from proxylessnas.session.store import CONFIG, MemoryStore, Store
from proxylessnas.training.callbacks import Callback, Callbacks
from proxylessnas.training.ranks import ALONE, Ranks
from proxylessnas.training.task import Task

CUSTOM = "custom"  # the space of a model that was handed in
INPUTS = "example_inputs.safetensors"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished search, in memory or in a run directory.

    session: the job that found it, for whoever wants more than is here.
    """

    session: Session

    @property
    def architecture(self) -> Architecture:
        """The chosen network."""
        return self.session.load_architecture("architecture.json")

    @property
    def predicted(self) -> dict[str, float]:
        """The chosen network's costs by name (ms, counts, and whatever else was given)."""
        return dict(self.session.records.require("derive")["predicted"])

    @property
    def measured_ms(self) -> float | None:
        """Its latency on the runtime, where there was a limit to keep and the device is here."""
        measured: float | None = self.session.records.require("derive")["measured_ms"]
        return measured

    @property
    def limits(self) -> dict[str, Limit]:
        """What the network may cost, as it was written."""
        return self.session.limits

    @property
    def costs(self) -> Costs:
        """Every candidate's costs, without limits."""
        return self.session.unlimited_costs

    @property
    def machine(self) -> MachineSettings:
        """How the search computed, nothing left open: with this and the same table, the same
        seed gives the same search."""
        return self.session.config.machine

    @property
    def search(self) -> Search:
        """The search as it ended."""
        return self.session.finished_search()

    @property
    def supernet(self) -> Supernet:
        return self.search.supernet

    @property
    def probabilities(self) -> Tensor:
        """[choices, candidates]; a pad is 0."""
        return self.supernet.probabilities()

    def derive(
        self, latency: str | None = None, *, limits: Mapping[str, Limit] | None = None
    ) -> nn.Module:
        """The chosen network as a plain module, or the one for other limits.

        latency: the short form of limits={"latency": ...}. The search's other limits hold there
        too. α learns on under the new limits first, for `derive.arch_steps` steps on the
        validation batches; the search's own α stays.

        It has the supernet's weights, and BN statistics of its own: the supernet's are a mixture
        over its paths.

        Raises:
            LimitError: no network keeps the limits, or the latency was not measured.
        """
        _check(locals())
        others = all_limits(limits or {}, latency)
        if not others:
            return inherited_network(self.session)
        if "latency" in others and "latency" not in self.session.unlimited_costs:
            raise LimitError(
                "this search measured no latency: give search() a target_latency, or a table"
            )
        name = "-".join(f"{k}-{v}" if k != "latency" else str(v) for k, v in others.items())
        if not self.session.records.done(f"derive-{name}"):
            with held(self.session.store):
                derive_within(self.session, {**self.limits, **others}, name)
        return inherited_network(self.session, f"-{name}")

    def save(self, path: str | Path) -> None:
        """Write the finished search as a run directory, which `load` reads.

        Raises:
            RunError: the directory is not empty, or cannot be written.
        """
        _check(locals(), "path")
        session, directory = self.session, RunDirectory(Path(path))
        record = session.records.require("search")
        session.records.require("derive")
        if os.path.isdir(path) and os.listdir(path):
            raise RunError(f"{path} is not empty; choose a new directory")
        with begun(directory):
            for name in session.store.names():
                directory.write(name, session.store.read(name, 1 << 40))
            if session.store.path is None:
                job = self.search
                checkpoint = directory.save_checkpoint("search", job.step, job.state())
                record["files"] = {checkpoint: directory.digest(checkpoint)}
                directory.write_json("stages/search.json", record)


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
    train_loss: Callable[[Any, Any], Tensor] | None = None,
    reward: Callable[[float, Sequence[int]], float] | None = None,
    calibration: Any = None,
    scoring: Any = None,
    settings: SearchSettings | None = None,
    measure: MeasureSettings | None = None,
    derive: DeriveSettings | None = None,
    machine: MachineSettings | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
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
    train_loss: the loss of the weight steps where it is another one (label smoothing, say).
    reward: (accuracy, candidate indices) -> R, for the estimator `reinforce`; the objective's
        limits hold besides.
    calibration: training batches without augmentation, that renew the statistics of batch
        normalisation before a score; default: `train`. scoring: validation batches that
        networks are scored on; default: `valid`.
    out: a run directory. The search is saved there every half minute, and the same call goes on
        from where it was, to the bit, whatever ended it; `load` reads it later.
    callbacks: see `training.callbacks`.
    ranks: of `with open_ranks() as ranks`, in a script that torchrun starts. All ranks give the
        same batches, of which each takes its slice; rank 0's weights are what counts.

    Raises:
        UserError: the model, the data, a limit or a setting is not usable; the message says how.
    """
    _check(locals(), "model", "loss", "example_inputs", "runtime")
    table_path = None if table is None else str(table)
    config = RunConfig(
        space=CUSTOM,
        target_latency=target_latency,
        limits=dict(limits or {}),
        runtime=runtime if isinstance(runtime, str) else runtime.name,
        table=BROUGHT_TABLE if isinstance(table, LatencyTable) else table_path,
        seed=seed,
        measure=measure or MeasureSettings(),
        search=settings or SearchSettings(),
        derive=derive or DeriveSettings(),
        machine=machine or MachineSettings(),
    )
    check_names(list(costs or {}))
    _check_objective(config, reward is not None)
    problem = ModelProblem(
        model=model,
        task=Task(loss=loss, train_loss=train_loss, correct=correct),
        inputs=tuple(example_inputs),
        batches_of=_batches(
            seed, search=train, valid=valid, calibration=calibration, scoring=scoring
        ),
        functions=dict(costs or {}),
        reward=reward,
    )
    directory = None if out is None else RunDirectory(Path(out), writes=ranks.is_main)
    with contextlib.nullcontext(MemoryStore()) if directory is None else begun(directory) as store:
        session = Session(
            config,
            problem,
            store,
            reporter=Reporter(quiet=quiet or not ranks.is_main),
            ranks=ranks,
            callbacks=Callbacks(callbacks),
            runtime_object=None if isinstance(runtime, str) else runtime,
            table_object=table if isinstance(table, LatencyTable) else None,
        )
        return _searched(session, model, directory)


def _searched(session: Session, model: nn.Module, directory: RunDirectory | None) -> Result:
    """Begin, or go on with what the directory holds, to the derived network."""
    table = session.brought_table
    if table is not None and not session.is_local:
        device = table.device.get("device")
        session.reporter.say(f"the latency table is of {device}: it is used as it is")
    stored = None
    if directory is not None and session.ranks.of_main(lambda: directory.has(CONFIG)):
        stored = directory.read_config()
        config = dataclasses.replace(session.config, machine=stored.machine)  # chosen before
        session = session.configured(config)
    if stored is not None and stored.space == CUSTOM:
        check_identity(session.store, model)
    session = opened(session, stored)
    if stored is None:
        save_identity(session.store, model)
        _save_inputs(session.store, session.inputs)
    with told(session) as facts:
        find_network(session)
        facts |= session.records.require("derive")
    return Result(session=session)


def load(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    train: Any = None,
    valid: Any = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    example_inputs: Sequence[Any] | None = None,
    correct: Callable[[Any, Any], Tensor] | None = None,
    reward: Callable[[float, Sequence[int]], float] | None = None,
    costs: Mapping[str, CostFunction] | None = None,
    runtime: Runtime | None = None,
    quiet: bool = False,
) -> Result:
    """A finished search of a run directory, whichever door made it.

    model: of a search of one's own model, the same model again, untrained. train, valid, loss:
    what `search` was given; only `derive` under other limits needs them. The others: where
    `search` was given them as objects.

    Raises:
        RunError: the directory holds no finished search, or needs the model.
    """
    _check(locals(), "path")
    directory = RunDirectory(Path(path))
    if not directory.has(CONFIG):
        raise RunError(f"{path} holds no run: there is no {CONFIG}")
    config = directory.read_config()
    reporter = Reporter(quiet=quiet)
    problem: Problem
    if config.space != CUSTOM:
        if model is not None:
            raise ConfigError(f"{path} names its model in its settings: leave `model` out")
        problem = ConfiguredProblem(config, reporter)
    elif model is None:
        raise RunError(f"{path} holds a search of a model of your own: load(path, model=Net())")
    else:
        check_identity(directory, model)
        problem = ModelProblem(
            model=model,
            task=Task(loss=loss or _no_loss, correct=correct),
            inputs=tuple(example_inputs or _load_inputs(directory)),
            batches_of=_batches(config.seed, search=train, valid=valid),
            functions=dict(costs or {}),
            reward=reward,
        )
    session = Session(config, problem, directory, reporter=reporter, runtime_object=runtime)
    session.records.require("derive")
    return Result(session=session)


def _no_loss(output: Any, target: Any) -> Tensor:
    raise ConfigError("this needs the loss of the search: load(path, loss=...)")


def _batches(seed: int, **loaders: Any) -> dict[str, Batches]:
    """What was given, as `Batches`; named as in messages."""
    names = {"search": "train"}
    return {
        part: loader
        if callable(getattr(loader, "epoch", None))  # batches already, as our own data give
        else LoaderBatches(loader, name=names.get(part, part), seed=seed)
        for part, loader in loaders.items()
        if loader is not None
    }


def _save_inputs(store: Store, inputs: tuple[Any, ...]) -> None:
    """Kept for `load`, where they are of plain kinds."""
    tensors: dict[str, Tensor] = {}
    with contextlib.suppress(TypeError):
        structure = flatten(tuple(inputs), tensors)
        store.save_tensors(INPUTS, tensors, {"structure": structure})


def _load_inputs(store: Store) -> Any:
    if not store.has(INPUTS):
        raise RunError("the run directory has no example inputs: load(path, example_inputs=(x,))")
    tensors, values = store.load_tensors(INPUTS)
    return unflatten(values.get("structure"), tensors)


def _is(*kinds: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _is_path(value: Any) -> bool:
    return isinstance(value, str | Path) and value != ""  # which would be the directory we are in


# What arguments may be, and the words of a message for it.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_is(nn.Module), "a torch module"),
    "loss": (callable, "a function (output, target) -> scalar"),
    "train_loss": (callable, "a function (output, target) -> scalar"),
    "correct": (callable, "a function (output, target) -> how many are right"),
    "reward": (callable, "a function (accuracy, candidate indices) -> R"),
    "example_inputs": (
        lambda inputs: isinstance(inputs, tuple | list) and len(inputs) > 0,
        "a tuple of the arguments of one forward pass: write (x,) for a single tensor",
    ),
    "limits": (_is(Mapping), "limits by the cost's name, as {'macs': '600M'}"),
    "costs": (_is(Mapping), "functions by the cost's name"),
    "runtime": (
        lambda runtime: isinstance(runtime, str) or callable(getattr(runtime, "load", None)),
        "a name (onnxruntime) or a runtime",
    ),
    "table": (_is(str, Path, LatencyTable), "a path or a LatencyTable"),
    "settings": (_is(SearchSettings), "SearchSettings"),
    "measure": (_is(MeasureSettings), "MeasureSettings"),
    "derive": (_is(DeriveSettings), "DeriveSettings"),
    "machine": (_is(MachineSettings), "MachineSettings"),
    "callbacks": (
        lambda callbacks: (
            isinstance(callbacks, tuple | list)
            and all(isinstance(callback, Callback) for callback in callbacks)
        ),
        "a list of callbacks",
    ),
    "out": (_is_path, "a path"),
    "path": (_is_path, "a path"),
}


def _check(arguments: Mapping[str, Any], *required: str) -> None:
    """Refuse arguments of the wrong kind, which would fail later in torch's words.

    required: names of arguments that must not be None.

    Raises:
        ConfigError: one is.
    """
    for name, (allowed, words) in _KINDS.items():
        value = arguments.get(name)
        if (value is not None or name in required) and not allowed(value):
            given = repr(value) if isinstance(value, str) else type(value).__name__
            raise ConfigError(f"{name} is {given}, not {words}")


def _check_objective(config: RunConfig, own_reward: bool) -> None:
    """The objective's needs, before anything is measured for it."""
    limited = "latency" in all_limits(config.limits, config.target_latency)
    measured = limited or config.table is not None
    check_objective(config.search, measured=measured, limited=limited, own_reward=own_reward)


__all__ = ["Result", "load", "search"]
