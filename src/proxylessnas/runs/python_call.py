"""The whole job from Python: what `proxylessnas run` does, with objects where that has names."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from proxylessnas.config import RunConfig, parse_settings
from proxylessnas.data import Batches
from proxylessnas.data.loader_images import NAMES
from proxylessnas.errors import ConfigError, DataError
from proxylessnas.hardware.runtimes import Runtime
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.io.console import Reporter
from proxylessnas.runs.begin import Brought, open_run
from proxylessnas.runs.configured import LOADERS
from proxylessnas.runs.defaults import with_defaults
from proxylessnas.runs.directory import RunDirectory, begun
from proxylessnas.runs.job import run_all
from proxylessnas.session.loaders import blamed, nothing_lost
from proxylessnas.session.session import Session
from proxylessnas.session.store import BROUGHT_TABLE
from proxylessnas.training.callbacks import Callbacks
from proxylessnas.training.ranks import Ranks

# Arguments of `search` that a model of one's own needs; here the task is classification.
OF_A_MODEL = ("loss", "train_loss", "correct", "reward", "example_inputs")
PLAIN = ("pretrained", "data", "image_size", "target_latency", "limits", "seed", "precision")
DEFAULTS = {"seed": 0, "runtime": "onnxruntime"}  # of arguments: these may not have been given
# Groups of settings that are the same from scratch and from trained weights.
GROUPS = {"settings": "search", "measure": "measure", "derive": "derive", "machine": "machine"}
OF_LOADERS = ("loading", "batch_size", "valid_batch_size", "augment")  # theirs to decide


def run_whole_job(
    arguments: Mapping[str, Any], loaders: Mapping[str, Batches], *, out: Any, ranks: Ranks
) -> Session:
    """Every stage of a run that is not done, of the arguments that `search` was given.

    arguments: by name, without those that are None. loaders: part -> batches of images, where
    there are no `data`. out: the run directory; None: in memory.

    Raises:
        UserError: as `search`.
    """
    started = time.monotonic()
    settings = settings_of(arguments, bool(loaders))
    for part in ("search", "valid") if loaders else ():
        if part not in loaders:
            name = NAMES.get(part, part)
            raise DataError(f"there are no batches of `{name}`: give them to the call")
    directory = None if out is None else RunDirectory(Path(out), writes=ranks.is_main)
    runtime, table = objects(arguments)
    brought = Brought(
        loaders=loaders or None,
        costs=arguments.get("costs", {}),
        runtime=runtime,
        table=table,
        callbacks=Callbacks(arguments.get("callbacks", ())),
    )
    reporter = Reporter(quiet=arguments["quiet"] or not ranks.is_main)
    with begun(directory) as store, nothing_lost(store), blamed(loaders.values()):
        session = open_run(
            store,
            settings,
            resume=True,
            reporter=reporter,
            ranks=ranks,
            started=started,
            brought=brought,
            accept_changed_data=arguments["accept_changed_data"],
        )
        run_all(session, started)
        return session


def settings_of(arguments: Mapping[str, Any], has_loaders: bool) -> dict[str, Any]:
    """The settings of the run as nested plain values, as options of the command line give them.

    Raises:
        ConfigError: an argument is not for this kind of search, or something is given twice.
    """
    for name in OF_A_MODEL:
        if name in arguments:
            raise ConfigError(
                f"{name} is for a model of your own: with pretrained or data the task is to "
                "classify images; leave it out"
            )
    if has_loaders == ("data" in arguments):
        raise ConfigError(
            "give the images once: data=, a folder or a data set's name, or train= and valid=, "
            "loaders of (images, labels)"
        )
    named = {key: _plain(arguments[key]) for key in PLAIN if key in arguments}
    named |= {"data": LOADERS} if has_loaders else {}
    named |= named_objects(arguments)
    given = arguments.get("settings", {})
    settings = dict(given) if isinstance(given, Mapping) else {}
    groups = _groups(arguments, with_defaults({"pretrained": named.get("pretrained", "none")}))
    for name in (named | groups).keys() & settings.keys():
        if name in groups or named[name] != DEFAULTS.get(name):
            raise ConfigError(f"{name} is given twice: as an argument, and in settings")
    settings = {"target_latency": None, **named, **groups, **settings}
    parse_settings(RunConfig, settings)  # refused before anything is read
    if has_loaders:
        _check_left_to_loaders(settings)
    return settings


def named_objects(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in the settings for a runtime and a table that may be objects."""
    runtime, table = arguments["runtime"], arguments.get("table")
    names = {"runtime": runtime if isinstance(runtime, str) else runtime.name}
    if table is not None:
        names["table"] = BROUGHT_TABLE if isinstance(table, LatencyTable) else str(table)
    return names


def objects(arguments: Mapping[str, Any]) -> tuple[Runtime | None, LatencyTable | None]:
    """The runtime and the table, where they are objects."""
    runtime, table = arguments["runtime"], arguments.get("table")
    return (
        None if isinstance(runtime, str) else runtime,
        table if isinstance(table, LatencyTable) else None,
    )


def _groups(arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Groups that were given as objects, as far as they are not the defaults.

    defaults: of the road; an object cannot tell which of its fields were meant.
    """
    groups: dict[str, dict[str, Any]] = {}
    for argument, group in GROUPS.items():
        value = arguments.get(argument)
        if not dataclasses.is_dataclass(value):
            continue
        if group in defaults:
            raise ConfigError(
                f"{argument} is {type(value).__name__}, whose defaults are those of a search from "
                f"scratch; with pretrained give what differs: settings={{{group!r}: "
                "{'NAME': VALUE}}"
            )
        fields = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        groups[group] = {f.name: now for f, now in fields if now != f.default}
    return groups


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _check_left_to_loaders(settings: Mapping[str, Any]) -> None:
    """Refuse settings of how images are read, which loaders do not follow."""
    for name in _dotted(settings):
        if name.partition(".")[0] == "loading" or name.rpartition(".")[2] in OF_LOADERS:
            raise ConfigError(
                f"{name} does not reach your loaders, which split, batch and augment by "
                "themselves: leave it out"
            )


def _dotted(settings: Mapping[str, Any]) -> Iterable[str]:
    for key, value in settings.items():
        yield from (f"{key}.{name}" for name in value) if isinstance(value, Mapping) else (key,)
