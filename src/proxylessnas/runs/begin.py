"""A run directory opened or begun, with the settings and the objects that were given."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from proxylessnas.config import RunConfig, left_to_defaults, parse_settings
from proxylessnas.data import Batches
from proxylessnas.errors import RunError
from proxylessnas.hardware.costs import CostFunction, check_names
from proxylessnas.hardware.runtimes import Runtime, make
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.io.console import Reporter
from proxylessnas.io.stopping import Signal
from proxylessnas.runs import within_budget
from proxylessnas.runs.any_model import ModelProblem
from proxylessnas.runs.changes import check_data, record_data
from proxylessnas.runs.configured import ConfiguredProblem
from proxylessnas.runs.defaults import check_used, with_defaults
from proxylessnas.runs.opening import opened
from proxylessnas.runs.reach import check_reach
from proxylessnas.runs.refusals import check, of_device
from proxylessnas.runs.sizes import decide_size, undecided
from proxylessnas.runs.specialised import SpecialisedProblem, begin_specialised
from proxylessnas.runs.strides import with_strides
from proxylessnas.session.budget import Budget, open_budget
from proxylessnas.session.pipeline import keep_settings
from proxylessnas.session.session import Session
from proxylessnas.session.store import CONFIG, Store
from proxylessnas.spaces import complete_settings
from proxylessnas.training.callbacks import Callbacks
from proxylessnas.training.ranks import ALONE, Ranks

FEW_PHOTOS = 50_000  # as many as CIFAR-10 has, which is searched from scratch in the paper


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


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a run is opened.

    given: the settings that were asked for, nested plain values. force: see `Session`. started:
    when the command began, in seconds of `time.monotonic`; a budget counts from there. brought:
    objects, by the Python call. again: a stage that may be done a second time, with other settings.
    """

    given: Mapping[str, Any]
    reporter: Reporter
    ranks: Ranks = ALONE
    signal: Signal = field(default_factory=Signal)
    force: bool = False
    started: float = field(default_factory=time.monotonic)
    brought: Brought = field(default_factory=Brought)
    again: str | None = None
    accept_changed_data: bool = False

    def __call__(
        self,
        directory: Store,
        config: RunConfig,
        stored: RunConfig | None,
        started: float | None = None,
    ) -> Session:
        """A session with these settings.

        stored: those that its directory holds already. started: from when on its budget counts;
        default: when the command began.
        """
        check(config, self.ranks, has_runtime=self.brought.runtime is not None)
        problem = problem_of(config, self.reporter, directory, self.brought)
        _ = problem.functions  # imported now, for its error
        if stored is None and not config.is_specialised:
            config = _with_space(config, problem, self.ranks, self.brought.runtime)
            _propose_trained_weights(config, problem, self.reporter)
        session = Session(
            config,
            problem,
            directory,
            reporter=self.reporter,
            ranks=self.ranks,
            signal=self.signal,
            callbacks=self.brought.callbacks,
            runtime_object=self.brought.runtime,
            table_object=self.brought.table,
            force=self.force,
            budget=_budget(config, directory, self.started if started is None else started),
        )
        if stored is not None:
            problem.check_data = partial(check_data, session, self.accept_changed_data)
            return opened(session, stored, self.again)
        if isinstance(problem, SpecialisedProblem):
            session = self._specialised(session, problem)
        else:
            session = opened(session, None)
        record_data(directory, problem.data)
        return session

    def _specialised(self, session: Session, problem: SpecialisedProblem) -> Session:
        """What begins with trained weights, as far as it can be refused before it is kept."""
        search = session.config.search
        session = begin_specialised(session, problem, self.given)
        if isinstance(problem, ModelProblem):
            suited = problem.suited(session.config, self.given)
            session = session.configured(dataclasses.replace(suited, search=search))
            problem.found(session)
        else:
            check_reach(session, problem)
        if session.budget is not None:
            within_budget.begin_within(session, problem, session.budget)
        keep_settings(session)
        return session


def open_run(
    directory: Store, settings: Mapping[str, Any], *, resume: bool, reporter: Reporter, **how: Any
) -> Session:
    """A new run, or the one in the directory.

    settings: those that were asked for, nested plain values; all others are defaults, or what
    the directory's config says. how: see `Opening`.

    Raises:
        RunError: there is a run and `resume` is False, or its settings or its data differ; or other
            files are there.
    """
    opening = Opening(given=settings, reporter=reporter, **how)
    ranks, brought = opening.ranks, opening.brought
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
        config = of_device(parse_settings(RunConfig, with_defaults(settings)), settings)
        check_used(config)
    else:
        config = _with(stored, undecided(directory, settings), reporter)
    if stored is None and resume and config.data == "":
        raise RunError(
            f"{directory.path} holds no run to go on with: give --out the directory of one, or "
            "--data to begin one"
        )
    if isinstance(config.image_size, str):
        check(config, ranks, has_runtime=brought.runtime is not None)
        one_size = dataclasses.replace(config, image_size=None)
        whole = problem_of(one_size, reporter, directory, brought)
        side = lambda: whole.data.info.shape[1]  # noqa: E731
        config = stored = decide_size(config, directory, opening, side)
    return opening(directory, config, stored)


def _budget(config: RunConfig, store: Store, started: float) -> Budget | None:
    if not config.is_specialised:
        return open_budget(config.budget, store, started)
    shares = within_budget.shares(config)
    fits = within_budget.FITS if config.model is None else within_budget.MODEL_FITS
    return open_budget(config.budget, store, started, shares, fits)


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
