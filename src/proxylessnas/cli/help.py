"""The help of the verbs of a run: what most people need first, with examples; all of it on demand.

`--help` shows a verb's basic options in groups, `--help-all` every setting of every stage.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

# Of every verb: a sentence, examples, and its basic options by group.
RUN = ("directory", "--config", "--out", "--resume", "--quiet")
BASIC: dict[str, tuple[str, str, dict[str, tuple[str, ...]]]] = {
    "run": (
        "The whole job: measure, search, derive, train, evaluate, export.",
        "proxylessnas run --data ~/photos --pretrained efficientnet_lite0 --target-latency 8ms\n"
        "proxylessnas run --data ~/photos --target-latency 12ms --budget 2h --out runs/mine\n"
        "proxylessnas run --resume --out runs/mine",
        {
            "what the network is for": (
                "--data",
                "--image-size",
                "--pretrained",
                "--model",
                "--weights",
                "--space",
            ),
            "what it may cost": (
                *("--target-latency", "--limit", "--runtime", "--precision", "--table"),
                "--device",
            ),
            "how long it may take": ("--budget", "--search.epochs", "--train.epochs"),
            "the run": (*RUN, "--memory"),
        },
    ),
    "measure": (
        "The latency of every candidate on the device, or of networks.",
        "proxylessnas measure --data ~/photos --out runs/mine\n"
        "proxylessnas measure model.onnx --runtime onnxruntime,litert",
        {
            "what is measured": ("directory", "--data", "--space", "--shape", "--limit"),
            "on what": (
                *("--runtime", "--precision", "--batch", "--threads", "--sustained"),
                "--measure.rounds",
            ),
            "other devices": ("--export-kit", "--import-kit", "--merge"),
            "the run": (*RUN[1:], "--plot", "--force"),
        },
    ),
    "search": (
        "Warm-up, then weight and architecture steps in turn, of a run that was measured.",
        "proxylessnas search runs/mine --search.epochs 20",
        {
            "how long": ("--search.warmup-epochs", "--search.epochs", "--budget"),
            "how": ("--search.batch-size", "--search.learning-rate", "--search.estimator"),
            "the run": RUN,
        },
    ),
    "derive": (
        "One network within the limits, of a finished search; others with --latencies.",
        "proxylessnas derive runs/mine --latencies 8ms,10ms,12ms --budget 10m",
        {
            "which networks": ("--latencies", "--derive.top-k", "--derive.measure-best"),
            "how long": ("--budget", "--derive.arch-steps", "--derive.score-images"),
            "the run": RUN,
        },
    ),
    "train": (
        "The derived network on all training images; with other settings once more.",
        "proxylessnas train runs/mine --train.epochs 30",
        {
            "how long": ("--train.epochs", "--train.patience"),
            "how": ("--train.batch-size", "--train.learning-rate", "--train.augment"),
            "the run": RUN,
        },
    ),
    "evaluate": (
        "The accuracy on the test part, or on other data of the same classes.",
        "proxylessnas evaluate runs/mine\nproxylessnas evaluate runs/mine --data ~/new-photos",
        {"on what": ("--data", "--loading.workers"), "the run": RUN},
    ),
    "export": (
        "The trained network as a file, compared with eager and measured.",
        "proxylessnas export runs/mine --format python",
        {"what": ("--format",), "the run": RUN},
    ),
}


def basic_help(verb: str, parser: argparse.ArgumentParser) -> str:
    """A verb's sentence, examples and basic options.

    parser: of all its options.
    """
    words, examples, groups = BASIC[verb]
    known = {(action.option_strings or [action.dest])[0]: action for action in parser._actions}
    short = argparse.ArgumentParser(
        prog=parser.prog,
        usage=parser.usage,
        description=words,
        epilog="Every other setting: --help-all. All settings of a run are in its config.yaml.",
        add_help=False,
    )
    for title, names in groups.items():
        group = short.add_argument_group(title)
        for name in names:
            group._add_action(known[name])
    text = short.format_help()
    indented = "".join(f"  {line}\n" for line in examples.splitlines())
    head, _, rest = text.partition(f"{words}\n")
    return f"{head}{words}\n\n{indented}{rest}"


def wanted(verb: str, parser: argparse.ArgumentParser, words: Sequence[str]) -> str | None:
    """The help that the words ask for, if they do."""
    if "--help-all" in words:
        return parser.format_help()
    return basic_help(verb, parser) if "-h" in words or "--help" in words else None
