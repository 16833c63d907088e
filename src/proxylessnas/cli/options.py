"""Options of the command line, generated from the settings classes; no torch, no pydantic for help.

Every field of `RunConfig` is an option, `--search.warmup-epochs` where it is of a group. `parse`
returns what was given and nothing else, so that a config file under the options keeps its values.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal, NoReturn

from proxylessnas import schema
from proxylessnas.cli.flags import OF_RUNS, OF_STAGE, OPTIONS, Option
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

    def add(self, *options: Option) -> None:
        for name, how in options:
            self.add_argument(name, **how)

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


def parsed(verb: str, words: Sequence[str]) -> Any:
    """The options of a verb without settings as attributes; None where they were explained."""
    parser = verb_parser(verb)
    if "-h" in words or "--help" in words:
        parser.print_help()
        return None
    return SimpleNamespace(**parser.parse(words))


def verb_parser(verb: str) -> Parser:
    """The parser of a verb without settings."""
    parser = Parser(verb)
    parser.add(*OPTIONS[verb])
    return parser


# --- the stages ---


def stage_parser(verb: str) -> Parser:
    """The parser of `run` and of the verbs of its stages."""
    usage = MEASURE if verb == "measure" else f"proxylessnas {verb} [RUN_DIR] [options]"
    parser = Parser(verb, usage, argparse.SUPPRESS)
    if verb != "measure":
        parser.add_argument("directory", nargs="?", help="the run directory; the same as --out")
    parser.add(*OF_STAGE.get(verb, ()), *OF_RUNS)
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
