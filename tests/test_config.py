"""Settings: checked where they are made, complete, and read from plain values."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from proxylessnas.config import (
    DataSettings,
    DeriveSettings,
    MachineSettings,
    MeasureSettings,
    RunConfig,
    SearchSettings,
    TrainSettings,
    add_options,
    field_help,
    from_namespace,
    parse_minutes,
    parse_settings,
)
from proxylessnas.errors import ConfigError, UserError
from proxylessnas.limits import parse_latency

CLASSES = (
    DataSettings,
    MeasureSettings,
    SearchSettings,
    DeriveSettings,
    TrainSettings,
    MachineSettings,
    RunConfig,
)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_has_its_help_in_the_docstring(cls: type[Any]) -> None:
    groups = {"loading", "measure", "search", "derive", "train", "machine"}
    missing = {f.name for f in dataclasses.fields(cls)} - field_help(cls).keys() - groups
    assert missing == set()


@pytest.mark.parametrize("cls", CLASSES)
def test_settings_are_frozen_and_survive_plain_values(cls: type[Any]) -> None:
    settings = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, dataclasses.fields(cls)[0].name, None)
    assert from_namespace(cls, dataclasses.asdict(settings)) == settings


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (DataSettings, "valid_fraction", 0.0),
        (DataSettings, "test_fraction", 1.0),
        (DataSettings, "limit", 0),
        (DataSettings, "workers", -1),
        (MeasureSettings, "threads", 0),
        (MeasureSettings, "warmup", -1),
        (MeasureSettings, "networks", 2),
        (SearchSettings, "epochs", 0),
        (SearchSettings, "batch_size", -3),
        (SearchSettings, "arch_every", 0),
        (SearchSettings, "arch_learning_rate", 0.0),
        (SearchSettings, "arch_beta1", 1.0),
        (SearchSettings, "warmup_epochs", -1),
        (SearchSettings, "uniform_share", 1.5),
        (SearchSettings, "label_smoothing", -0.1),
        (SearchSettings, "learning_rate", float("nan")),
        (SearchSettings, "cost_weight", -1.0),
        (DeriveSettings, "top_k", 0),
        (DeriveSettings, "min_limit_share", 1.0),
        (TrainSettings, "momentum", 1.0),
        (TrainSettings, "learning_rate", -0.1),
        (MachineSettings, "device", "tpu"),
        (MachineSettings, "threads", 0),
        (RunConfig, "seed", -1),
        (RunConfig, "image_size", 0),
        (RunConfig, "target_latency", "fast"),
        (RunConfig, "budget", "forever"),
    ],
)
def test_a_value_out_of_range_is_named(cls: type[Any], name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        cls(**{name: value})
    assert str(value) in str(error.value)


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


@pytest.mark.parametrize("text", ["", "12", "ms", "-3ms", "0ms", "0x", "1e99ms", "12 min", "nanms"])
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


# --- from text ---


def test_plain_values_become_settings() -> None:
    settings = parse_settings(SearchSettings, {"epochs": 3, "arch_learning_rate": 0.1}, "search")
    assert settings == SearchSettings(epochs=3, arch_learning_rate=0.1)


def test_nested_plain_values_become_nested_settings() -> None:
    given = {"data": "digits", "search": {"epochs": 3}, "space_settings": {"widths": [8, 16]}}
    config = parse_settings(RunConfig, given, "config")
    assert config.search == SearchSettings(epochs=3)
    assert config.space_settings == {"widths": [8, 16]}
    assert config.train == TrainSettings()


def test_reinmax_is_refused_where_there_are_no_slopes() -> None:
    assert SearchSettings(estimator="full_path", reinmax=True).reinmax
    with pytest.raises(ConfigError, match="two_path and full_path, not reinforce"):
        SearchSettings(estimator="reinforce", reinmax=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 3}, "search has no setting 'epoch'; did you mean epochs"),
        ({"epochs": "many"}, "search: .*epochs"),
        ({"epochs": 2.5}, "search: .*epochs"),
        ({"estimator": "two_paths"}, "search: .*estimator"),
        ({"epochs": -1}, "epochs is -1"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse_settings(SearchSettings, given, "search")
    assert "\n" not in str(error.value)


def test_every_field_is_an_option() -> None:
    parser = ArgumentParser(exit_on_error=False)
    add_options(parser, RunConfig)
    parsed = parser.parse_args(["--search.arch-every", "5", "--target-latency", "12ms"])
    config = from_namespace(RunConfig, parsed.as_dict())
    assert config.search.arch_every == 5 and config.target_latency == "12ms"
    assert config.measure == MeasureSettings()


def test_a_config_error_is_a_user_error_and_a_value_error() -> None:
    assert issubclass(ConfigError, UserError) and issubclass(ConfigError, ValueError)


def test_settings_need_no_torch() -> None:
    """So that --help is instant."""
    code = (
        "import sys, proxylessnas.config, proxylessnas.architecture; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("given", "now"),
    [
        ({"max_macs": 5}, "limits.macs"),
        ({"search": {"both_ends": True}}, "search.reinmax"),
        ({"search": {"dual_rate": 0.1}}, "search.multiplier_learning_rate"),
        ({"machine": {"split": True}}, "machine.depthwise_strips"),
        ({"machine": {"fuse": True}}, "machine.fused_batch_norm"),
        ({"derive": {"use": 0.9}}, "derive.min_limit_share"),
    ],
)
def test_an_old_name_is_refused_with_the_new(given: dict[str, Any], now: str) -> None:
    with pytest.raises(ConfigError, match=f"is now {now}"):
        parse_settings(RunConfig, given, "config")
