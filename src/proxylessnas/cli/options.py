"""Options of the command line, generated from the settings classes; no torch, no pydantic for help.

Every field of `RunConfig` is an option, `--search.warmup-epochs` where it is of a group. `parse`
returns what was given and nothing else, so that a config file under the options keeps its values.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal, NoReturn

from proxylessnas import schema
from proxylessnas.config import RENAMED, RunConfig
from proxylessnas.errors import ConfigError

MEASURE = """\
proxylessnas measure RUN_DIR, or --data DATA    the first stage of a run
       proxylessnas measure --space mobile --runtime litert --out table.json --plot fit.svg
                            a device's latency table, validated on networks it has not seen
       proxylessnas measure NETWORK ... --runtime onnxruntime,litert
                            now: architecture.json, .onnx, .tflite, or a name of the zoo
       proxylessnas measure NETWORK --precision f32,int8
                            whether int8 pays here, the whole network and block by block; also
                            of the network that a run found (its directory)
       proxylessnas measure NETWORK ... --batch 1,8,32 --threads 1,2
       proxylessnas measure NETWORK ... --sustained 10m       once the device is warm
       proxylessnas measure --export-kit kit.zip --space mobile        for another device
       proxylessnas measure --import-kit results.json --out table.json    and back
       proxylessnas measure --merge a.json b.json --out table.json

A table that was broken off goes on with the same command. --measure.networks and
--measure.validation are 20 each for --out table.json, 10 in a kit, unless they are given."""


LIMIT = """\
Once for each limit: macs=600M, parameters=4e6, peak_memory=1.5 (MiB), latency=12ms, or a column of
the latency table."""
METAVARS = {int: "N", float: "X", bool: "BOOL", str: "TEXT", Literal: "NAME", dict: "MAPPING"}


class Parser(argparse.ArgumentParser):
    """argparse whose refusals are `ConfigError`s of one line, with the nearest option.

    settings: the type of every option that sets a field, by the field's dotted name.
    """

    def __init__(
        self, verb: str, usage: str | None = None, argument_default: str | None = None
    ) -> None:
        super().__init__(
            prog=f"proxylessnas {verb}",
            usage=usage,
            allow_abbrev=False,  # a misspelt option must not become another one
            argument_default=argument_default,
        )
        self.settings: dict[str, schema.Hint] = {}

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """The options that were given, by their names, as argparse decodes them."""
        options, unknown = self.parse_known_args(words)
        for word in unknown:
            self._refuse(word.split("=")[0])
        return vars(options)

    def _refuse(self, word: str) -> NoReturn:
        if not word.startswith("-"):
            raise ConfigError(f"the argument {word!r} is not understood; options start with --")
        now = RENAMED.get(word.rpartition(".")[2].lstrip("-").replace("-", "_"), "")
        if now.startswith("limits."):
            raise ConfigError(f"{word} is now --limit {now.removeprefix('limits.')}=VALUE")
        if now:
            raise ConfigError(f"{word} is now {_option(now)}")
        near = difflib.get_close_matches(word, self._option_string_actions, n=3)
        words = f"did you mean {' or '.join(near)}?" if near else "--help lists them"
        raise ConfigError(f"there is no option {word}; {words}")


def parse(parser: Parser, words: Sequence[str]) -> dict[str, Any]:
    """The options that were given, nested and of the types of their settings.

    Raises:
        ConfigError: an option is unknown, or its value is not allowed.
    """
    nested: dict[str, Any] = {}
    for name, value in parser.parse(words).items():
        if name == "limit":
            name, value = "limits", _limits(value)
        elif name in parser.settings:
            value = _value(parser.settings[name], value, name)
        group, _, field = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[field] = value
    return nested


def _value(hint: schema.Hint, text: str, name: str) -> Any:
    """A setting's value from an option: a text as it stands, null, or anything else as YAML."""
    kinds = {schema.bare(option) for option in schema.alternatives(hint)}
    other = (text == "null" and type(None) in kinds) or (text.isdigit() and int in kinds)
    stands = kinds & {str, Literal} and not other
    return schema.from_plain(hint, text if stands else _plain(text, name), name)


