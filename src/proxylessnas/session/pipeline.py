"""The order of a job: what both doors do with a session, from its first line to its last."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from proxylessnas.hardware.energy import COLUMN, meter_of
from proxylessnas.io.stopping import Stopped
from proxylessnas.limits import check_limit_names
from proxylessnas.session.deploying import check_quantise
from proxylessnas.session.deriving import derive
from proxylessnas.session.early import try_early
from proxylessnas.session.fitting import begin_within, fit
from proxylessnas.session.measuring import measure
from proxylessnas.session.searching import search
from proxylessnas.session.session import Session
from proxylessnas.session.store import BROUGHT_TABLE
from proxylessnas.session.tuning import tune
from proxylessnas.session.untrained import check_zero_cost
from proxylessnas.training.callbacks import EndMetrics, RunMetrics


def begin(session: Session) -> Session:
    """The session with every automatic setting decided and recorded, before its first stage.

    What no network can keep, and a table of something else, is refused before anything is left.
    """
    check_names_of_limits(session)
    check_quantise(session)
    check_zero_cost(session, session.config.derive)
    try_early(session)
    reporter = session.reporter
    with nullcontext() if reporter.console.quiet else reporter.warnings_as_lines():
        if session.config.table is not None:
            session.check_limits()
        else:
            session.check_counted_limits()
    if session.budget is not None:
        begin_within(session, session.budget)
    else:
        session.settle(replace(session.config, machine=tune(session)))
    keep_settings(session)
    return session


def check_names_of_limits(session: Session) -> None:
    """ConfigError where a limit is of a cost that there is not.

    Raises:
        MeasurementError, MissingDependency: the meter that the settings name is not here.
    """
    table, energy = session.brought_table, session.config.measure.energy
    columns = set() if table is None else set(table.columns)
    if energy is not None and session.config.table is None and table is None:
        meter_of(energy)
        columns = {COLUMN}
    check_limit_names(session.limits, [*session.problem.functions, *columns])


def keep_settings(session: Session) -> None:
    """The settings, and the table that they name, where that is an object."""
    if session.table_object is not None:
        session.store.write(BROUGHT_TABLE, session.table_object.to_json().encode())
    session.store.write_config(session.config)
    if session.budget is not None:
        session.budget.keep(session.store)


def find_network(session: Session) -> None:
    """Measure, search and derive, as far as that is not done."""
    if _needs_table(session) and not session.records.done("measure"):
        fit(session, "measure")
        measure(session)
    session.check_limits()
    for stage, run in (("search", search), ("derive", derive)):
        stop_if_asked(session)
        if not session.records.done(stage):
            fit(session, stage)
            run(session)


def _needs_table(session: Session) -> bool:
    """A run says what its networks take; a Python call measures only what it has a limit for."""
    config = session.config
    return config.data != "" or ("latency" in session.limits and config.table is None)


def stop_if_asked(session: Session) -> None:
    """Raise `Stopped` on every rank where one of them was asked to stop."""
    if session.ranks.any(session.signal.requested):
        raise Stopped


@contextmanager
def told(session: Session) -> Iterator[dict[str, Any]]:
    """Within the block a run goes on, whose beginning and end the callbacks are told.

    Yields a dict for the facts of the end.
    """
    directory = "" if session.store.path is None else str(session.store.path)
    settings = dataclasses.asdict(session.config)
    session.callbacks.on_start(RunMetrics(settings=settings, directory=directory))
    facts: dict[str, Any] = {}
    try:
        yield facts
    except (Stopped, KeyboardInterrupt):
        session.callbacks.on_end(EndMetrics(status="stopped"))
        raise
    except BaseException:
        session.callbacks.on_end(EndMetrics(status="failed"))
        raise
    session.callbacks.on_end(EndMetrics(status="finished", facts=facts))
