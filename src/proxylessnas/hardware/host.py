"""The processor a measurement runs on: its name, its other load, a core to be pinned to.

Everything here does what the system allows and nothing where it does not. Only the standard
library: a kit carries this file along.
"""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/sys/devices/system/cpu")
_STAT = "/proc/stat"
_BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal; ticks in /proc/stat


def cpu_model() -> str:
    """The processor's own name for itself."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("model name", "Hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


# Flags of /proc/cpuinfo: products of 8-bit integers, summed in 32 bits by one instruction.
INTEGER_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def cpu_flags() -> frozenset[str]:
    """What the processor says that it can, as the kernel lists it; empty where it does not."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


def integer_instructions() -> tuple[str, ...]:
    """Those of `INTEGER_FLAGS` that the processor has; without one, int8 gains less or nothing."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return ("asimddp",)  # every Apple processor of that kind has it
    flags = cpu_flags()
    return tuple(flag for flag in INTEGER_FLAGS if flag in flags)


def needs_reduced_range() -> bool:
    """Whether 8-bit weights overflow: x86 without VNNI adds pairs of products in 16 bits."""
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
    return x86 and not integer_instructions()


class OtherLoad:
    """How many cores others kept busy since this was made, in cores; 0.0 is an idle machine.

    Time stolen by other virtual machines counts as other load.
    """

    def __init__(self) -> None:
        self.wall, self.process, self.all = time.monotonic(), time.process_time(), _busy_seconds()

    def so_far(self) -> float:
        wall = max(time.monotonic() - self.wall, 1e-6)
        now = _busy_seconds()
        if now is None or self.all is None:  # not Linux: the load average less ourselves
            if not hasattr(os, "getloadavg"):
                return 0.0
            return max(0.0, os.getloadavg()[0] - (time.process_time() - self.process) / wall)
        return max(0.0, (now - self.all - (time.process_time() - self.process)) / wall)


def waited_s() -> float:
    """Seconds the calling thread has waited for a core since it started; 0 where unknown."""
    try:
        with open("/proc/thread-self/schedstat", "rb", buffering=0) as file:
            return int(file.read(64).split()[1]) * 1e-9
    except (OSError, IndexError, ValueError):
        return 0.0


def crowd() -> float:
    """How many times as long as alone the calling thread took so far, since others had its core."""
    ran = time.thread_time()
    return (ran + waited_s()) / ran


@contextlib.contextmanager
def pinned(wanted: bool) -> Iterator[int | None]:
    """The calling thread on the idlest core, as long as it lasts; None where it is not."""
    if not wanted or not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    core = _idlest(before)
    try:
        os.sched_setaffinity(0, {core})  # this thread; others keep theirs
    except OSError:
        yield None
        return
    try:
        yield core
    finally:
        os.sched_setaffinity(0, before)


def _idlest(allowed: set[int]) -> int:
    """The core that was busy least during a tenth of a second."""
    before = _ticks()
    time.sleep(0.1)
    after = _ticks()
    return min(allowed, key=lambda c: (after.get(c, 0) - before.get(c, 0), -c))


def _ticks() -> dict[int, int]:
    """Core -> busy ticks since the machine started; -1 is all cores together."""
    ticks: dict[int, int] = {}
    with contextlib.suppress(OSError, ValueError), open(_STAT, encoding="ascii") as file:
        for line in file:
            name, *numbers = line.split()
            if not name.startswith("cpu"):
                break
            core = int(name[3:] or -1)
            ticks[core] = sum(int(numbers[i]) for i in _BUSY if i < len(numbers))
    return ticks


def _busy_seconds() -> float | None:
    ticks = _ticks().get(-1)
    return None if ticks is None else ticks / os.sysconf("SC_CLK_TCK")


# --- clocks ---


@dataclass(frozen=True, kw_only=True)
class Clocks:
    """What the system says of its processor; None or empty where it does not.

    mhz: the mean over the cores. throttled: events since the machine started.
    """

    mhz: float | None = None
    governor: str = ""
    throttled: int | None = None


def read_clocks(system: Path = SYSTEM) -> Clocks:
    """Frequencies, governor and throttling events, from Linux' files."""
    mhz = [khz / 1e3 for khz in _numbers(system, "cpu[0-9]*/cpufreq/scaling_cur_freq")]
    if not mhz and system == SYSTEM:
        mhz = _cpuinfo_mhz()
    throttled = _numbers(system, "cpu[0-9]*/thermal_throttle/core_throttle_count")
    return Clocks(
        mhz=statistics.mean(mhz) if mhz else None,
        governor=", ".join(sorted(set(_texts(system, "cpu[0-9]*/cpufreq/scaling_governor")))),
        throttled=round(sum(throttled)) if throttled else None,
    )


def _texts(system: Path, pattern: str) -> list[str]:
    texts = []
    for path in system.glob(pattern):
        with contextlib.suppress(OSError):
            texts.append(path.read_text().strip())
    return texts


def _numbers(system: Path, pattern: str) -> list[float]:
    return [float(text) for text in _texts(system, pattern) if text.isdigit()]


def _cpuinfo_mhz() -> list[float]:
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return []