def _limits(words: Sequence[str]) -> dict[str, Any]:
    pairs = [word.partition("=") for word in words]
    for name, equals, _ in pairs:
        if not equals:
            raise ConfigError(f"--limit {name}: write NAME=VALUE, as --limit macs=300e6")
        if [other for other, _, _ in pairs].count(name) > 1:
            raise ConfigError(f"--limit {name} is given twice: leave one out")
    return {name: _plain(value, f"--limit {name}") for name, _, value in pairs}


def _plain(text: str, name: str) -> Any:
    from proxylessnas.io.yaml_files import decode_yaml  # the help needs no YAML

    return decode_yaml(text, name)


def _option(name: str) -> str:
    return f"--{name}".replace("_", "-")


def parsed(verb: str, add: Callable[[Parser], None], words: Sequence[str]) -> Any:
    """The options of a verb without settings as attributes; None where they were explained."""
    parser = Parser(verb)
    add(parser)
    if "-h" in words or "--help" in words:
        parser.print_help()
        return None
    return SimpleNamespace(**parser.parse(words))


# --- the stages ---


def stage_parser(verb: str) -> Parser:
    """The parser of `run` and of the verbs of its stages."""
    usage = MEASURE if verb == "measure" else f"proxylessnas {verb} [RUN_DIR] [options]"
    parser = Parser(verb, usage, argparse.SUPPRESS)
    if verb == "measure":
        add_measuring(parser)
    else:
        parser.add_argument("directory", nargs="?", help="the run directory; the same as --out")
    parser.add_argument("--help-all", action="store_true", help="show every setting of every stage")
    parser.add_argument("--config", help="settings from a YAML file; options go over them")
    parser.add_argument("--out", help="the run directory; default: runs/DATA-SPACE")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the directory")
    parser.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="go on although images were added, removed or replaced since the run began",
    )
    parser.add_argument(
        "--keep-checkpoints",
        action="store_true",
        help="keep the checkpoints of stages that are done; without it only the search's last "
        "one stays, which derive --latencies needs",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument(
        "--force",
        action="store_true",
        help="use a latency table of another device, runtime or batch all the same; "
        "measure --out table.json replaces it",
    )
    if verb == "run":
        parser.add_argument(
            "--log",
            metavar="NAMES",
            help="trackers that are told every step's numbers: tensorboard, mlflow or wandb, or "
            "several with commas; they write into the run directory",
        )
    if verb == "derive":
        parser.add_argument(
            "--latencies", help="one network for each of these latencies, as 8ms,10ms,12ms"
        )
    if verb == "export":
        parser.add_argument(
            "--format",
            help="onnx (the default), torch (.pt2), tflite, executorch (.pte), coreml (.mlpackage, "
            "untested on a device) or python (network.py)",
        )
    _add_settings(parser, parser, RunConfig, "")
    return parser


def _add_settings(
    parser: Parser, group: argparse._ActionsContainer, cls: schema.Hint, prefix: str
) -> None:
    """An option for every field of a settings class; a group of options for a nested class."""
    docs, hints = schema.docs_of(cls), schema.hints_of(cls)
    for field in dataclasses.fields(cls):
        name, hint = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(hint):
            nested = parser.add_argument_group(name, (hint.__doc__ or "").strip())
            _add_settings(parser, nested, hint, f"{name}.")
        elif name == "limits":
            group.add_argument("--limit", metavar="NAME=VALUE", action="append", help=LIMIT)
        else:
            parser.settings[name] = hint
            text = f"{docs[field.name]} ({_allowed(hint, field)})".replace("%", "%%")
            metavar = METAVARS[schema.bare(schema.required(hint))]
            group.add_argument(_option(name), dest=name, metavar=metavar, help=text)


def _allowed(hint: schema.Hint, field: dataclasses.Field[Any]) -> str:
    """What the help says after an option's sentence: its range and its default."""
    default = {} if field.default is dataclasses.MISSING else field.default
    words = schema.describe(schema.required(hint))
    plain = default if isinstance(default, str) else schema.shown(default)
    default_words = f"default {plain}" if plain else "no default"
    return default_words if words in ("a text", "a mapping") else f"{words}; {default_words}"


# --- the other verbs, and what measure takes besides ---


def add_measuring(parser: Parser) -> None:
    parser.add_argument("directory", nargs="*", help="the run directory, or networks to measure")
    parser.add_argument(
        "--plot", help="write predicted against measured latency as this .svg, .png or .pdf file"
    )
    parser.add_argument(
        "--shape",
        metavar="NAME=SIZES",
        action="append",
        help="the shape of an input that an .onnx or .tflite file leaves open, once for each "
        "input: --shape images=1x3x224x224",
    )
    for name, words in (("batch", "images an inference"), ("threads", "threads of the runtime")):
        parser.add_argument(
            f"--{name}", metavar="N,N", help=f"{words} of networks, several in one table: 1,8,32"
        )
    parser.add_argument(
        "--sustained",
        metavar="TIME",
        help="run networks without a pause for this long, as 10m: median a minute, drift, clocks",
    )
    parser.add_argument("--export-kit", help="write a zip that measures --space on another device")
    parser.add_argument("--import-kit", help="what a kit wrote there, to become the table --out")
    parser.add_argument("--merge", nargs="+", help="tables of one device, to become one in --out")


def add_predicting(parser: Parser) -> None:
    parser.add_argument("directory", help="the run directory")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--top", type=int, default=3, help="classes to print")
    parser.add_argument("--space", help="module:factory, where the network is built by one")
    parser.add_argument("--json", action="store_true", help="one JSON object an image")


def add_reporting(parser: Parser) -> None:
    parser.add_argument("directory", nargs="+", help="a run directory; several side by side")
    parser.add_argument(
        "--out",
        help="the HTML file; default: report.html in the run directory, of several "
        "comparison.html in the first one's",
    )


def add_watching(parser: Parser) -> None:
    parser.add_argument("directory", help="the run directory")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two looks")
    parser.add_argument("--once", action="store_true", help="look once")


def add_tables(parser: Parser) -> None:
    parser.add_argument(
        "folder", nargs="?", help="of tables; default: $PROXYLESSNAS_TABLES, or the user's own"
    )
    parser.add_argument("--device", help="print the path of this device's table, as pixel1")
    parser.add_argument("--precision", help="that it is in: f32, fp16, bf16 or int8")
    parser.add_argument("--runtime", help="that it is of")


def add_zoo(parser: Parser) -> None:
    parser.add_argument("name", nargs="*", help="a network; without one, all are listed")
    parser.add_argument("--build", action="store_true", help="print the plain network")
    parser.add_argument("--draw", help="write the network as this SVG file")
    parser.add_argument("--export", help="write it as this .onnx, .pt2, .tflite or .pte, or folder")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="its latency on --runtime; of several networks, or without a name of the GPU, the "
        "CPU and the mobile one",
    )
    parser.add_argument(
        "--runtime", default="", help="what --measure uses, as onnxruntime,openvino:bf16,litert"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the runtime")
    parser.add_argument("--batch", type=int, default=1, help="images an inference")
    parser.add_argument("--weights", help="the authors' state dict, to be loaded")
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="export the network without trained weights",
    )


def add_completing(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell")


# The verbs beside those of a run, with what adds their options.
ADDERS: Mapping[str, Callable[[Parser], None]] = {
    "predict": add_predicting,
    "report": add_reporting,
    "watch": add_watching,
    "tables": add_tables,
    "zoo": add_zoo,
    "completion": add_completing,
}
