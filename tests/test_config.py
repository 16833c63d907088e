"""Settings: checked where they are constructed, complete, read from plain values and options."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylessnas.cli.options import parse, stage_parser
from proxylessnas.config import (
    RENAMED,
    CandidateSettings,
    DataSettings,
    DeriveSettings,
    MachineSettings,
    MeasureSettings,
    QuantiseSettings,
    RunConfig,
    SearchSettings,
    TeachSettings,
    TrainSettings,
    json_schema,
    parse_minutes,
    parse_settings,
    read_config,
)
from proxylessnas.errors import ConfigError, UserError
from proxylessnas.limits import parse_latency
from proxylessnas.schema import docs_of
from proxylessnas.spaces import SPACES

GROUPS: dict[str, type[Any]] = {
    "loading": DataSettings,
    "measure": MeasureSettings,
    "search": SearchSettings,
    "derive": DeriveSettings,
    "train": TrainSettings,
    "teach": TeachSettings,
    "machine": MachineSettings,
    "candidates": CandidateSettings,
    "quantise": QuantiseSettings,
}
CLASSES = (*GROUPS.values(), RunConfig, *(space.settings for space in SPACES.values()))


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_has_a_sentence_of_its_own(cls: type[Any]) -> None:
    docs = docs_of(cls)
    assert {f.name for f in dataclasses.fields(cls)} - docs.keys() - GROUPS.keys() == set()
    assert len(set(docs.values())) == len(docs)
    assert all(text[0].isupper() and text.endswith(".") for text in docs.values())


@pytest.mark.parametrize("cls", GROUPS.values())
def test_null_is_explained_where_it_is_a_default(cls: type[Any]) -> None:
    docs = docs_of(cls)
    for field in dataclasses.fields(cls):
        assert (field.default is None) == ("null" in docs[field.name].lower()), field.name


@pytest.mark.parametrize("cls", CLASSES)
def test_settings_are_frozen_and_survive_plain_values(cls: type[Any]) -> None:
    settings = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, dataclasses.fields(cls)[0].name, None)
    assert parse_settings(cls, dataclasses.asdict(settings)) == settings
    assert parse_settings(cls, json.loads(json.dumps(dataclasses.asdict(settings)))) == settings
    assert dataclasses.replace(settings) == settings
    assert pickle.loads(pickle.dumps(settings)) == copy.deepcopy(settings) == settings


# --- one shape of error, whatever the source ---

REFUSED = [
    ("loading", "valid_fraction", 0.0, "a number, above 0, below 1"),
    ("loading", "test_fraction", 1.0, "a number, above 0, below 1"),
    ("loading", "limit", 0, "a whole number, at least 1, or null"),
    ("loading", "workers", -1, "a whole number, at least 0, or null"),
    ("measure", "threads", 0, "a whole number, at least 1, at most 1,024"),
    ("measure", "warmup", -1, "a whole number, at least 0"),
    ("measure", "networks", 2, "a whole number, at least 3"),
    ("search", "epochs", 0, "a number, above 0"),
    ("search", "batch_size", -1, "a whole number, at least 1"),
    ("search", "batch_size", 2.5, "a whole number, at least 1"),
    ("search", "batch_size", True, "a whole number, at least 1"),
    ("search", "batch_size", -3, "a whole number, at least 1"),
    ("search", "arch_every", 0, "a whole number, at least 1"),
    ("search", "arch_learning_rate", 0.0, "a number, above 0, at most 1,000, or null"),
    ("search", "arch_beta1", 1.0, "a number, at least 0, below 1"),
    ("search", "warmup_epochs", -1, "a number, at least 0"),
    ("search", "uniform_share", 1.5, "a number, at least 0, at most 1"),
    ("search", "label_smoothing", -0.1, "a number, at least 0, at most 1"),
    ("search", "learning_rate", float("nan"), "a number, above 0, at most 1,000"),
    ("search", "learning_rate", float("inf"), "a number, above 0, at most 1,000"),
    ("search", "cost_weight", -1.0, "a number, at least 0, at most 1,000, or null"),
    ("search", "estimator", "two_paths", "did you mean two_path?"),
    ("search", "reinmax", "perhaps", "true or false"),
    ("derive", "top_k", 0, "a whole number, at least 1"),
    ("derive", "min_limit_share", 1.0, "a number, at least 0, below 1"),
    ("train", "momentum", 1.0, "a number, at least 0, below 1"),
    ("train", "learning_rate", -0.1, "a number, above 0, at most 1,000"),
    ("machine", "device", "tpu", "the device 'tpu' is not one of auto, cpu, cuda and cuda:N"),
    ("machine", "threads", 0, "a whole number, at least 1, at most 1,024, or null"),
    ("machine", "compile", "maybe", "true or false, or null"),
    ("", "seed", -1, "a whole number, at least 0"),
    ("", "seed", 2**63, "a whole number, at least 0"),
    ("", "image_size", 0, "a whole number, at least 1, at most 4,096"),
    ("", "target_latency", "fast", "the latency 'fast' is not understood: write 12ms"),
    ("", "target_latency", "12", "the latency '12' is not understood: write 12ms"),
    ("", "budget", "forever", "the budget 'forever' is not understood: write 60m or 2h"),
]


@pytest.mark.parametrize(("group", "name", "value", "allowed"), REFUSED)
def test_every_source_refuses_a_value_in_the_same_words(
    tmp_path: Path, group: str, name: str, value: Any, allowed: str
) -> None:
    """Python, a config file and an option: one line with name, value and what is allowed."""
    dotted = f"{group}.{name}" if group else name
    values = {group: {name: value}} if group else {name: value}
    with pytest.raises(ConfigError) as python:
        GROUPS.get(group, RunConfig)(**{name: value})
    (tmp_path / "config.yaml").write_text(json.dumps(values).replace("NaN", ".nan"))
    with pytest.raises(ConfigError) as file:
        read_config(tmp_path / "config.yaml")
    option = f"--{dotted}".replace("_", "-")
    with pytest.raises(ConfigError) as command:
        parse(stage_parser("run"), [f"{option}={value}"])
    for error in (python, file, command):
        words = str(error.value)
        assert dotted in words and allowed in words and "\n" not in words, words
        assert str(value).lower() in words.lower() or error is command


def test_the_words_are_the_same() -> None:
    with pytest.raises(ConfigError) as python:
        SearchSettings(batch_size=-1)
    with pytest.raises(ConfigError) as plain:
        parse_settings(RunConfig, {"search": {"batch_size": -1}}, "config.yaml")
    expected = "search.batch_size is -1; it must be a whole number, at least 1"
    assert str(python.value) == expected
    assert str(plain.value) == f"config.yaml: {expected}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"search": {"epoch": 3}}, "there is no 'search.epoch'; did you mean epochs?"),
        ({"search": {"epoch": -3, "epochs": -3}}, "there is no 'search.epoch'"),
        ({"sarch": {}}, "there is no 'sarch'; did you mean search?"),
        ({"search": None}, "search is null; it must be a group of named values"),
        ({"search": [1]}, r"search is \[1\]; it must be a group of named values"),
        ({"search": {"epochs": None}}, "search.epochs is null; it must be a number"),
        ({"search": {"epochs": "3"}}, "search.epochs is '3'; it must be a number"),
        ({"data": 3}, "data is 3; it must be a text"),
        ({"limits": {"macs": -5}}, "the macs -5 is not understood"),
        ({"limits": [5]}, r"limits is \[5\]; it must be a mapping"),
        ({"train": {"space_settings": {"widths": [3]}}}, "train: space_settings has no 'widths'"),
        ({"search": {"epochs": 3, "arch_delay_epochs": 3}}, "search: arch_delay_epochs is 3"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse_settings(RunConfig, values, "config.yaml")
    assert str(error.value).startswith("config.yaml: ") and "\n" not in str(error.value)


def test_an_unknown_argument_in_python_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no 'search\.epoch'; did you mean epochs"):
        SearchSettings(epoch=3)  # type: ignore[call-arg]


def test_reinmax_is_refused_where_there_are_no_slopes() -> None:
    assert SearchSettings(estimator="full_path", reinmax=True).reinmax
    with pytest.raises(ConfigError, match="two_path and full_path, not reinforce"):
        SearchSettings(estimator="reinforce", reinmax=True)


def test_alpha_learns_for_an_epoch_at_least() -> None:
    assert SearchSettings(epochs=3, arch_delay_epochs=2).arch_delay_epochs == 2
    with pytest.raises(ConfigError, match=r"less than epochs \(3\)"):
        SearchSettings(epochs=3, arch_delay_epochs=3)


def test_a_config_error_is_a_user_error_and_a_value_error() -> None:
    assert issubclass(ConfigError, UserError) and issubclass(ConfigError, ValueError)


# --- earlier names ---


@pytest.mark.parametrize("name", RENAMED)
def test_an_earlier_name_is_refused_with_the_new(name: str) -> None:
    now = RENAMED[name]
    group, _, _ = now.rpartition(".")
    inside = {name: 1} if group == "limits" else {group: {name: 1}}
    with pytest.raises(ConfigError, match=rf"{name} is now {now}$"):
        parse_settings(RunConfig, inside)
    option = f"--{name}" if group == "limits" else f"--{group}.{name}"
    expected = f"--limit {now[7:]}=VALUE" if group == "limits" else f"--{now}".replace("_", "-")
    with pytest.raises(ConfigError, match=f"is now {expected}$"):
        parse(stage_parser("run"), [option.replace("_", "-"), "1"])


# --- amounts ---


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12ms", (12.0, False)),
        (" 12.5 ms ", (12.5, False)),
        (".5ms", (0.5, False)),
        ("800us", (0.8, False)),
        ("800µs", (0.8, False)),
        ("2s", (2000.0, False)),
        ("0.6x", (0.6, True)),
    ],
)
def test_latencies_are_read(text: str, value: tuple[float, bool]) -> None:
    ms, relative = parse_latency(text)
    assert (pytest.approx(ms), relative) == value


@pytest.mark.parametrize("text", ["", "12", "ms", "-3ms", "0ms", "0x", "12 min", "nanms"])
def test_what_is_no_latency_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="12ms, 800us"):
        parse_latency(text)


@pytest.mark.parametrize(("text", "minutes"), [("60m", 60.0), ("2h", 120.0), ("90s", 1.5)])
def test_budgets_are_read(text: str, minutes: float) -> None:
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "60", "0m", "-1h", "2d"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="60m or 2h"):
        parse_minutes(text)


# --- from plain values ---


def test_plain_values_become_settings() -> None:
    settings = parse_settings(SearchSettings, {"epochs": 3, "arch_learning_rate": 1}, "search")
    assert settings == SearchSettings(epochs=3, arch_learning_rate=1.0)


def test_nested_plain_values_become_nested_settings() -> None:
    values = {"data": "digits", "search": {"epochs": 3}, "space_settings": {"widths": [8, 16]}}
    config = parse_settings(RunConfig, values, "config")
    assert config.search == SearchSettings(epochs=3)
    assert config.space_settings == {"widths": [8, 16]}
    assert config.train == TrainSettings()


def test_numbers_of_a_file_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-3 for a text."""
    path = tmp_path / "config.yaml"
    path.write_text("search: {learning_rate: 1e-3, weight_decay: 5E-4}\nlimits: {macs: 3e6}\n")
    config = read_config(path)
    assert (config.search.learning_rate, config.search.weight_decay) == (1e-3, 5e-4)
    assert config.limits == {"macs": 3e6}


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("search:\n  epochs: 3\n  epochs: 4\n")
    with pytest.raises(ConfigError, match="the key 'epochs' is there twice"):
        read_config(path)


