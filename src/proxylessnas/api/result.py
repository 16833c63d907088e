"""A finished search: what it found, networks within other limits, and how it is read again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from proxylessnas.api.arguments import batches_of, check_kinds, given
from proxylessnas.architecture import Architecture
from proxylessnas.config import (
    MachineSettings,
)
from proxylessnas.core.costs import Costs
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import ConfigError, LimitError, RunError
from proxylessnas.hardware.costs import CostFunction
from proxylessnas.hardware.examples import initialise_lazy
from proxylessnas.hardware.runtimes import Runtime
from proxylessnas.io.console import Reporter
from proxylessnas.limits import Limit, all_limits
from proxylessnas.runs.begin import Brought, problem_of
from proxylessnas.runs.configured import LOADERS
from proxylessnas.runs.directory import RunDirectory, begun
from proxylessnas.session.deriving import derive_within, inherited_network
from proxylessnas.session.finishing import trained_network
from proxylessnas.session.identity import check_identity
from proxylessnas.session.inputs import load_inputs
from proxylessnas.session.loaders import blamed
from proxylessnas.session.problem import ModelProblem, Problem
from proxylessnas.session.session import Session
from proxylessnas.session.store import CONFIG
from proxylessnas.surgery.saved import CALL
from proxylessnas.training.task import Task

CUSTOM = "custom"  # the space of a model that was handed in


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
    def summary(self) -> dict[str, Any]:
        """All figures of a whole job, as in `summary.json`: test_accuracy, measured_latency_ms,
        with trained weights also teacher_accuracy, linear_accuracy, majority_accuracy and the
        baselines, each with accuracy and measured latency.

        Raises:
            RunError: the search was of a model of your own, which is not trained on, or the job
                is not finished.
        """
        store = self.session.store
        if not store.has("summary.json"):
            raise RunError(
                "there is no summary: only a whole job, with pretrained or data, has one"
            )
        facts: dict[str, Any] = store.read_json("summary.json")
        return facts

    @property
    def search(self) -> Search:
        """The search as it ended."""
        return self.session.finished_search()

    @property
    def supernet(self) -> Supernet:
        """The supernet as the search left it."""
        return self.session.finished_supernet()

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

        Of a whole job, the chosen network has the weights that it was trained to. Others have the
        supernet's, and BN statistics of their own: the supernet's are a mixture over its paths.

        Raises:
            LimitError: no network keeps the limits, or the latency was not measured.
        """
        check_kinds(locals())
        others = all_limits(limits or {}, latency)
        if not others and self.session.records.done("train"):
            return trained_network(self.session).cpu()
        if not others:
            return inherited_network(self.session)
        if "latency" in others and "latency" not in self.session.unlimited_costs:
            raise LimitError(
                "this search measured no latency: give search() a target_latency, or a table"
            )
        name = "-".join(f"{k}-{v}" if k != "latency" else str(v) for k, v in others.items())
        if not self.session.records.done(f"derive-{name}"):
            loaders = getattr(self.session.problem, "batches_of", {}).values()
            with self.session.store.held(), blamed(loaders):
                derive_within(self.session, {**self.limits, **others}, name)
        return inherited_network(self.session, f"-{name}")

    def save(self, path: str | Path) -> None:
        """Write the finished search as a run directory, which `load` reads.

        Raises:
            RunError: the directory is not empty, or cannot be written.
        """
        check_kinds(locals(), "path")
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


def load(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    train: Any = None,
    valid: Any = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
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
    check_kinds(locals(), "path")
    directory = RunDirectory(Path(path))
    if directory.has(CALL):
        raise RunError(
            f"{path} holds a specialised model: the same call of specialise(out=...) returns its "
            "result again, and surgery.saved.restored(model, path) the network alone"
        )
    if not directory.has(CONFIG):
        raise RunError(f"{path} holds no run: there is no {CONFIG}")
    config = directory.read_config()
    reporter = Reporter(quiet=quiet)
    problem: Problem
    named = given({"example_inputs": example_inputs, "example_kwargs": example_kwargs})
    example_inputs = named.get("example_inputs")
    batches = batches_of(config.seed, example_inputs, search=train, valid=valid)
    if config.space != CUSTOM:
        if model is not None:
            raise ConfigError(f"{path} names its model in its settings: leave `model` out")
        if batches and config.data != LOADERS:
            raise ConfigError(
                f"{path} names its data in its settings: leave `train` and `valid` out"
            )
        brought = Brought(loaders=batches, costs=costs or {})
        problem = problem_of(config, reporter, directory, brought)
    elif model is None:
        raise RunError(f"{path} holds a search of a model of your own: load(path, model=Net())")
    else:
        inputs = tuple(load_inputs(directory) if example_inputs is None else example_inputs)
        initialise_lazy(Supernet(model), inputs)
        problem = ModelProblem(
            model=model,
            task=Task(loss=_no_loss if loss is None else loss, correct=correct),
            inputs=inputs,
            batches_of=batches_of(config.seed, inputs, search=train, valid=valid),
            functions=dict(costs or {}),
            reward=reward,
        )
        check_identity(directory, problem, loss=loss is not None)
    session = Session(config, problem, directory, reporter=reporter, runtime_object=runtime)
    session.records.require("derive")
    session.records.check_files("measure")
    return Result(session=session)


def _no_loss(output: Any, target: Any) -> Tensor:
    raise ConfigError("this needs the loss of the search: load(path, loss=...)")
