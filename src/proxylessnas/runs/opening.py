"""A run begun, or gone on with: the settings asked for against those that a directory holds."""

from __future__ import annotations

import dataclasses
from typing import Any

from proxylessnas.config import RunConfig
from proxylessnas.errors import RunError
from proxylessnas.session import STAGES
from proxylessnas.session.pipeline import begin
from proxylessnas.session.session import Session
from proxylessnas.session.store import BROUGHT_TABLE

# Which stage a setting first matters to: what is done with other settings is another run.
FIRST_STAGE = {
    "search": "search",
    "candidates": "search",
    "budget": None,
    "memory": None,
    "target_latency": "search",
    "limits": "search",
    "costs": "search",
    "derive": "derive",
    "train": "train",
    "quantise": "evaluate",
    "baselines": None,
    "from_scratch": None,
}


# Groups of settings of a stage by another name, which can be done again with others.
SETTLED = {"quantise": "evaluate"}


def opened(session: Session, stored: RunConfig | None, again: str | None = None) -> Session:
    """The session with nothing automatic left in its settings: begun, or gone on with.

    stored: the settings in its directory; None where nothing is there. again: a stage that was
    asked for by itself: with other settings of its own it is done again, upon what came before.

    Raises:
        RunError: another run is in the directory.
    """
    if stored is None:
        return begin(session)
    _check_same(session, stored, again)
    if session.config != stored:
        session.store.write_config(session.config)
    return session


def _check_same(session: Session, stored: RunConfig, again: str | None) -> None:
    """RunError where a stage was done with another value of a setting, or with another table."""
    changed = False
    for field in dataclasses.fields(RunConfig):
        before, now = getattr(stored, field.name), getattr(session.config, field.name)
        if before == now or not _matters(session, field.name, before, now):
            continue
        own = field.name in FIRST_STAGE and again in (field.name, SETTLED.get(field.name))
        if again is not None and own:
            changed = True
        else:
            name, before, now = _difference(field.name, before, now)
            raise _another_run(
                session,
                f"its {name} is {_plain(before)}, not {_plain(now)}",
                field.name if FIRST_STAGE.get(field.name) == field.name else None,
            )
    table = session.table_object
    if table is not None:
        content = table.to_json().encode()
        if session.store.read(BROUGHT_TABLE, 2 * len(content) + 1) != content:
            raise _another_run(session, "it began with another latency table")
    if again is not None and changed:
        _do_again(session, again)


def _do_again(session: Session, stage: str) -> None:
    """Mark a stage and all that follows as not done, and say so."""
    undone = session.records.undo(stage)
    session.store.remove("summary.json")
    later = ", ".join(name for name in undone if name != stage)
    words = f"{stage}: done again with these settings"
    if later:
        command = f"proxylessnas run --resume --out {session.store.path}"
        words += f"; what was made of it before is no longer valid: {later} ({command} does them)"
    session.reporter.say(words)


def _another_run(session: Session, difference: str, stage: str | None = None) -> RunError:
    """stage: the one that can be done again with the setting that differs."""
    where = session.store.path
    again = f"do that stage again (proxylessnas {stage} {where} --{stage}. ...), " if stage else ""
    return RunError(
        f"{where} holds another run: {difference}; leave it as it was, {again}or choose another "
        "directory"
    )


def _matters(session: Session, key: str, before: Any, now: Any) -> bool:
    """Whether a stage that depends on a setting is done."""
    if key not in FIRST_STAGE:
        return True  # the data, the seed, the machine: of the whole run
    stage = FIRST_STAGE[key]
    if key == "limits" and now.get("peak_memory") != before.get("peak_memory"):
        stage = "measure"  # what needs more memory is never measured
    return stage is not None and any(map(session.records.done, STAGES[STAGES.index(stage) :]))


def _difference(key: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """The first setting that is another one: its name and its two values."""
    if dataclasses.is_dataclass(before):
        for field in dataclasses.fields(before):
            old, new = getattr(before, field.name), getattr(now, field.name)
            if old != new:
                return f"{key}.{field.name}", old, new
    return key, before, now


def _plain(value: Any) -> str:
    text = str(value) if value != "" else "none"
    return text if len(text) < 60 else text[:57] + "..."
