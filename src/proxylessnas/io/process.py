"""What this process may use: CPUs, and memory that malloc keeps.

Only the standard library: the kits of `hardware/kit.py` carry this file along.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import time
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def usable_cpus(cgroups: Path = _CGROUPS) -> int:
    """CPUs that this process may use at the same time.

    The affinity mask says on which CPUs it may run; a container's quota, which the mask does not
    show, for how many CPUs' time in all.

    cgroups: where the kernel shows the process's own control group.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return max(1, min(allowed, math.ceil(_cpu_quota(cgroups))))


def _cpu_quota(cgroups: Path) -> float:
    """CPUs' time that the control group may use, of version 2 or else 1; infinite without quota."""
    with contextlib.suppress(OSError, ValueError):  # "max" is no number: no quota
        quota, period = (cgroups / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota = (cgroups / "cpu/cpu.cfs_quota_us").read_text()
        period = (cgroups / "cpu/cpu.cfs_period_us").read_text()
        if int(quota) > 0:
            return int(quota) / int(period)
    return float(os.cpu_count() or 1)


def began(stat: Path = Path("/proc/self/stat")) -> float:
    """When this process was created, in seconds of `time.monotonic`.

    Python's own start counts for whoever waits at the shell: under load it takes seconds. Where
    the system does not tell, the CPU time that the process has had is the least that passed.

    stat: where Linux tells it, in ticks since the machine was switched on.
    """
    passed = time.process_time()
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        ticks = int(stat.read_text().rpartition(")")[2].split()[19])
        since = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        passed = max(passed, since)
    return time.monotonic() - passed


def keep_freed_memory() -> None:
    """Let malloc keep freed memory: activations come and go at every step and inference.

    By default glibc maps each large tensor afresh and gives it back. The page faults of that cost
    10 to 17 % of a training step on a CPU, and are 2 to 8 % of noise in a measured latency.
    Elsewhere than on glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        if not libc.mallopt(_MMAP_THRESHOLD, 1 << 30):  # glibc before 2.35 takes 32 MiB at most
            libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