# --- options ---


def test_every_field_is_an_option() -> None:
    words = ["--search.arch-every", "5", "--target-latency", "12ms", "--train.inherit=true"]
    words += [
        "--space-settings={widths: [8, 16]}",
        "--limit",
        "macs=300e6",
        "--limit=parameters=4M",
    ]
    words += ["--search.arch-learning-rate", "1e-3", "--table=null", "--machine.compile", "null"]
    assert parse(stage_parser("run"), words) == {
        "search": {"arch_every": 5, "arch_learning_rate": 1e-3},
        "target_latency": "12ms",
        "train": {"inherit": True},
        "space_settings": {"widths": [8, 16]},
        "limits": {"macs": 300e6, "parameters": "4M"},
        "table": None,
        "machine": {"compile": None},
    }


def test_what_is_not_given_is_not_there() -> None:
    assert parse(stage_parser("run"), []) == {}


def test_a_text_that_looks_like_a_number_stays_a_text() -> None:
    assert parse(stage_parser("run"), ["--data", "123"]) == {"data": "123"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--search.epoch", "3"], "no option --search.epoch; did you mean --search.epochs"),
        (["--search.warmup_epochs", "3"], "did you mean --search.warmup-epochs"),
        (["--search.epo", "3"], "there is no option --search.epo"),
        (["--search.epochs"], "--search.epochs: expected one argument"),
        (["--search.epochs", "many"], "search.epochs is 'many'; it must be a number"),
        (["--search.epochs", "null"], "search.epochs is null; it must be a number"),
        (["--space-settings", "[1]"], r"space_settings is \[1\]; it must be a mapping"),
        (["--space-settings", "{"], "space_settings is not YAML"),
        (["--limit", "macs"], "--limit macs: write NAME=VALUE"),
        (["one", "two"], "the argument 'two' is not understood"),
    ],
)
def test_a_wrong_option_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse(stage_parser("run"), words)
    assert "\n" not in str(error.value)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)


