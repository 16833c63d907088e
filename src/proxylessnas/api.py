"""The Python door: from trained weights, or put a `MixedOp` into any model and search that.

    result = search(pretrained="efficientnet_lite0", data="photos/", target_latency="0.6x",
                    out="runs/photos")
    net = result.derive()          # plain PyTorch, fine-tuned
    result.summary["baselines"]    # what one would do by hand

    result = search(Net(), train=loader, valid=loader, loss=fn, example_inputs=(x,),
                    target_latency="12ms", out="runs/mine")
    net = result.derive()          # plain PyTorch, with the weights the search trained
    result = load("runs/mine", model=Net())    # later, in another process

    result = specialise(trained, train=loader, valid=loader, loss=fn, example_inputs=(x,),
                        target_latency="0.5x")
    result.finetune()
    net = result.derive()          # plain PyTorch, narrower inside

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

import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture
from proxylessnas.config import (
    PRECISIONS,
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
from proxylessnas.data.arguments import Keywords
from proxylessnas.errors import ConfigError, DataError, LimitError, RunError
from proxylessnas.hardware.costs import CostFunction, check_names
from proxylessnas.hardware.runtimes import Runtime, make
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.trace import initialise_lazy
from proxylessnas.io.console import Reporter
from proxylessnas.limits import Limit, all_limits
from proxylessnas.runs.configured import LOADERS
from proxylessnas.runs.directory import RunDirectory, begun, held
from proxylessnas.runs.job import Brought, problem_of
from proxylessnas.runs.opening import opened
from proxylessnas.runs.python_call import run_whole_job
from proxylessnas.session.deriving import derive_within, inherited_network
from proxylessnas.session.finishing import trained_network
from proxylessnas.session.identity import check_identity, save_identity
from proxylessnas.session.inputs import flatten, unflatten
from proxylessnas.session.loaders import blamed
from proxylessnas.session.pipeline import find_network, told
from proxylessnas.session.problem import ModelProblem, Problem
from proxylessnas.session.records import Records
from proxylessnas.session.session import Session
from proxylessnas.session.store import BROUGHT_TABLE, CONFIG, MemoryStore, Store
from proxylessnas.surgery.brought import Trained
from proxylessnas.surgery.saved import CALL
from proxylessnas.surgery.specialise import Specialised, specialise_model
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
        _check(locals())
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
            with held(self.session.store), blamed(loaders):
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
    accept_changed_data: go on there although files of `data` were added, removed or replaced.
    callbacks: see `training.callbacks`.
    ranks: of `with open_ranks() as ranks`, in a script that torchrun starts. All ranks give the
        same batches, of which each takes its slice; rank 0's weights are what counts.

    Raises:
        UserError: the model, the data, a limit or a setting is not usable; the message says how.
    """
    arguments = {name: value for name, value in locals().items() if value is not None}
    arguments |= _with_keywords(example_inputs, arguments.pop("example_kwargs", None))
    loaders = {"search": train, "valid": valid, "test": test}
    loaders |= {"calibration": calibration, "scoring": scoring}
    batches = _batches(seed, arguments.get("example_inputs"), **loaders)
    if model is None and (pretrained is not None or data is not None):
        _check(arguments, "runtime")
        return Result(session=run_whole_job(arguments, batches, out=out, ranks=ranks))
    return _search_model(arguments, batches)


def _search_model(arguments: Mapping[str, Any], batches: Mapping[str, Batches]) -> Result:
    """The search of a model of the user's own."""
    for name in ("pretrained", "data", "image_size", "test", "accept_changed_data"):
        if arguments.get(name, False) is not False:
            raise ConfigError(f"{name} is for trained weights: leave it out, or the model")
    _check(arguments, "model", "loss", "example_inputs", "runtime")
    given, get = arguments.__getitem__, arguments.get
    runtime, table, ranks = given("runtime"), get("table"), given("ranks")
    if isinstance(get("settings"), Mapping):
        raise ConfigError(f"settings is {_in_words(given('settings'))}, not SearchSettings")
    config = RunConfig(
        space=CUSTOM,
        precision=_precision(arguments),
        target_latency=get("target_latency"),
        limits={k: v.item() if hasattr(v, "item") else v for k, v in get("limits", {}).items()},
        runtime=runtime if isinstance(runtime, str) else runtime.name,
        table=BROUGHT_TABLE if isinstance(table, LatencyTable) else table and str(table),
        seed=given("seed"),
        measure=get("measure") or MeasureSettings(),
        search=get("settings") or SearchSettings(),
        derive=get("derive") or DeriveSettings(),
        machine=get("machine") or MachineSettings(),
    )
    costs = dict(get("costs", {}))
    check_names(list(costs))
    _check_objective(config, "reward" in arguments)
    problem = ModelProblem(
        model=given("model"),
        task=Task(loss=given("loss"), train_loss=get("train_loss"), correct=get("correct")),
        inputs=tuple(given("example_inputs")),
        batches_of=batches,
        functions=costs,
        reward=get("reward"),
    )
    initialise_lazy(Supernet(problem.model), problem.inputs)
    directory = None
    if "out" in arguments:
        directory = RunDirectory(Path(given("out")), writes=ranks.is_main)
        if ranks.is_main:
            directory.check_free()
    with contextlib.nullcontext(MemoryStore()) if directory is None else begun(directory) as store:
        session = Session(
            config,
            problem,
            store,
            reporter=Reporter(quiet=given("quiet") or not ranks.is_main),
            ranks=ranks,
            callbacks=Callbacks(given("callbacks")),
            runtime_object=None if isinstance(runtime, str) else runtime,
            table_object=table if isinstance(table, LatencyTable) else None,
        )
        return _searched(session, problem, directory)


