"""The verbs `run`, `measure`, `search`, `derive`, `train`, `evaluate` and `export`.

They share their options, the run directory and how it is opened. Nothing here imports torch
before the options are understood.
"""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxylessnas.cli.help import wanted
from proxylessnas.cli.names import check_names
from proxylessnas.cli.options import parse, stage_parser
from proxylessnas.config import RunConfig, merged, parse_settings, pick
from proxylessnas.errors import ConfigError, DataError, RunError
from proxylessnas.io.console import Reporter, output
from proxylessnas.io.stopping import Signal, Stopped
from proxylessnas.io.yaml_files import read_yaml

if TYPE_CHECKING:
    from proxylessnas.session.session import Session
    from proxylessnas.session.store import Store
    from proxylessnas.training.ranks import Ranks

# Options that set nothing of a run; the second line's are the verb measure's.
FLAGS = (
    *(
        "directory",
        "out",
        "resume",
        "keep_checkpoints",
        "accept_changed_data",
        "quiet",
        "log",
        "latencies",
        "format",
        "force",
    ),
    *("plot", "shape", "batch", "threads", "sustained", "export_kit", "import_kit", "merge"),
)


def main(verb: str, signal: Signal, words: list[str], started: float) -> int:
    """The verb with its words; returns the exit code.

    started: when the command began, in seconds of `time.monotonic`; a budget counts from there.
    """
    parser = stage_parser(verb)
    explained = wanted(verb, parser, words)
    if explained is not None:
        print(explained, end="")
        return 0
    settings = parse(parser, words)
    flags = {k: settings.pop(k, None) for k in FLAGS}
    settings = _with_config(settings.pop("config", None), settings)
    parse_settings(RunConfig, settings)  # refused before anything is read
    check_names(settings, measuring=verb == "measure")
    if verb == "measure":
        from proxylessnas.cli.measure import form_of

        _named_here([settings.get("space", "")], words)
        act = form_of(flags, settings)
        if act is not None:
            act()
            return 0
        flags["directory"] = next(iter(flags["directory"] or ()), None)
    from proxylessnas.training.ranks import open_ranks

    if verb == "derive" and flags["latencies"] is not None:
        # Of these latencies alone; the run keeps its own.
        flags["deriving"] = settings.pop("derive", {})
        flags["budget"] = settings.pop("budget", None)
    path = _directory(flags, settings)
    if verb not in ("run", "measure") and not (path / "config.yaml").exists():
        raise RunError(f"{path} holds no run: begin with proxylessnas run or measure")
    with open_ranks() as ranks:
        return _Command(verb, words, settings, flags, path, ranks, signal, started).run()


