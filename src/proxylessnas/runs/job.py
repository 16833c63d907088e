"""The command line's job: a run directory opened or begun, and all its stages."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from proxylessnas.architecture import Architecture
from proxylessnas.config import RunConfig, left_to_defaults, parse_minutes, parse_settings
from proxylessnas.core.objective import check_objective
from proxylessnas.data import Batches
from proxylessnas.errors import ConfigError, RunError
from proxylessnas.hardware.costs import CostFunction, check_names
from proxylessnas.hardware.published_table import check_suits, is_published, read_published_table
from proxylessnas.hardware.runtimes import Runtime, make
from proxylessnas.hardware.shared_tables import default_folder, table_of_device
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.io.console import Reporter, duration, say
from proxylessnas.io.stopping import Signal
from proxylessnas.limits import all_limits
from proxylessnas.report.verdict import accuracy_words
from proxylessnas.runs import summary, within_budget
from proxylessnas.runs.any_model import ModelProblem
from proxylessnas.runs.by_hand import STAGE as BY_HAND
from proxylessnas.runs.by_hand import by_hand
from proxylessnas.runs.changes import check_data, record_data
from proxylessnas.runs.configured import ConfiguredProblem
from proxylessnas.runs.defaults import check_used, with_defaults
from proxylessnas.runs.narrowing import STAGES as NARROWING
from proxylessnas.runs.narrowing import narrow
from proxylessnas.runs.opening import opened
from proxylessnas.runs.reach import check_reach
from proxylessnas.runs.reporting import write_report
from proxylessnas.runs.sizes import decide_size, undecided
from proxylessnas.runs.specialised import SpecialisedProblem, begin_specialised
from proxylessnas.runs.strides import with_strides
from proxylessnas.runs.teaching import prepare
from proxylessnas.session.budget import Budget, open_budget
from proxylessnas.session.deriving import derive, derive_within
from proxylessnas.session.exporting import export
from proxylessnas.session.finishing import baselines, evaluate, train
from proxylessnas.session.fitting import fit, fit_limit
from proxylessnas.session.measuring import measure
from proxylessnas.session.pipeline import find_network, keep_settings, stop_if_asked, told
from proxylessnas.session.searching import search
from proxylessnas.session.session import Session
from proxylessnas.session.store import BROUGHT_TABLE, CONFIG, Store
from proxylessnas.spaces import complete_settings
from proxylessnas.training.callbacks import Callbacks
from proxylessnas.training.ranks import ALONE, Ranks

FEW_PHOTOS = 50_000  # as many as CIFAR-10 has, which is searched from scratch in the paper


def default_directory(data: str, space: str) -> Path:
    """runs/DATA-SPACE, in letters that a file system takes."""
    words = f"{Path(data).name or data}-{space}"
    return Path("runs") / "".join(c if c.isalnum() or c in "._-" else "-" for c in words)


@dataclass(frozen=True, kw_only=True)
class Brought:
    """What the Python call brings as objects, where the command line has names.

    loaders: part -> batches of images, in place of the data. costs: functions by name. The others
    are a `Session`'s.
    """

    loaders: Mapping[str, Batches] | None = None
    costs: Mapping[str, CostFunction] = field(default_factory=dict)
    runtime: Runtime | None = None
    table: LatencyTable | None = None
    callbacks: Callbacks = field(default_factory=lambda: Callbacks(()))


def open_run(
    directory: Store,
    settings: Mapping[str, Any],
    *,
    resume: bool,
    reporter: Reporter,
    ranks: Ranks = ALONE,
    signal: Signal | None = None,
    force: bool = False,
    started: float | None = None,
    brought: Brought | None = None,
    again: str | None = None,
    accept_changed_data: bool = False,
) -> Session:
    """A new run, or the one in the directory.

    settings: those that were asked for, nested plain values; all others are defaults, or what
    the directory's config says. force: see `Session`. started: when the command began, in seconds
    of `time.monotonic`; a budget counts from there. brought: objects, by the Python call. again: a
    stage that may be done a second time, with other settings.

    Raises:
        RunError: there is a run and `resume` is False, or its settings or its data differ; or other
            files are there.
    """
    brought = brought or Brought()
    begun = ranks.of_main(lambda: directory.has(CONFIG))
    if begun and not resume:
        raise RunError(
            f"{directory.path} holds a run already: go on with --resume, or choose another --out"
        )
    stored = directory.read_config() if begun else None
    if stored is not None and (missing := left_to_defaults(directory.file(CONFIG))):
        reporter.say(
            f"the run is of an earlier version, without {', '.join(missing[:5])}"
            f"{', ...' * (len(missing) > 5)}: as that version did it, which is the default"
        )
    if stored is None:
        if ranks.is_main:
            directory.check_free()
        config = _of_device(parse_settings(RunConfig, with_defaults(settings)), settings)
        check_used(config)
    else:
        config = _with(stored, undecided(directory, settings), reporter)
    if stored is None and resume and config.data == "":
        raise RunError(
            f"{directory.path} holds no run to go on with: give --out the directory of one, or "
            "--data to begin one"
        )
    opening = partial(
        _open,
        reporter=reporter,
        ranks=ranks,
        signal=signal or Signal(),
        force=force,
        started=started or time.monotonic(),
        brought=brought,
        again=again,
        accept_changed_data=accept_changed_data,
        given=settings,
    )
    if isinstance(config.image_size, str):
        _check(config, ranks, brought)
        whole = problem_of(
            dataclasses.replace(config, image_size=None), reporter, directory, brought
        )
        side = lambda: whole.data.info.shape[1]  # noqa: E731
        config = stored = decide_size(config, directory, opening, side, reporter)
    return opening(directory, config, stored)


def _open(
    directory: Store,
    config: RunConfig,
    stored: RunConfig | None,
    *,
    reporter: Reporter,
    ranks: Ranks,
    signal: Signal,
    force: bool,
    started: float,
    brought: Brought,
    again: str | None,
    accept_changed_data: bool,
    given: Mapping[str, Any],
) -> Session:
    """A session with these settings.

    stored: those that its directory holds already. given: those that were asked for.
    """
    _check(config, ranks, brought)
    problem = problem_of(config, reporter, directory, brought)
    _ = problem.functions  # imported now, for its error
    if stored is None and not config.is_specialised:
        config = _with_space(config, problem, ranks, brought.runtime)
        _propose_trained_weights(config, problem, reporter)
    session = Session(
        config,
        problem,
        directory,
        reporter=reporter,
        ranks=ranks,
        signal=signal,
        callbacks=brought.callbacks,
        runtime_object=brought.runtime,
        table_object=brought.table,
        force=force,
        budget=_budget(config, directory, started),
    )
    if stored is not None:
        problem.check_data = partial(check_data, session, accept_changed_data)
        return opened(session, stored, again)
    if isinstance(problem, SpecialisedProblem):
        session = begin_specialised(session, problem, given)
        if isinstance(problem, ModelProblem):
            suited = problem.suited(session.config, given)
            session = session.configured(dataclasses.replace(suited, search=config.search))
            problem.found(session)  # refused before anything is kept
        else:
            check_reach(session, problem)
        if session.budget is not None:
            within_budget.begin_within(session, problem, session.budget)
        keep_settings(session)
    else:
        session = opened(session, None)
    record_data(directory, problem.data)
    return session


def _budget(config: RunConfig, store: Store, started: float) -> Budget | None:
    if not config.is_specialised:
        return open_budget(config.budget, store, started)
    shares = within_budget.shares(config)
    return open_budget(config.budget, store, started, shares, within_budget.FITS)


def _with(stored: RunConfig, settings: Mapping[str, Any], reporter: Reporter) -> RunConfig:
    """The stored settings, with others over them; a budget only as long as it was not fitted."""
    changes: dict[str, Any] = {}
    for key, value in settings.items():
        before = getattr(stored, key)
        if dataclasses.is_dataclass(before) and not isinstance(before, type):
            changes[key] = dataclasses.replace(before, **value)
        else:
            changes[key] = {**before, **value} if isinstance(before, dict) else value
    if stored.budget is None and changes.pop("budget", None) is not None:
        reporter.say("a budget is fitted when a run begins: the epochs stay as they are")
    return dataclasses.replace(stored, **changes)


def problem_of(
    config: RunConfig, reporter: Reporter, store: Store, brought: Brought | None = None
) -> ConfiguredProblem:
    """The problem that settings name: from scratch, or from trained weights."""
    brought = brought or Brought()
    problem = ConfiguredProblem(config, reporter, brought.loaders)
    if config.is_specialised:
        kind = SpecialisedProblem if config.model is None else ModelProblem
        problem = kind(config, reporter, store, brought.loaders)
    if brought.costs:
        check_names(list(brought.costs))
        problem.functions = brought.costs
    return problem


def _check(config: RunConfig, ranks: Ranks, brought: Brought) -> None:
    """What can be refused before the data are read.

    Raises:
        ConfigError: no data, an objective without what it needs, a runtime that is not here, or
            batches that the ranks cannot share evenly. MeasurementError: see `_check_table`.
    """
    if config.space == "custom":
        raise RunError(
            "the directory holds a search that Python began: make the same call again, or read it "
            "with proxylessnas.load"
        )
    if config.data == "":
        raise ConfigError(
            "--data is missing: a folder of images, a Hugging Face data set, torchvision:NAME, "
            "mnist5k, digits or surfaces"
        )
    _check_one_precision(config)
    limits = all_limits(config.limits, config.target_latency)
    check_objective(config.search, measured=True, limited="latency" in limits)
    if brought.runtime is None:
        make(config.runtime, threads=config.measure.threads, precision=config.precision)
    _check_table(config)
    if config.model is not None and "latency" not in limits:
        raise ConfigError(
            f"--model {config.model} is narrowed to a latency: give --target-latency, as 8ms or "
            "0.5x of its own"
        )
    if config.model is not None and ranks.world > 1:
        raise ConfigError(f"--model works in one process, and here are {ranks.world}: take one")
    s = config.search
    ranks.check_divides("search.batch_size", s.batch_size)
    ranks.check_divides("search.valid_batch_size", s.valid_batch_size or s.batch_size)
    ranks.check_divides("train.batch_size", config.train.batch_size)


def _of_device(config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """The settings with the table of the device that they name.

    Raises:
        ConfigError: a table is named too. MeasurementError: the folder has no such table.
    """
    if config.device is None:
        if config.tables is not None:
            raise ConfigError("tables is a folder to find a device's table in: give --device too")
        return config
    if config.table is not None:
        raise ConfigError(f"device is {config.device} and table is {config.table}: give one")
    path = table_of_device(
        config.device,
        config.tables or default_folder(),
        precision=config.precision,
        runtime=config.runtime if "runtime" in given else None,
    )
    return dataclasses.replace(config, table=str(path))


def _check_one_precision(config: RunConfig) -> None:
    if config.precision is not None and "," in config.precision:
        raise ConfigError(
            f"--precision {config.precision}: a network is found for one precision; several are "
            "compared by proxylessnas measure NETWORK"
        )


def _check_table(config: RunConfig) -> None:
    """Read the latency table that the settings name, for its error.

    Raises:
        MeasurementError: it cannot be read, or prices other networks.
    """
    if config.table is None or config.table == BROUGHT_TABLE:
        return
    if not is_published(config.table):
        LatencyTable.load(config.table).check_precision(config.precision)
        return
    if config.precision not in (None, "f32"):
        raise ConfigError(
            f"{config.table} is of networks in f32, and {config.precision} is asked for: leave "
            "--precision out, or measure that device with a kit"
        )
    shape = config.space_settings.get("input_shape")
    size = shape[1] if isinstance(shape, list | tuple) and len(shape) == 3 else config.image_size
    table = read_published_table(config.table)
    check_suits(table, config.space, size if isinstance(size, int) else None)


def _propose_trained_weights(
    config: RunConfig, problem: ConfiguredProblem, reporter: Reporter
) -> None:
    """One line where a search from scratch is not what a user with few photos wants."""
    images, channels = problem.data.size("train"), problem.data.info.shape[0]
    if config.pretrained is None and channels == 3 and images < FEW_PHOTOS:
        reporter.say(
            f"  {images:,} photos are few to begin from scratch: --pretrained efficientnet_lite0 "
            "begins with trained weights (--pretrained none says that you do not want them)"
        )


def _with_space(
    config: RunConfig, problem: ConfiguredProblem, ranks: Ranks, runtime: Runtime | None
) -> RunConfig:
    """The settings with every setting of the space, those from the data included."""
    info, m = problem.data.info, config.measure
    settings = complete_settings(config.space, config.space_settings, info)
    training = {**settings, **config.train.space_settings}
    complete_settings(config.space, training, None)  # refused before the search is paid for
    runtime = runtime or make(config.runtime, threads=m.threads, precision=config.precision)
    return dataclasses.replace(config, space_settings=with_strides(config, problem, runtime, ranks))


def run_all(session: Session, started: float) -> dict[str, Any]:
    """Every stage that is not done, then the summary.

    started: when the command began, in seconds of `time.monotonic`.
    """
    with told(session) as facts:
        if isinstance(session.problem, ModelProblem):
            narrow(session, session.problem)
        else:
            if isinstance(session.problem, SpecialisedProblem):
                prepare(session, session.problem)
            find_network(session)
        done = session.records.done
        for stage, run in (("train", train), ("evaluate", evaluate)):
            stop_if_asked(session)
            if not done(stage):
                fit(session, stage)
                run(session)
        if session.config.baselines:
            compare(session)
        if not done("export"):
            export(session)
        facts |= summary.summarise(session)
        session.store.write_json("summary.json", facts)
        if session.store.path is not None and session.ranks.is_main:
            write_report([session.store.path])
        session.reporter.say(f"all done in {duration(time.monotonic() - started)}")
    return facts


def compare(session: Session) -> None:
    """Train and measure the baselines that belong to the road that was taken."""
    if not isinstance(session.problem, SpecialisedProblem):
        baselines(session)
    elif not session.records.done(BY_HAND):
        by_hand(session, session.problem)


def derive_latencies(
    session: Session,
    latencies: Sequence[str],
    changes: Mapping[str, Any],
    budget: str | None = None,
    started: float | None = None,
) -> dict[str, Architecture]:
    """A network for each latency limit, from the one finished search's weights and α.

    changes: settings of these derivations alone; the run keeps its own. budget: time for all of
    them, as `10m`. started: when the command began, as for a run.
    """
    if isinstance(session.problem, ModelProblem):
        raise ConfigError(
            "a run of --model is for one limit: begin another one with --target-latency in another "
            "--out, or take result.within(...) of proxylessnas.specialise in Python"
        )
    settings = dataclasses.replace(session.config.derive, **changes)
    limits = {name: {**session.limits, "latency": name} for name in map(str.strip, latencies)}
    session.finished_search()
    for within in limits.values():  # all can be kept before the first is derived
        session.within(within)
    networks, left = {}, None
    if budget is not None:
        shares, total = dict.fromkeys(limits, 1.0), 60 * parse_minutes(budget)
        left = Budget(total=total, shares=shares, started=started or time.monotonic())
    for name, within in limits.items():
        fitted = settings
        if left is not None:
            seconds = session.ranks.of_main(partial(left.seconds_for, name))
            fitted = fit_limit(session, settings, seconds)
            session.reporter.say(
                f"  budget: {duration(seconds)} for {name}: {fitted.arch_steps} steps of alpha at "
                f"most, {fitted.top_k} networks scored, {fitted.measure_best} measured"
            )
        networks[name] = derive_within(session, within, name, fitted)
    return networks


def do_stage(session: Session, stage: str) -> None:
    """One stage by its name, unless it is done."""
    if session.records.done(stage):
        session.reporter.say(f"{stage}: done already in {session.store.path}")
        record = session.records.require(stage)
        if record.get("accuracy") is not None:
            say(f"test accuracy {accuracy_words(record['accuracy'], record.get('examples') or 0)}")
        return
    actions: dict[str, Callable[[Session], object]] = {
        "measure": measure,
        "search": search,
        "derive": derive,
        "train": train,
        "evaluate": evaluate,
        "export": export,
    }
    if isinstance(session.problem, ModelProblem) and stage in NARROWING:
        narrow(session, session.problem)  # one way, which latency begins and ends
        return
    fit(session, stage)
    actions[stage](session)