def _precision(arguments: Mapping[str, Any]) -> str | None:
    """The precision that is asked for, or the runtime's own where that is int8.

    Raises:
        ConfigError: both are given, or the model's inputs cannot be quantised.
    """
    runtime, precision = arguments["runtime"], arguments.get("precision")
    if not isinstance(runtime, str):
        if precision is not None:
            raise ConfigError("precision is given with a runtime that has one: leave it out")
        own = runtime.describe()["precision"]
        precision = "int8" if own == "int8" else None
    tensors = all(isinstance(value, Tensor) for value in arguments["example_inputs"])
    if precision == "int8" and not tensors:
        raise ConfigError("precision int8 is for models whose inputs are tensors alone")
    if precision is not None and "," in precision:
        raise ConfigError(f"precision is {precision!r}: one, as int8")
    if precision in PRECISIONS and isinstance(runtime, str):
        make(runtime, precision=precision)  # for its error, before anything is done
    return precision


def _searched(session: Session, problem: ModelProblem, directory: RunDirectory | None) -> Result:
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
        check_identity(session.store, problem)
    elif directory is not None:
        directory.check_free()
    session = opened(session, stored)
    if stored is None:
        save_identity(session.store, problem)
        _save_inputs(session.store, session.inputs)
    with told(session) as facts, blamed(problem.batches_of.values()):
        find_network(session)
        facts |= session.records.require("derive")
    return Result(session=session)


