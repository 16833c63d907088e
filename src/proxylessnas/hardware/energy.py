"""Energy of an inference, in millijoules, where the machine has a meter.

What a meter counts is the whole package, device or board while networks run without a pause: the
idle power is in it. Without a meter there is no number. Untested on a device: meters were read here
from files of their documented form.
"""

from __future__ import annotations

import contextlib
import csv
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from proxylessnas.errors import MeasurementError, MissingDependency, foreign
from proxylessnas.export.quiet import denormal_mode
from proxylessnas.hardware.rounds import TimedNetwork
from proxylessnas.hardware.timing import ProgressCallback

POWERCAP = Path("/sys/class/powercap")
COLUMN = "energy_mj"
WINDOW_S = 1.0  # of one network without a pause: meters are read about every millisecond
PATIENCE_S = 15.0  # that a power meter's file may be behind
MOST_GAP_S = 5.0  # between two lines of it
LATEST_S = 1e11  # since 1970: the year 5138
UNITS = {
    "w": 1.0,
    "watt": 1.0,
    "watts": 1.0,
    "mw": 1e-3,
    "milliwatts": 1e-3,
    "µw": 1e-6,
    "uw": 1e-6,
}


class Meter(Protocol):
    """What counts energy."""

    def joules(self, start: float, end: float) -> float:
        """The energy between two times, in seconds of `time.time`; called at the end."""
        ...

    def begin(self) -> None:
        """A window begins now."""
        ...


def meter_of(name: str) -> Meter:
    """rapl, nvml, or the file of a power meter.

    Raises:
        MeasurementError, MissingDependency: it is not here, or cannot be read.
    """
    if name == "rapl":
        return Rapl()
    if name == "nvml":
        return Nvml()
    return PowerLog(Path(name))


@dataclass
class Rapl:
    """Intel's and AMD's counters of the processor packages, by Linux' powercap."""

    folder: Path = POWERCAP
    before: dict[Path, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.packages = sorted(self.folder.glob("intel-rapl:[0-9]"))
        if not self.packages:
            raise MeasurementError(f"rapl: {self.folder} has no counters: no energy is measured")
        self.begin()

    def begin(self) -> None:
        self.before = {package: self._read(package, "energy_uj") for package in self.packages}

    def joules(self, start: float, end: float) -> float:
        total = 0
        for package, before in self.before.items():
            now = self._read(package, "energy_uj")
            if now < before:  # the counter began again
                now += self._read(package, "max_energy_range_uj")
            total += now - before
        return total / 1e6

    def _read(self, package: Path, name: str) -> int:
        with foreign(MeasurementError, f"rapl: cannot read {package / name}, as root can"):
            return int((package / name).read_text())


class Nvml:
    """The counter of the first NVIDIA device."""

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError:
            raise MissingDependency("nvidia-ml-py", "nvml", "the meter nvml") from None
        with foreign(MeasurementError, "nvml: no NVIDIA device with an energy counter"):
            pynvml.nvmlInit()
            self.nvml: Any = pynvml
            self.handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        self.begin()

    def begin(self) -> None:
        self.before = self._millijoules()

    def joules(self, start: float, end: float) -> float:
        return (self._millijoules() - self.before) / 1e3

    def _millijoules(self) -> int:
        with foreign(MeasurementError, "nvml: the device has no energy counter"):
            return int(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))


