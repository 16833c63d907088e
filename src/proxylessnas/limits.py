"""Limits as users write them: `12ms`, `600M` MACs, `0.6x` of the largest network, or a number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from proxylessnas.errors import ConfigError

Limit = str | float
UNITS = {"latency": "ms", "macs": "", "parameters": "", "peak_memory": "MiB"}
NUMBER = r"\s*((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*"
SCALES = {
    "ms": {"ms": 1.0, "us": 1e-3, "µs": 1e-3, "s": 1e3},
    "mJ": {"J": 1e3, "uJ": 1e-3, "µJ": 1e-3},
    "": {"k": 1e3, "M": 1e6, "G": 1e9},
}
EXAMPLES = {"ms": "12ms, 800us", "mJ": "5mJ, 0.1J", "": "600M, 1.5e6"}
MEASURED = {"energy_mj": "mJ"}  # costs that a table has where a meter was there


def parse_limit(name: str, limit: object, unit: str) -> tuple[float, bool]:
    """(value in the unit, False) of 12, `12ms` or `600M`; (factor, True) of `0.6x`.

    Raises:
        ConfigError: another form or unit, or not a positive finite number.
    """
    match = re.fullmatch(rf"{NUMBER}(\S*)\s*", str(limit))
    scales = {"": 1.0, unit: 1.0, "x": 1.0, **SCALES.get(unit, {})}
    if match is None or match[2] not in scales or not 0 < float(match[1]) < 1e30:
        raise _not_understood(name, limit, unit)
    return float(match[1]) * scales[match[2]], match[2] == "x"


def parse_latency(text: object) -> tuple[float, bool]:
    """(milliseconds, False) of `12ms` or `800us`, (factor, True) of `0.6x`.

    Raises:
        ConfigError: another form, without a unit, or not positive.
    """
    if not isinstance(text, str) or re.fullmatch(NUMBER, text):
        raise _not_understood("latency", text, "ms")
    return parse_limit("latency", text, "ms")


def _not_understood(name: str, limit: object, unit: str) -> ConfigError:
    return ConfigError(
        f"the {name} {limit!r} is not understood: write {EXAMPLES.get(unit, f'5{unit}')}, or 0.6x "
        "(of the space's largest network)"
    )


def all_limits(limits: Mapping[str, Limit], target_latency: str | None = None) -> dict[str, Limit]:
    """Limits by the cost's name; `target_latency` is the short form of the latency's.

    Raises:
        ConfigError: the latency has two limits, or a limit is not understood. Limits of costs
            that a table or a function brings are understood when the cost is known.
    """
    if target_latency is not None:
        parse_latency(target_latency)
        if "latency" in limits:
            raise ConfigError(
                f"the latency has two limits, the target latency {target_latency} and "
                f"limits.latency {limits['latency']}: give one"
            )
        limits = {"latency": target_latency, **limits}
    for name, limit in limits.items():
        units = UNITS | MEASURED
        unit = units[name] if name in units else unit_of(limit)
        _, relative = parse_limit(name, limit, unit)
        if relative and name == "peak_memory":
            raise ConfigError(f"peak_memory is {limit!r}: write MiB, as 1.5, not a share")
    return dict(limits)


def check_limit_names(names: Iterable[str], further: Iterable[str]) -> None:
    """Refuse limits of costs that there are not.

    further: costs besides those that every search has.

    Raises:
        ConfigError: one is unknown; the message names all that there are.
    """
    known = [*UNITS, *(name for name in further if name not in UNITS)]
    for name in names:
        if name not in known and name.startswith("energy"):
            raise ConfigError(
                f"{name} has a limit, and nothing has measured it: without a meter there is no "
                "number; with one: --measure.energy rapl (or nvml, or a power meter's .csv), or "
                "--table with a table that was measured with it"
            )
        if name not in known:
            raise ConfigError(
                f"there is no cost {name!r} to limit; there are {', '.join(known)}; another one "
                "needs its function (costs)"
            )


def unit_of(limit: object) -> str:
    """The word behind the number; empty where there is no such form."""
    match = re.fullmatch(rf"{NUMBER}(\S*)\s*", str(limit))
    return match[2] if match else ""
