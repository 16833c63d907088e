"""The calls that begin, or go on with, a search."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.api.arguments import (
    batches_of,
    check_kinds,
    check_needs,
    given,
    in_words,
    precision_of,
)
from proxylessnas.api.result import CUSTOM, Result
from proxylessnas.config import (
    DeriveSettings,
    MachineSettings,
    MeasureSettings,
    RunConfig,
    SearchSettings,
)
from proxylessnas.core.supernet import Supernet
from proxylessnas.data import Batches
from proxylessnas.errors import ConfigError, RunError
from proxylessnas.hardware.costs import CostFunction, check_names
from proxylessnas.hardware.examples import initialise_lazy
from proxylessnas.hardware.runtimes import Runtime
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.io.console import Reporter
from proxylessnas.limits import Limit
from proxylessnas.runs.directory import RunDirectory, begun
from proxylessnas.runs.opening import opened
from proxylessnas.runs.python_call import named_objects, objects, run_whole_job
from proxylessnas.session.identity import check_identity, save_identity
from proxylessnas.session.inputs import save_inputs
from proxylessnas.session.loaders import blamed, nothing_lost
from proxylessnas.session.pipeline import find_network, told
from proxylessnas.session.problem import ModelProblem
from proxylessnas.session.session import Session
from proxylessnas.session.store import CONFIG
from proxylessnas.training.callbacks import Callback, Callbacks
from proxylessnas.training.ranks import ALONE, Ranks
from proxylessnas.training.task import Task


@torch.inference_mode(False)
@torch.enable_grad()
def search(
    model: nn.Module | None = None,
    *,
    pretrained: str | Path | None = None,
    data: str | Path | None = None,
    image_size: int | None = None,
    train: Any = None,
    valid: Any = None,
    test: Any = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    target_latency: str | None = None,
    limits: Mapping[str, Limit] | None = None,
    costs: Mapping[str, CostFunction] | None = None,
    runtime: str | Runtime = "onnxruntime",
    precision: str | None = None,
    table: str | Path | LatencyTable | None = None,
    correct: Callable[[Any, Any], Tensor] | None = None,
    train_loss: Callable[[Any, Any], Tensor] | None = None,
    reward: Callable[[float, Sequence[int]], float] | None = None,
    calibration: Any = None,
    scoring: Any = None,
    settings: SearchSettings | Mapping[str, Any] | None = None,
    measure: MeasureSettings | None = None,
    derive: DeriveSettings | None = None,
    machine: MachineSettings | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    accept_changed_data: bool = False,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    ranks: Ranks = ALONE,
) -> Result:
    """Specialise trained weights to images, or search a model that holds mixed operations.

    Either the whole job, as `proxylessnas run`:

    pretrained: a trained network: efficientnet_lite0, torchvision:mobilenet_v2, timm:NAME, a
        checkpoint, or a run's directory. None, with `data`: from scratch.
    data: a folder of images (one folder a class), or what else `run --data` takes.
    image_size: side in pixels. Default: the data's own, 224 where sizes are mixed.
    train, valid, test: in place of `data`, loaders of (images, labels): float32 [batch, channels,
        height, width] that are normalised with the mean and deviation of the weights
        (`pretrained.load_pretrained(NAME).input`), and class numbers [batch]. Without `test`
        accuracies are of `valid`. The network is taught and fine-tuned on `train` alone.
    settings: others of `run`, nested as in a config file: {"teach": {"epochs": 3}}.

    Or a model, trained in place:

    train, valid: sized iterables of (inputs, target), such as DataLoaders, over different
        examples. Inputs may be a tensor, a tuple (spread over the arguments) or a dict.
    loss: (model output, target) -> scalar. Parameters of modules that it is or holds (centres, a
        classifier, log-variances) learn with the weights, without weight decay.
    example_inputs: the arguments of one forward pass; their shapes are what is measured. They
        also say how the model takes a batch: whether a list is several arguments or one.
        example_kwargs: those that are given by keyword; batches are dicts then.
    correct: (output, target) -> how many of the batch are right; lets the final choice go by
        accuracy rather than by loss.
    train_loss: the loss of the weight steps where it is another one (label smoothing, say).
    reward: (accuracy, candidate indices) -> R, for the estimator `reinforce`; the objective's
        limits hold besides.
    settings: `SearchSettings`.

    Both:

    target_latency: `12ms`, `800us`, or `0.6x` of the largest network (with trained weights: of
        the teacher); measured on `runtime` unless `table` is given. The short form of
        limits["latency"].
    limits: by the cost's name: latency, macs and parameters (of one example), peak_memory (MiB of
        any one candidate's activations), a column of the table, or a cost of `costs`. A number,
        or as `12ms`, `600M`, `0.6x`.
    costs: costs of your own by name, functions of a candidate module (or a whole network) and its
        inputs to a number that adds up over the network, see `hardware.costs.function_costs`.
    table: a latency table, of these inputs' batch. Where it was measured on `runtime`, on this
        machine and with as many threads, the last candidates are measured too and correct its
        predictions; the table of another device is used as it is, and nothing is measured here.
    precision: `int8` finds, measures and scores networks after quantisation; of a runtime that is
        named (`make("onnxruntime", precision="int8")` is one that is not).
    calibration: training batches without augmentation, that renew the statistics of batch
        normalisation before a score, or that candidates are fitted to; default: `train`.
        scoring: validation batches that networks are scored on; default: `valid`.
    out: a run directory. The search is saved there every half minute, and the same call goes on
        from where it was, to the bit, whatever ended it; `load` reads it later.
    accept_changed_data: go on there although files of `data` were added, removed or replaced, or
        loaders give another number of batches.
    callbacks: see `training.callbacks`.
    ranks: of `with open_ranks() as ranks`, in a script that torchrun starts. All ranks give the
        same batches, of which each takes its slice; rank 0's weights are what counts.

    Raises:
        UserError: the model, the data, a limit or a setting is not usable; the message says how.
    """
    arguments = given(locals())
    loaders = {"search": train, "valid": valid, "test": test}
    loaders |= {"calibration": calibration, "scoring": scoring}
    batches = batches_of(seed, arguments.get("example_inputs"), **loaders)
    if model is None and (pretrained is not None or data is not None):
        check_kinds(arguments, "runtime")
        return Result(session=run_whole_job(arguments, batches, out=out, ranks=ranks))
    return _search_model(arguments, batches)


def _search_model(arguments: Mapping[str, Any], batches: Mapping[str, Batches]) -> Result:
    """The search of a model of the user's own."""
    for name in ("pretrained", "data", "image_size", "test"):
        if arguments.get(name, False) is not False:
            raise ConfigError(f"{name} is for trained weights: leave it out, or the model")
    check_kinds(arguments, "model", "loss", "example_inputs", "runtime")
    get = arguments.get
    (runtime, table), ranks = objects(arguments), arguments["ranks"]
    if isinstance(get("settings"), Mapping):
        raise ConfigError(f"settings is {in_words(get('settings'))}, not SearchSettings")
    config = RunConfig(
        space=CUSTOM,
        precision=precision_of(arguments),
        target_latency=get("target_latency"),
        limits={k: v.item() if hasattr(v, "item") else v for k, v in get("limits", {}).items()},
        **named_objects(arguments),
        seed=arguments["seed"],
        measure=get("measure") or MeasureSettings(),
        search=get("settings") or SearchSettings(),
        derive=get("derive") or DeriveSettings(),
        machine=get("machine") or MachineSettings(),
    )
    costs = dict(get("costs", {}))
    check_names(list(costs))
    check_needs(config, "reward" in arguments)
    problem = ModelProblem(
        model=arguments["model"],
        task=Task(loss=arguments["loss"], train_loss=get("train_loss"), correct=get("correct")),
        inputs=tuple(arguments["example_inputs"]),
        batches_of=batches,
        functions=costs,
        reward=get("reward"),
    )
    initialise_lazy(Supernet(problem.model), problem.inputs)
    out = get("out")
    directory = None if out is None else RunDirectory(Path(out), writes=ranks.is_main)
    if directory is not None and ranks.is_main:
        directory.check_free()
    with begun(directory) as store:
        session = Session(
            config,
            problem,
            store,
            reporter=Reporter(quiet=arguments["quiet"] or not ranks.is_main),
            ranks=ranks,
            callbacks=Callbacks(arguments["callbacks"]),
            runtime_object=runtime,
            table_object=table,
        )
        accept = arguments["accept_changed_data"]
        return _searched(session, problem, directory, accept_changed_data=accept)


def _searched(
    session: Session,
    problem: ModelProblem,
    directory: RunDirectory | None,
    *,
    accept_changed_data: bool,
) -> Result:
    """Begin, or go on with what the directory holds, to the derived network."""
    table = session.brought_table
    if table is not None and not session.is_local:
        session.reporter.say(f"{session.not_local}: its latencies are used as they are")
    stored = None
    if directory is not None and session.ranks.of_main(lambda: directory.has(CONFIG)):
        stored = directory.read_config()
        if stored.space != CUSTOM:
            raise RunError(
                f"{directory.path} holds a run of the command line, of the data {stored.data!r}: "
                "choose another directory as `out`; load(path) reads it"
            )
        config = dataclasses.replace(session.config, machine=stored.machine)  # chosen before
        session = session.configured(config)
        check_identity(session.store, problem, accept_changed_data=accept_changed_data)
    elif directory is not None:
        directory.check_free()
    session = opened(session, stored)
    if stored is None:
        save_identity(session.store, problem)
        save_inputs(session.store, session.inputs)
    with (
        told(session) as facts,
        nothing_lost(session.store),
        blamed(problem.batches_of.values()),
    ):
        find_network(session)
        facts |= session.records.require("derive")
    return Result(session=session)
