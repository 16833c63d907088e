"""The command line: parse, call, exit code. Verbs import what they need, when they run."""

from __future__ import annotations

import errno
import gc
import importlib
import os
import sys
import time

from proxylessnas.errors import ConfigError, UserError, did_you_mean
from proxylessnas.io.console import write_anything
from proxylessnas.io.process import began
from proxylessnas.io.stopping import Signal, Stopped, listening
from proxylessnas.session import STAGES

HELP = """\
proxylessnas: a neural network specialised to your data set and your device, at the latency
you ask for, as plain PyTorch.

usage: proxylessnas VERB [options]          proxylessnas VERB --help for the options

  run        the whole job: measure, search, derive, train, evaluate, export
  measure    latency of every candidate on the device -> a table; or of networks
  search     warm-up, then weight and architecture steps with binary gates
  derive     the most probable network within the limit -> architecture.json
  train      the derived network, on all training images
  evaluate   its accuracy on the test part; with --data on other images of the same classes
  export     ONNX, compared with eager and measured as the file it is
  predict    classify images with the result
  report     one HTML file about a run, or about several side by side
  watch      progress and curves of a run that goes on, in the terminal
  tables     latency tables of a folder: devices, precisions, dates, errors
  zoo        the published networks: list, build, export, measure, draw
  completion a script for bash or zsh: eval "$(proxylessnas completion bash)"

  proxylessnas run --data ~/photos --pretrained efficientnet_lite0 --target-latency 0.5x
  proxylessnas run --data ~/photos --target-latency 12ms --budget 2h
  proxylessnas predict runs/demo image.png
"""
VERBS = ("run", *STAGES, "predict", "report", "watch", "tables", "zoo", "completion")


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 done, 2 wrong input, 130 interrupted; a bug keeps its traceback."""
    # A budget counts from the command; in a process of others, from the call.
    started, words = (began(), sys.argv[1:]) if argv is None else (time.monotonic(), argv)
    # Torch's threads spin while they wait for one another. Where another process has taken one
    # of their cores, that costs 20 times the step; a short spin costs nothing on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    write_anything()
    try:
        with listening() as signal:
            code = _verb(words, signal, started)
        sys.stdout.flush()  # what cannot be written is said below
        return code
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
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is lost
        print(f"proxylessnas: cannot print the results: {error.strerror}", file=sys.stderr)
        return 1
    finally:
        if (
            argv is None
        ):  # the process ends: Python would look through torch for cycles, seconds long
            gc.freeze()


def _verb(words: list[str], signal: Signal, started: float) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    verb, rest = words[0], words[1:]
    if verb == "--version":
        from importlib.metadata import version

        print(version("proxylessnas"))
        return 0
    if verb not in VERBS:
        raise ConfigError(f"there is no verb {verb!r}; {did_you_mean(verb, VERBS)}")
    from proxylessnas.cli import flags, options, stages  # only now: the help above is instant

    if verb not in flags.OPTIONS:
        return stages.main(verb, signal, rest, started)
    chosen = options.parsed(verb, rest)
    if chosen is not None:  # torch, too, only where there is something to do
        return importlib.import_module(f"proxylessnas.cli.{verb}").main(chosen) or 0
    return 0
