"""The command line's job: all stages of a run in order, or one of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from proxylessnas.architecture import Architecture
from proxylessnas.config import parse_minutes
from proxylessnas.errors import ConfigError
from proxylessnas.io.console import duration, say
from proxylessnas.report.verdict import accuracy_words
from proxylessnas.runs import summary
from proxylessnas.runs.any_model import ModelProblem
from proxylessnas.runs.by_hand import STAGE as BY_HAND
from proxylessnas.runs.by_hand import by_hand
from proxylessnas.runs.narrowing import STAGES as NARROWING
from proxylessnas.runs.narrowing import narrow, narrow_within
from proxylessnas.runs.reporting import write_report
from proxylessnas.runs.specialised import SpecialisedProblem
from proxylessnas.runs.teaching import prepare
from proxylessnas.session.budget import Budget
from proxylessnas.session.deriving import derive, derive_within
from proxylessnas.session.exporting import export
from proxylessnas.session.finishing import baselines, evaluate, train
from proxylessnas.session.fitting import fit, fit_limit, words_of_scores
from proxylessnas.session.measuring import measure
from proxylessnas.session.pipeline import find_network, stop_if_asked, told
from proxylessnas.session.searching import search
from proxylessnas.session.session import Session
from proxylessnas.session.untrained import check_zero_cost


def default_directory(data: str, space: str) -> Path:
    """runs/DATA-SPACE, in letters that a file system takes."""
    words = f"{Path(data).name or data}-{space}"
    return Path("runs") / "".join(c if c.isalnum() or c in "._-" else "-" for c in words)


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
    names = list(map(str.strip, latencies))
    if isinstance(session.problem, ModelProblem):
        if budget is not None or changes:
            raise ConfigError(
                "further networks of a run of --model take neither a budget nor settings of their "
                "own: they are chosen by the run's scores; leave those out"
            )
        return narrow_within(session, session.problem, names)
    settings = dataclasses.replace(session.config.derive, **changes)
    limits = {name: {**session.limits, "latency": name} for name in names}
    session.finished_search()
    check_zero_cost(session, settings)
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
                f"most, {words_of_scores(fitted)}"
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