@given(st.sampled_from(sorted(GROUPS)), st.data())
def test_any_value_is_read_or_refused_in_one_line(group: str, data: st.DataObject) -> None:
    fields = [f.name for f in dataclasses.fields(GROUPS[group])]
    values = data.draw(st.dictionaries(st.sampled_from([*fields, "other"]), scalars, max_size=3))
    try:
        settings = parse_settings(RunConfig, {group: values})
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert dataclasses.asdict(settings)[group].items() >= values.items()


# --- the schema ---


def test_the_json_schema_says_what_the_settings_do() -> None:
    schema = json_schema()
    epochs = schema["$defs"]["SearchSettings"]["properties"]["epochs"]
    assert (epochs["exclusiveMinimum"], epochs["default"]) == (0, 8)
    assert epochs["description"].startswith("Epochs of weight and architecture steps in turn")
    assert schema["additionalProperties"] is False
    assert {"search", "limits", "target_latency"} <= schema["properties"].keys()


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import proxylessnas", ("torch", "pydantic", "yaml", "argparse")),
        ("import proxylessnas.config, proxylessnas.architecture", ("torch", "pydantic")),
        (
            "from proxylessnas.cli.main import main; main(['run', '--help'])",
            ("torch", "pydantic"),
        ),
        ("import proxylessnas.config as c; c.SearchSettings(epochs=3)", ("torch",)),
    ],
)
def test_what_is_not_needed_is_not_imported(code: str, absent: tuple[str, ...]) -> None:
    """So that --help is instant."""
    code = f"import sys; {code}; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
