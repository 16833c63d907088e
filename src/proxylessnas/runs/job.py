"""The command line's job: a run directory opened or begun, and all its stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from proxylessnas.architecture import Architecture
from proxylessnas.config import RunConfig, parse_settings
from proxylessnas.core.objective import check_objective
from proxylessnas.errors import ConfigError, RunError
from proxylessnas.hardware.runtimes import make
from proxylessnas.io.console import Reporter, duration
from proxylessnas.io.stopping import Signal
from proxylessnas.limits import all_limits
from proxylessnas.runs import summary
from proxylessnas.runs.by_hand import STAGE as BY_HAND
from proxylessnas.runs.by_hand import by_hand
from proxylessnas.runs.configured import ConfiguredProblem
from proxylessnas.runs.directory import CONFIG, RunDirectory
from proxylessnas.runs.specialised import SpecialisedProblem, begin_specialised, with_defaults
from proxylessnas.runs.teaching import prepare
from proxylessnas.session import STAGES
from proxylessnas.session.deriving import derive, derive_within
from proxylessnas.session.exporting import export
from proxylessnas.session.finishing import baselines, evaluate, train
from proxylessnas.session.measuring import measure
from proxylessnas.session.pipeline import begin, find_network, stop_if_asked, told
from proxylessnas.session.records import Records, any_done
from proxylessnas.session.searching import search
from proxylessnas.session.session import Session
from proxylessnas.session.store import Store
from proxylessnas.spaces import complete_settings
from proxylessnas.training.ranks import ALONE, Ranks

# Which stage a setting first matters to: what is done with other settings is another run.
FIRST_STAGE = {
    "search": "search",
    "target_latency": "search",
    "limits": "search",
    "costs": "search",
    "derive": "derive",
    "train": "train",
}


def default_directory(data: str, space: str) -> Path:
    """runs/DATA-SPACE, in letters that a file system takes."""
    words = f"{Path(data).name or data}-{space}"
    return Path("runs") / "".join(c if c.isalnum() or c in "._-" else "-" for c in words)


def open_run(
    directory: RunDirectory,
    settings: Mapping[str, Any],
    *,
    resume: bool,
    reporter: Reporter,
    ranks: Ranks = ALONE,
    signal: Signal | None = None,
    force: bool = False,
) -> Session:
    """A new run, or the one in the directory.

    settings: those that were asked for, nested plain values; all others are defaults, or what
    the directory's config says. force: see `Session`.

    Raises:
        RunError: there is a run and `resume` is False, or its settings differ.
    """
    begun = ranks.of_main(lambda: directory.has(CONFIG))
    if begun and not resume:
        raise RunError(
            f"{directory.path} holds a run already: go on with --resume, or choose another --out"
        )
    stored = directory.read_config() if begun else None
    if stored is not None:
        records = Records(directory, ranks, reporter)
        config = _merge(directory, records, stored, settings)
    else:
        config = parse_settings(RunConfig, with_defaults(settings))
    _check(config, ranks)
    problem = _problem(config, reporter, directory)
    _ = problem.functions  # imported now, for its error
    if stored is None and not config.is_specialised:
        config = _with_space(config, problem)
    session = Session(
        config, problem, directory, reporter=reporter, ranks=ranks, signal=signal, force=force
    )
    if stored is None and isinstance(problem, SpecialisedProblem):
        return begin_specialised(session, problem, directory.write_config)
    if stored is None:
        return begin(session, directory.write_config)
    if config != stored:
        directory.write_config(config)
    return session


def _problem(config: RunConfig, reporter: Reporter, store: Store) -> ConfiguredProblem:
    if config.is_specialised:
        return SpecialisedProblem(config, reporter, store)
    return ConfiguredProblem(config, reporter)


def _check(config: RunConfig, ranks: Ranks) -> None:
    """What can be refused before the data are read.

    Raises:
        ConfigError: no data, an objective without what it needs, a runtime that is not here, or
            batches that the ranks cannot share evenly.
    """
    if config.space == "custom":
        raise RunError(
            "the directory holds a search that Python began: make the same call again, or read it "
            "with proxylessnas.load"
        )
    if config.data == "":
        raise ConfigError(
            "--data is missing: mnist5k, digits, a folder of images, a Hugging Face data set "
            "or torchvision:NAME"
        )
    limits = all_limits(config.limits, config.target_latency)
    check_objective(config.search, measured=True, limited="latency" in limits)
    make(config.runtime, threads=config.measure.threads)
    s = config.search
    ranks.check_divides("search.batch_size", s.batch_size)
    ranks.check_divides("search.valid_batch_size", s.valid_batch_size or s.batch_size)
    ranks.check_divides("train.batch_size", config.train.batch_size)


def _with_space(config: RunConfig, problem: ConfiguredProblem) -> RunConfig:
    """The settings with every setting of the space, those from the data included."""
    settings = complete_settings(config.space, config.space_settings, problem.data.info)
    training = {**settings, **config.train.space_settings}
    complete_settings(config.space, training, None)  # refused before the search is paid for
    return dataclasses.replace(config, space_settings=settings)


def _merge(
    directory: RunDirectory, records: Records, stored: RunConfig, settings: Mapping[str, Any]
) -> RunConfig:
    """The stored config with settings that no finished stage depends on."""
    changes: dict[str, Any] = {}
    for key, value in settings.items():
        before = getattr(stored, key)
        after = {**before, **value} if isinstance(before, dict) else value
        if dataclasses.is_dataclass(before) and not isinstance(before, type):
            after = dataclasses.replace(before, **value)
        if after == before or key == "budget":
            continue
        if key != "baselines":
            _check_open(directory, records, key, before, after)
        changes[key] = after
    return dataclasses.replace(stored, **changes)


def _check_open(
    directory: RunDirectory, records: Records, key: str, before: Any, after: Any
) -> None:
    """RunError where a stage was done with another value of a setting."""
    stage = FIRST_STAGE.get(key)
    if key == "limits" and after.get("peak_memory") != before.get("peak_memory"):
        stage = "measure"  # what needs more memory is never measured
    if stage is not None and not any_done(records, STAGES[STAGES.index(stage) :]):
        return
    name, old, new = _difference(key, before, after)
    raise RunError(
        f"{directory.path} holds another run: its {name} is {_plain(old)}, not {_plain(new)}; "
        "leave the option out, or choose another --out"
    )


def _difference(key: str, before: Any, after: Any) -> tuple[str, Any, Any]:
    """The first setting that is another one: its name and its two values."""
    if dataclasses.is_dataclass(before):
        for field in dataclasses.fields(before):
            old, new = getattr(before, field.name), getattr(after, field.name)
            if old != new:
                return f"{key}.{field.name}", old, new
    return key, before, after


def _plain(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:57] + "..."


def run_all(session: Session, directory: RunDirectory, started: float) -> dict[str, Any]:
    """Every stage that is not done, then the summary."""
    with told(session) as facts:
        if isinstance(session.problem, SpecialisedProblem):
            prepare(session, session.problem)
        session = find_network(session, directory.write_config, started)
        done = session.records.done
        for stage, run in (("train", train), ("evaluate", evaluate)):
            stop_if_asked(session)
            if not done(stage):
                run(session)
        if session.config.baselines:
            compare(session)
        if not done("export"):
            export(session)
        facts |= summary.summarise(session)
        directory.write_json("summary.json", facts)
        session.reporter.say(f"all done in {duration(sum(facts['seconds'].values()))}")
    return facts


def compare(session: Session) -> None:
    """Train and measure the baselines that belong to the road that was taken."""
    if not isinstance(session.problem, SpecialisedProblem):
        baselines(session)
    elif not session.records.done(BY_HAND):
        by_hand(session, session.problem)


def derive_latencies(
    session: Session, latencies: Sequence[str], changes: Mapping[str, Any]
) -> dict[str, Architecture]:
    """A network for each latency limit, from the one finished search's weights and α.

    changes: settings of these derivations alone; the run keeps its own.
    """
    settings = dataclasses.replace(session.config.derive, **changes)
    limits = {name: {**session.limits, "latency": name} for name in map(str.strip, latencies)}
    session.finished_search()
    for within in limits.values():  # all can be kept before the first is derived
        session.within(within)
    return {name: derive_within(session, within, name, settings) for name, within in limits.items()}


def do_stage(session: Session, stage: str) -> None:
    """One stage by its name, unless it is done."""
    if session.records.done(stage):
        session.reporter.say(f"{stage}: done already in {session.store.path}")
        return
    actions: dict[str, Callable[[Session], object]] = {
        "measure": measure,
        "search": search,
        "derive": derive,
        "train": train,
        "evaluate": evaluate,
        "export": export,
    }
    actions[stage](session)