@torch.inference_mode(False)
@torch.enable_grad()
def specialise(
    model: nn.Module,
    *,
    train: Any,
    valid: Any,
    loss: Callable[[Any, Any], Tensor],
    target_latency: str,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    blocks: Any = "auto",
    correct: Callable[[Any, Any], Tensor] | None = None,
    runtime: str | Runtime = "onnxruntime",
    measure: MeasureSettings | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    quiet: bool = False,
) -> Specialised:
    """Narrow a trained model, of whatever kind, to a latency; the model itself stays as it is.

    Layers whose channels can be taken out are found on the graph of `torch.export`, and printed
    with what may be chosen, or why they stay (see `surgery.pairs` for what is refused so far).
    What reads fewer channels is refitted by least squares, so that networks work from the first
    step on; the best one within the limit is chosen and measured. `Specialised.finetune` trains
    it with the model as its teacher, `Specialised.derive` returns it.

    train, valid, loss, example_inputs, example_kwargs, correct, runtime: as of `search`.
    target_latency: `12ms`, `800us`, or `0.5x` of the model's own, measured on `runtime`.
    blocks: which layers may be narrowed: `auto`, or names (`layer3.*`) and classes of modules.
    out: a directory for `summary.json`, `layers.txt` and `weights.safetensors`, which
        `surgery.saved.restored` loads into the model. The same call, made again after it was
        killed, goes on from the stages that it finished.

    Raises:
        UserError: the model cannot be exported or narrowed, no network keeps the limit, or an
            argument is not usable; the message says what to do.
    """
    arguments = {name: value for name, value in locals().items() if value is not None}
    arguments |= _with_keywords(example_inputs, arguments.pop("example_kwargs", None))
    _check(arguments, "model", "loss", "example_inputs", "runtime")
    inputs = tuple(arguments["example_inputs"])
    batches = _batches(seed, inputs, search=train, valid=valid)
    for part, name in (("search", "train"), ("valid", "valid")):
        if part not in batches:
            raise DataError(f"there are no batches of `{name}`: give them to the call")
    settings, reporter = measure or MeasureSettings(), Reporter(quiet=quiet)
    directory = None if out is None else RunDirectory(Path(out))
    if directory is not None:
        directory.check_free(CALL)
    with contextlib.nullcontext(MemoryStore()) if directory is None else begun(directory) as store:
        brought = Trained(
            model=model,
            inputs=inputs,
            task=Task(loss=loss, correct=correct),
            train=batches["search"],
            valid=batches["valid"],
            runtime=make(runtime, threads=settings.threads)
            if isinstance(runtime, str)
            else runtime,
            measure=settings,
            seed=seed,
            reporter=reporter,
            records=Records(store, ALONE, reporter),
        )
        with blamed(batches.values()):
            return specialise_model(brought, target_latency, blocks)


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
    _check(locals(), "path")
    directory = RunDirectory(Path(path))
    if not directory.has(CONFIG):
        raise RunError(f"{path} holds no run: there is no {CONFIG}")
    config = directory.read_config()
    reporter = Reporter(quiet=quiet)
    problem: Problem
    given = _with_keywords(example_inputs, example_kwargs)
    example_inputs = given.get("example_inputs", example_inputs)
    batches = _batches(config.seed, example_inputs, search=train, valid=valid)
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
        inputs = tuple(_load_inputs(directory) if example_inputs is None else example_inputs)
        initialise_lazy(Supernet(model), inputs)
        problem = ModelProblem(
            model=model,
            task=Task(loss=_no_loss if loss is None else loss, correct=correct),
            inputs=inputs,
            batches_of=_batches(config.seed, inputs, search=train, valid=valid),
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


def _batches(seed: int, inputs: Any, **loaders: Any) -> dict[str, Batches]:
    """What was given, as `Batches`; named as in messages. inputs: the example inputs, if given."""
    example = tuple(inputs) if isinstance(inputs, tuple | list) else None
    names = {"search": "train"}
    return {
        part: loader
        if callable(getattr(loader, "epoch", None))  # batches already, as our own data give
        else LoaderBatches(loader, name=names.get(part, part), seed=seed, example=example)
        for part, loader in loaders.items()
        if loader is not None
    }


def _with_keywords(inputs: Any, keywords: Any) -> dict[str, Any]:
    """`example_inputs` with the keywords at its end; without, what is given stays.

    Raises:
        ConfigError: the keywords are no mapping of names.
    """
    _check({"example_kwargs": keywords})
    if not keywords:
        return {}
    if inputs is not None and not isinstance(inputs, tuple | list):
        return {"example_inputs": inputs}  # refused as such
    return {"example_inputs": (*(inputs or ()), Keywords(keywords))}


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


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def _is_named(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _is_path(value: Any) -> bool:
    return isinstance(value, str | Path) and value != ""  # which would be the directory we are in


# What arguments may be, and the words of a message for it.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_is(nn.Module), "a torch module (or leave it out, and give pretrained)"),
    "loss": (_is_function, "a function (output, target) -> scalar"),
    "train_loss": (_is_function, "a function (output, target) -> scalar"),
    "correct": (_is_function, "a function (output, target) -> how many are right"),
    "reward": (_is_function, "a function (accuracy, candidate indices) -> R"),
    "example_inputs": (
        lambda inputs: isinstance(inputs, tuple | list) and len(inputs) > 0,
        "a tuple of the arguments of one forward pass: write (x,) for a single tensor",
    ),
    "example_kwargs": (_is_named, "arguments by name, as {'input_ids': x}"),
    "limits": (_is_named, "limits by the cost's name, as {'macs': '600M'}"),
    "costs": (_is_named, "functions by the cost's name"),
    "runtime": (
        lambda runtime: isinstance(runtime, str) or callable(getattr(runtime, "load", None)),
        "a name (onnxruntime) or a runtime",
    ),
    "precision": (_is(str), "a name, as int8"),
    "table": (_is(str, Path, LatencyTable), "a path or a LatencyTable"),
    "pretrained": (_is_path, "a name, as efficientnet_lite0, or a path"),
    "data": (_is_path, "a folder of images, or a data set's name"),
    "settings": (_is(SearchSettings, Mapping), "SearchSettings"),
    "measure": (_is(MeasureSettings), "MeasureSettings"),
    "derive": (_is(DeriveSettings), "DeriveSettings"),
    "machine": (_is(MachineSettings), "MachineSettings"),
    "accept_changed_data": (_is(bool), "True or False"),
    "callbacks": (
        lambda callbacks: (
            isinstance(callbacks, tuple | list)
            and all(isinstance(callback, Callback) for callback in callbacks)
        ),
        "a list of Callback objects",
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
            raise ConfigError(f"{name} is {_in_words(value)}, not {words}")


def _in_words(value: Any) -> str:
    """An argument of the wrong kind, as a message says it: what is wrong inside, for containers."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__} itself (an instance would be {value.__name__}(...))"
    if isinstance(value, Mapping):
        return f"a mapping with the keys {', '.join(map(repr, value))}"
    if isinstance(value, list | tuple) and value:
        return f"a {type(value).__name__} of {', '.join(type(v).__name__ for v in value[:5])}"
    return type(value).__name__


def _check_objective(config: RunConfig, own_reward: bool) -> None:
    """The objective's needs, before anything is measured for it."""
    limited = "latency" in all_limits(config.limits, config.target_latency)
    measured = limited or config.table is not None
    check_objective(config.search, measured=measured, limited=limited, own_reward=own_reward)


__all__ = ["Result", "Specialised", "load", "search", "specialise"]