@dataclass
class PowerLog:
    """A .csv that a power meter's program goes on writing: a time and watts a line.

    The time is in seconds since 1970 (or thousandths, and so on) or ISO 8601, of this machine's
    clock, by which windows are found. Of more columns the head line says which one is the power, as
    `W`, `power_mW` or `power`. clock, sleep: of tests.
    """

    path: Path
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self._rows()  # for its errors

    def begin(self) -> None: ...

    def joules(self, start: float, end: float) -> float:
        waited_until = self.clock() + PATIENCE_S
        while (rows := self._rows())[-1][0] < end:
            if self.clock() > waited_until:
                raise MeasurementError(
                    f"{self.path} is behind: its last line is {end - rows[-1][0]:.0f} s before "
                    "the end of what is measured; let the meter write while networks run"
                )
            self.sleep(0.2)
        if rows[0][0] > start:
            raise MeasurementError(f"{self.path} begins after the first network: start it before")
        joules = 0.0
        for (at, watts), (after, _) in pairwise(rows):
            within = max(0.0, min(after, end) - max(at, start))
            if within and after - at > MOST_GAP_S:
                raise MeasurementError(
                    f"{self.path} has no line for {after - at:.0f} s while networks ran; at most "
                    f"{MOST_GAP_S:g}"
                )
            joules += watts * within
        return joules

    def _rows(self) -> list[tuple[float, float]]:
        """(time, watts), without a head line and a last line that is not finished yet."""
        try:
            text = self.path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise MeasurementError(f"cannot read the power meter's {self.path}: {error}") from None
        whole = text[: text.rfind("\n") + 1].splitlines()
        separator = next((s for s in ";\t" if whole and s in whole[0]), ",")
        lines = list(enumerate(csv.reader(whole, delimiter=separator), start=1))
        with contextlib.suppress(ValueError, IndexError):
            _number(lines[0][1][1])  # there is no head line
            lines.insert(0, (0, ["time", "W"] if len(lines[0][1]) == 2 else lines[0][1]))
        if len(lines) < 2:
            raise MeasurementError(f"{self.path} has no line of a time and watts yet")
        (_, head), *lines = lines
        column, watts = self._power(head)
        rows: list[tuple[float, float]] = []
        for number, row in lines:
            try:
                rows.append((_seconds(row[0]), watts * _number(row[column])))
                if not (0 <= rows[-1][1] < math.inf and rows[0][0] <= rows[-1][0] < math.inf):
                    raise ValueError
                if len(rows) > 1 and rows[-1][0] < rows[-2][0]:
                    raise ValueError
            except (ValueError, IndexError):
                raise MeasurementError(
                    f"{self.path}, line {number}: {separator.join(row)[:60]!r} is no time, after "
                    "that of the line before, and watts, of at least 0"
                ) from None
        return rows

    def _power(self, head: list[str]) -> tuple[int, float]:
        """The column of the power, and its unit in watts, by the words of a head line."""
        words = [set(re.findall("[a-zµ]+", name.lower())) for name in head]
        named = [
            (column, watts)
            for column in range(1, len(head))
            for unit, watts in UNITS.items()
            if unit in words[column]
        ]
        named = named or [(i, 1.0) for i in range(1, len(head)) if "power" in words[i]]
        if len(named) != 1:
            raise MeasurementError(
                f"{self.path}: which column is the power? Its head is {','.join(head)[:60]!r}: "
                "name one as W, mW or power, and the first one time"
            )
        return named[0]


def _number(text: str) -> float:
    return float(text.replace(",", "."))  # 3,5 between semicolons


def _seconds(text: str) -> float:
    try:
        seconds = _number(text)
    except ValueError:
        return datetime.fromisoformat(text.strip()).timestamp()
    while LATEST_S < seconds < math.inf:  # of thousandths, millionths
        seconds /= 1e3
    return seconds


def measure_energy(
    networks: Mapping[str, TimedNetwork],
    meter: Meter,
    *,
    window_s: float = WINDOW_S,
    clock: Callable[[], float] = time.time,
    progress: ProgressCallback | None = None,
) -> dict[str, float]:
    """Millijoules an inference of every network, each for a window without a pause.

    Raises:
        MeasurementError: the meter fails, or counted nothing.
    """
    found: dict[str, float] = {}
    with foreign(MeasurementError, "a network fails while its energy is measured"), denormal_mode():
        for name, network in networks.items():
            network()
            meter.begin()
            start, count = clock(), 0
            while (end := clock()) < start + window_s or not count:
                network()
                count += 1
            joules = meter.joules(start, end)
            if joules <= 0:
                raise MeasurementError(f"the meter counted {joules:g} J in {end - start:.1f} s")
            found[name] = 1e3 * joules / count
            if progress is not None:
                progress(len(found), len(networks))
    return found
