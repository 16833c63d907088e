"""The main job from one end to the other: `run`, and opening a run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proxylessnas.config import RunConfig, from_namespace
from proxylessnas.core.objective import check_objective
from proxylessnas.errors import ConfigError, RunError
from proxylessnas.io.console import Reporter, duration
from proxylessnas.io.stopping import Stopped
from proxylessnas.limits import all_limits, check_limit_names
from proxylessnas.runs import calibrate, stages, summary
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.runs.run import Run
from proxylessnas.training.ranks import ALONE, Ranks

# Which stage a setting first matters to: what is done with other settings is another run.
FIRST_STAGE = {
    "search": "search",
    "target_latency": "search",
    "limits": "search",
    "derive": "derive",
    "train": "train",
}
ORDER = ("measure", "search", "derive", "train", "evaluate", "export")


def default_directory(data: str, space: str) -> Path:
    """runs/DATA-SPACE, in letters that a file system takes."""
    words = f"{Path(data).name or data}-{space}"
    return Path("runs") / "".join(c if c.isalnum() or c in "._-" else "-" for c in words)


def open_run(
    directory: RunDirectory,
    given: Mapping[str, Any],
    *,
    resume: bool,
    reporter: Reporter,
    ranks: Ranks = ALONE,
    force: bool = False,
) -> Run:
    """A new run, or the one in the directory.

    given: the settings that were asked for, nested plain values; all others are defaults,
    or what the directory's config says. force: see `Run`.

    Raises:
        RunError: there is a run and `resume` is False, or its settings differ.
    """
    if not ranks.of_main(lambda: directory.has("config.yaml")):
        config = from_namespace(RunConfig, given)
        _check_shares(config, ranks)
        run = Run(config, directory, reporter, ranks, force=force)
        if config.data == "":
            raise ConfigError(
                "--data is missing: mnist5k, digits, a folder of images, a Hugging Face data set "
                "or torchvision:NAME"
            )
        check_objective(config.search, measured=True, limited="latency" in run.limits)
        run = changed(run, calibrate.complete(run))
        if run.config.table is None:
            check_limit_names(run.limits, ())
        _ = run.costs if run.config.table else run.trace  # refused before anything is left
        record(run)
        return run
    if not resume:
        raise RunError(
            f"{directory.path} holds a run already: go on with --resume, or choose another --out"
        )
    stored = directory.read_config()
    run = Run(stored, directory, reporter, ranks, force=force)
    config = _merge(run, stored, given)
    limits = all_limits(config.limits, config.target_latency)
    check_objective(config.search, measured=True, limited="latency" in limits)
    _check_shares(config, ranks)
    if config != stored:
        run = changed(run, config)
        record(run)
    return run


def _check_shares(config: RunConfig, ranks: Ranks) -> None:
    """ConfigError where the ranks cannot share a batch evenly."""
    s = config.search
    ranks.check_divides("search.batch_size", s.batch_size)
    ranks.check_divides("search.valid_batch_size", s.valid_batch_size or s.batch_size)
    ranks.check_divides("train.batch_size", config.train.batch_size)


def _merge(run: Run, stored: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """The stored config with given settings that no finished stage depends on."""
    changes: dict[str, Any] = {}
    for key, value in given.items():
        before = getattr(stored, key)
        after = {**before, **value} if isinstance(before, dict) else value
        if dataclasses.is_dataclass(before) and not isinstance(before, type):
            after = dataclasses.replace(before, **value)
        if after == before or key in ("budget", "baselines"):
            if key == "baselines":
                changes[key] = value
            continue
        stage = FIRST_STAGE.get(key, "measure")
        if key == "limits" and after.get("peak_memory") != before.get("peak_memory"):
            stage = "measure"  # its candidates are never measured
        if key not in FIRST_STAGE or any(run.done(s) for s in ORDER[ORDER.index(stage) :]):
            name, old, new = _difference(key, before, after)
            raise RunError(
                f"{run.directory.path} holds another run: its {name} is {_plain(old)}, not "
                f"{_plain(new)}; leave the option out, or choose another --out"
            )
        changes[key] = after
    return dataclasses.replace(stored, **changes)


def _difference(key: str, before: Any, after: Any) -> tuple[str, Any, Any]:
    """The first setting that is another one: its name and its two values."""
    if isinstance(before, dict):
        changed = next(name for name, new in after.items() if before.get(name) != new)
        return f"{key}.{changed}", before.get(changed), after[changed]
    if dataclasses.is_dataclass(before):
        for field in dataclasses.fields(before):
            old, new = getattr(before, field.name), getattr(after, field.name)
            if old != new:
                return f"{key}.{field.name}", old, new
    return key, before, after


def _plain(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:57] + "..."


def changed(run: Run, config: RunConfig) -> Run:
    """The same run under another config; what the config does not touch is kept."""
    other = Run(config, run.directory, run.reporter, run.ranks, force=run.force)
    other.started, other.signal = run.started, run.signal
    for part in ("data", "runtime"):
        if part in run.__dict__:
            other.__dict__[part] = run.__dict__[part]
    return other


def record(run: Run, note: str = "") -> None:
    run.directory.write_config(dataclasses.asdict(run.config), note)


def go(run: Run) -> dict[str, Any]:
    """Every stage that is not done, then the summary."""
    if not run.done("measure"):
        run.by_main(stages.measure)
    if run.config.budget is not None:
        asked = run.config.budget
        run = changed(run, calibrate.fit_budget(run))
        s, t = run.config.search, run.config.train
        epochs = f"{s.warmup_epochs} + {s.epochs} epochs of search, {t.epochs} of training"
        run.reporter.say(f"a budget of {asked} is {epochs}")
        record(run, f"# Fitted to a budget of {asked}.\n")
    run.costs  # noqa: B018  # an impossible limit is refused before anything is spent on it
    for name, stage in (
        ("search", stages.search),
        ("derive", stages.derive),
        ("train", stages.train),
        ("evaluate", stages.evaluate_),
    ):
        if run.asked_to_stop():
            raise Stopped
        if not run.done(name):
            stage(run)
    if run.config.baselines:
        stages.baselines(run)
    if not run.done("export"):
        run.by_main(stages.export)
    facts = summary.summarise(run)
    run.directory.write_json("summary.json", facts)
    run.reporter.say(f"all done in {duration(sum(facts['seconds'].values()))}")
    return facts
