"""The command line: parse, call, exit code. Verbs import what they need, when they run."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxylessnas.errors import ConfigError, UserError, did_you_mean
from proxylessnas.io.stopping import Signal, Stopped, listening

if TYPE_CHECKING:
    from proxylessnas.cli.options import Parser
    from proxylessnas.runs.directory import RunDirectory
    from proxylessnas.session.session import Session
    from proxylessnas.training.ranks import Ranks

HELP = """\
proxylessnas: a neural network specialised to your data set and your device, at the latency
you ask for, as plain PyTorch.

usage: proxylessnas VERB [options]          proxylessnas VERB --help for the options

  run        the whole job: measure, search, derive, train, evaluate, export
  measure    latency of every candidate on the device -> a table; or of networks
  search     warm-up, then weight and architecture steps with binary gates
  derive     the most probable network within the limit -> architecture.json
  train      the derived network, on all training images
  evaluate   its accuracy on the test part
  export     ONNX, compared with eager and measured as the file it is
  predict    classify images with the result
  zoo        the published networks: list, build, export, measure, draw

  proxylessnas run --data mnist5k --target-latency 0.6x --out runs/demo
  proxylessnas run --data ~/photos --target-latency 12ms --budget 2h
  proxylessnas predict runs/demo image.png
"""
STAGES = ("measure", "search", "derive", "train", "evaluate", "export")
# Options that set nothing of a run; the second line's are the verb measure's.
OWN = (
    *("directory", "out", "resume", "quiet", "latencies", "format", "force"),
    *("plot", "export_kit", "import_kit", "merge"),
)
VERBS = ("run", *STAGES, "predict", "zoo")


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 done, 2 wrong input, 130 interrupted; a bug keeps its traceback."""
    words = sys.argv[1:] if argv is None else argv
    # Torch's threads spin while they wait for one another. Where another process has taken one
    # of their cores, that costs 20 times the step; a short spin costs nothing on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        with listening() as signal:
            return _verb(words, signal)
    except UserError as error:
        rank = os.environ.get("RANK", "0")  # of several, each says its own
        name = "proxylessnas" if rank == "0" else f"proxylessnas, rank {rank}"
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt):
        print("proxylessnas: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def _verb(words: list[str], signal: Signal) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    verb, rest = words[0], words[1:]
    if verb == "--version":
        import importlib.metadata

        print(importlib.metadata.version("proxylessnas"))
        return 0
    if verb not in VERBS:
        raise ConfigError(f"there is no verb {verb!r}; {did_you_mean(verb, VERBS)}")
    actions: dict[str, Callable[[list[str]], int]] = {"predict": _predict, "zoo": _zoo}
    if verb in actions:
        return actions[verb](rest)
    return _stages(verb, rest, signal)


# --- the stages ---


def _stages(verb: str, words: list[str], signal: Signal) -> int:
    from proxylessnas.cli.options import parse, stage_parser

    started = time.monotonic()  # a budget counts from here
    parser = stage_parser(verb)
    if "-h" in words or "--help" in words:
        parser.print_help()
        return 0
    given = parse(parser, words)
    own = {k: given.pop(k, None) for k in OWN}
    given = _with_config(given.pop("config", None), given)
    _check(given)
    if verb == "measure":
        from proxylessnas.cli.measure import form_of

        _named_here(given.get("space", ""), words)
        act = form_of(own, given)
        if act is not None:
            act()
            return 0
        own["directory"] = next(iter(own["directory"] or ()), None)
    from proxylessnas.errors import RunError
    from proxylessnas.training.ranks import open_ranks

    if verb == "derive" and own["latencies"] is not None:
        own["deriving"] = given.pop("derive", {})  # of these latencies alone; the run keeps its own
    path = _directory(own, given)
    if verb not in ("run", "measure") and not (path / "config.yaml").exists():
        raise RunError(f"{path} holds no run: begin with proxylessnas run or measure")
    with open_ranks() as ranks:
        return _in_directory(verb, words, given, own, path, ranks, signal, started)


def _in_directory(
    verb: str,
    words: list[str],
    given: dict[str, Any],
    own: Mapping[str, Any],
    path: Path,
    ranks: Ranks,
    signal: Signal,
    started: float,
) -> int:
    """The verb in its run directory, which rank 0 holds."""
    from proxylessnas.io.console import Reporter
    from proxylessnas.runs.directory import CONFIG, RunDirectory, begun
    from proxylessnas.runs.job import open_run

    # Processes that torchrun starts again have the words that they began with. It counts the
    # restarts on the node where one died.
    resume = ranks.any(bool(own["resume"]) or verb != "run" or ranks.restarted)
    signal.patient = ranks.world > 1
    if not ranks.is_main:
        warnings.simplefilter("ignore")
    with begun(RunDirectory(path, writes=ranks.is_main)) as directory:
        try:
            stored = directory.read_config().space if directory.has(CONFIG) else ""
            _named_here(given.get("space") or stored, words)
            session = open_run(
                directory,
                given,
                resume=resume,
                reporter=Reporter(quiet=bool(own["quiet"]) or not ranks.is_main),
                ranks=ranks,
                signal=signal,
                force=bool(own["force"]),
            )
            _do(verb, session, directory, own, started)
            return 0
        except Stopped:
            if not directory.has(CONFIG):
                raise  # nothing was begun: the same command begins again
            if ranks.is_main:
                print(
                    "stopped; what is done is saved, go on: "
                    f"proxylessnas {verb} --out {path} --resume",
                    file=sys.stderr,
                )
            return 130


def _with_config(path: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a config file, with the given options over them."""
    if path is None:
        return given
    from proxylessnas.config import RunConfig, parse_settings, pick
    from proxylessnas.io.yaml_files import read_yaml

    data = read_yaml(Path(path))
    merged = pick(parse_settings(RunConfig, data, path), data)
    for key, value in given.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if both else value
    return merged


def _check(given: Mapping[str, Any]) -> None:
    """Refuse values out of range before anything is read."""
    from proxylessnas.config import RunConfig, parse_settings

    parse_settings(RunConfig, given)


def _named_here(space: str, words: list[str]) -> None:
    """Code that a file names is imported only if the command line names it too.

    Raises:
        ConfigError: a config file names a `module:factory` and no option does.
    """
    if ":" in space and not any(space in word for word in words):
        raise ConfigError(
            f"the space {space} is code that a file names; to import it, say so: --space {space}"
        )


def _directory(own: Mapping[str, Any], given: Mapping[str, Any]) -> Path:
    named = own["directory"] or own["out"]
    if own["directory"] and own["out"] and own["directory"] != own["out"]:
        raise ConfigError(f"the run directory is given twice: {own['directory']}, {own['out']}")
    if named:
        return Path(named)
    if not given.get("data"):
        raise ConfigError(
            "--data is missing: mnist5k, digits, a folder of images, a Hugging Face data set or "
            "torchvision:NAME (or --out for a run that exists)"
        )
    from proxylessnas.runs.job import default_directory

    return default_directory(given["data"], given.get("space", "mobile"))


def _do(
    verb: str,
    session: Session,
    directory: RunDirectory,
    own: Mapping[str, Any],
    started: float,
) -> None:
    from proxylessnas.io.console import output
    from proxylessnas.runs import summary
    from proxylessnas.runs.job import derive_latencies, do_stage, run_all
    from proxylessnas.session.exporting import ONNX_FORMAT, export_as

    if verb == "run":
        facts = run_all(session, directory, started)
        if session.ranks.is_main:
            summary.show(facts, str(directory.path), output())
    elif verb == "derive" and own["latencies"] is not None:
        derive_latencies(session, own["latencies"].split(","), own["deriving"])
    elif verb == "export" and own["format"] not in (None, ONNX_FORMAT):
        export_as(session, own["format"])
    else:
        do_stage(session, verb)


# --- predict, zoo ---


def _parsed(verb: str, add: Callable[[Parser], None], words: list[str]) -> Any:
    """The options of a verb without settings; None where they were only explained."""
    from types import SimpleNamespace

    from proxylessnas.cli.options import Parser

    parser = Parser(verb)
    add(parser)
    if "-h" in words or "--help" in words:
        parser.print_help()
        return None
    return SimpleNamespace(**parser.parse(words))


def _predict(words: list[str]) -> int:
    from proxylessnas.cli.options import add_predicting

    given = _parsed("predict", add_predicting, words)
    if given is None:
        return 0
    from proxylessnas.runs.predict import predict

    for path, classes in predict(Path(given.directory), given.images, given.top, given.space):
        if given.json:
            print(json.dumps({"image": str(path), "classes": dict(classes)}))
        else:
            print(f"{path}: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in classes))
    return 0


def _zoo(words: list[str]) -> int:
    from proxylessnas.cli.options import add_zoo

    given = _parsed("zoo", add_zoo, words)
    if given is not None:
        from proxylessnas.cli.zoo import zoo

        zoo(given)
    return 0
