"""Limits as users write them."""

from __future__ import annotations

from typing import Any

import pytest

from proxylessnas.config import RunConfig, parse_settings
from proxylessnas.errors import ConfigError
from proxylessnas.limits import all_limits, check_limit_names, parse_limit


@pytest.mark.parametrize(
    ("limit", "unit", "value"),
    [
        (12, "ms", (12.0, False)),
        ("800us", "ms", (0.8, False)),
        ("0.6x", "", (0.6, True)),
        ("600M", "", (6e8, False)),
        ("1.5e6", "", (1.5e6, False)),
        (" 2 k ", "", (2000.0, False)),
        (1.5, "MiB", (1.5, False)),
        ("1.5MiB", "MiB", (1.5, False)),
        ("5 mJ", "mJ", (5.0, False)),
        ("0.1J", "mJ", (100.0, False)),
        ("500uJ", "mJ", (0.5, False)),
    ],
)
def test_limits_are_read(limit: Any, unit: str, value: tuple[float, bool]) -> None:
    number, relative = parse_limit("cost", limit, unit)
    assert (pytest.approx(number), relative) == value


@pytest.mark.parametrize(
    ("limit", "unit"),
    [
        *((limit, "") for limit in ("", "M", "-1", 0, -5, float("nan"), float("inf"), True, None)),
        *((limit, "") for limit in ("1Q", "5ms", "1 2", [5], "1e99")),
        *(("5W", "mJ"), ("600M", "ms"), ("5s", "MiB")),
    ],
)
def test_other_forms_and_units_are_refused_by_name(limit: Any, unit: str) -> None:
    with pytest.raises(ConfigError, match=r"the energy .* is not understood: write"):
        parse_limit("energy", limit, unit)


def test_the_target_latency_is_the_short_form_of_a_limit() -> None:
    assert all_limits({"macs": "5M"}, "12ms") == {"latency": "12ms", "macs": "5M"}
    assert all_limits({"latency": "12ms"}) == {"latency": "12ms"}
    with pytest.raises(ConfigError, match=r"two limits, the target latency 12ms and .* 9: give"):
        all_limits({"latency": 9}, "12ms")


def test_all_forms_are_checked_before_the_costs_are_known() -> None:
    assert all_limits({"energy_mj": "5mJ"}) == {"energy_mj": "5mJ"}
    for limits in ({"energy_mj": "five"}, {"macs": "5ms"}, {"parameters": -5}):
        with pytest.raises(ConfigError, match="is not understood"):
            all_limits(limits)
    for wrong in ("5W", "nan", "-1", "5M"):
        with pytest.raises(ConfigError, match=r"energy_mj .* is not understood: write 5mJ, 0\.1J,"):
            all_limits({"energy_mj": wrong})
    with pytest.raises(ConfigError, match=r"the own .nan. is not understood: write 600M, 1\.5e6"):
        all_limits({"own": "nan"})
    with pytest.raises(ConfigError, match="write MiB"):
        all_limits({"peak_memory": "0.5x"})


def test_an_unknown_cost_is_refused_with_the_names_there_are() -> None:
    check_limit_names(["latency", "energy_mj"], ["energy_mj"])
    with pytest.raises(
        ConfigError,
        match="no cost 'mac' to limit; there are latency, macs, parameters, peak_memory, energy_mj",
    ):
        check_limit_names(["mac"], ["energy_mj"])


@pytest.mark.parametrize("name", ["parameters", "macs", "peak_memory"])
def test_a_former_setting_is_refused_by_its_new_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"max_{name} is now limits.{name}$"):
        parse_settings(RunConfig, {f"max_{name}": 5}, "config.yaml")
    assert parse_settings(RunConfig, {"limits": {name: 5}}, "c").limits == {name: 5}