@dataclass(frozen=True)
class _Command:
    """A verb in its run directory, which rank 0 holds."""

    verb: str
    words: list[str]
    settings: dict[str, Any]
    flags: Mapping[str, Any]
    path: Path
    ranks: Ranks
    signal: Signal
    started: float

    def run(self) -> int:
        """Returns the exit code."""
        from proxylessnas.runs.directory import RunDirectory, begun
        from proxylessnas.session.store import CONFIG

        self.signal.patient = self.ranks.world > 1
        if not self.ranks.is_main:
            warnings.simplefilter("ignore")
        with begun(RunDirectory(self.path, writes=self.ranks.is_main)) as directory:
            directory.keeps_checkpoints = bool(self.flags["keep_checkpoints"])
            try:
                stored = directory.read_config() if directory.has(CONFIG) else RunConfig()
                self._act(directory, stored)
                return 0
            except (Stopped, DataError, RuntimeError) as error:
                # A worker that decodes images may end of the same signal, before its parent looks.
                lost = self.signal.requested and "worker" in str(error)
                if not (isinstance(error, Stopped) or lost) or not directory.has(CONFIG):
                    raise  # where nothing was begun, the same command begins again
                if self.ranks.is_main:
                    command = f"--out {self.path} --resume"
                    if self.flags["latencies"] is not None:
                        command = shlex.join(self.words)  # these limits are in no directory
                    print(
                        "stopped; what is done is saved, go on: proxylessnas "
                        f"{self.verb} {command}",
                        file=sys.stderr,
                    )
                return 130

    def _act(self, directory: Store, stored: RunConfig) -> None:
        settings, quiet = self.settings, bool(self.flags["quiet"])
        own_costs = {**stored.costs, **settings.get("costs", {})}
        model = settings.get("model") or stored.model or ""
        own = [] if model.startswith(("timm:", "torchvision:")) else [model]
        space = settings.get("space") or stored.space
        _named_here([space, *own, *own_costs.values()], self.words)
        if self.verb != "evaluate" or not _is_elsewhere(settings, stored):
            self._do(self._opened(directory))
        elif self.ranks.is_main:
            _evaluate_on(self.path, settings, stored, quiet=quiet)

    def _opened(self, directory: Store) -> Session:
        from proxylessnas.runs.begin import open_run

        flags, ranks, verb = self.flags, self.ranks, self.verb
        return open_run(
            directory,
            self.settings,
            # Processes that torchrun starts again have the words that they began with. It counts
            # the restarts on the node where one died.
            resume=ranks.any(bool(flags["resume"]) or verb != "run" or ranks.restarted),
            reporter=Reporter(quiet=bool(flags["quiet"]) or not ranks.is_main),
            ranks=ranks,
            signal=self.signal,
            force=bool(flags["force"]),
            started=self.started,
            brought=_brought(flags["log"], ranks),
            again=None if verb == "run" else verb,
            accept_changed_data=bool(flags["accept_changed_data"]),
        )

    def _do(self, session: Session) -> None:
        from proxylessnas.runs.job import derive_latencies, do_stage, run_all
        from proxylessnas.runs.summary_shown import show
        from proxylessnas.session.exporting import ONNX_FORMAT, export_as

        verb, flags = self.verb, self.flags
        if verb == "run":
            facts = run_all(session, self.started)
            if session.ranks.is_main:
                show(facts, str(session.store.path), output())
        elif verb == "derive" and flags["latencies"] is not None:
            latencies = flags["latencies"].split(",")
            derive_latencies(session, latencies, flags["deriving"], flags["budget"], self.started)
        elif verb == "export" and flags["format"] not in (None, ONNX_FORMAT):
            export_as(session, flags["format"])
        else:
            do_stage(session, verb)


def _brought(log: str | None, ranks: Ranks) -> Any:
    """The trackers that --log names, told by rank 0 alone."""
    from proxylessnas.runs.begin import Brought
    from proxylessnas.training.callbacks import Callbacks
    from proxylessnas.training.loggers import trackers

    chosen = trackers(log) if log else []
    return Brought(callbacks=Callbacks(chosen if ranks.is_main else ()))


def _is_elsewhere(settings: dict[str, Any], stored: RunConfig) -> bool:
    """Whether other data than the run's are named; another name of the same ones is dropped."""
    data = settings.get("data", stored.data)
    both = os.path.exists(data) and os.path.exists(stored.data)
    if data == stored.data or (both and os.path.samefile(data, stored.data)):
        settings.pop("data", None)
        return False
    return True


def _evaluate_on(path: Path, settings: dict[str, Any], stored: RunConfig, *, quiet: bool) -> None:
    """The finished run on another data set, read with the run's settings but for those given."""
    from proxylessnas.runs.elsewhere import evaluate_on

    loading = replace(stored.loading, **settings.get("loading", {}))
    space = settings.get("space", stored.space)
    evaluate_on(path, settings["data"], loading, Reporter(quiet=quiet), space)


def _with_config(path: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a config file, with the options over them."""
    if path is None:
        return settings
    data = read_yaml(Path(path))
    return merged(pick(parse_settings(RunConfig, data, path), data), settings)


def _named_here(names: list[str], words: list[str]) -> None:
    """Code that a file names is imported only if the command line names it too.

    Raises:
        ConfigError: a config file names a `module:function` and no option does.
    """
    for name in names:
        if ":" in name and not any(name in word for word in words):
            raise ConfigError(
                f"{name} is code that a file names; to import it, say so: --space {name} or "
                f"--model {name}, or --costs '{{NAME: {name}}}'"
            )


def _directory(flags: Mapping[str, Any], settings: Mapping[str, Any]) -> Path:
    named = flags["directory"] or flags["out"]
    if flags["directory"] and flags["out"] and flags["directory"] != flags["out"]:
        raise ConfigError(f"the run directory is given twice: {flags['directory']}, {flags['out']}")
    if named:
        return Path(named)
    if not settings.get("data"):
        raise ConfigError(
            "--data is missing: a folder of images, a Hugging Face data set, torchvision:NAME, "
            "mnist5k, digits or surfaces (or --out for a run that exists)"
        )
    from proxylessnas.runs.job import default_directory

    return default_directory(
        settings["data"], settings.get("model") or settings.get("space", "mobile")
    )
