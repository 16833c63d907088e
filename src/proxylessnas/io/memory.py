"""How much memory this process takes, and how much more the machine or its control group has.

Linux tells; elsewhere what is free counts as without end, and peaks are not known.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path("/")
# Of version 2 of control groups and of version 1: limits, what is in use, and what the kernel would
# give back of it: pages of files.
_VERSIONS = (
    ("", ("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file")),
    (
        "memory",
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)


def free_bytes(root: Path = ROOT) -> float:
    """Bytes that this process may still take before the kernel kills: of the machine, and of every
    control group that it is in; infinite where nothing tells.

    root: where the kernel's files are.
    """
    free = [math.inf]
    with contextlib.suppress(OSError, IndexError):
        text = (root / "proc/meminfo").read_text()
        free += [1024 * int(found) for found in re.findall(r"^MemAvailable: *(\d+)", text, re.M)]
    for folder, limits, usage, reclaimed in _VERSIONS:
        for group in _groups(root, folder):
            with contextlib.suppress(OSError, ValueError):
                left = _least(group, limits) - int((group / usage).read_text())
                free.append(left + _reclaimable(group, reclaimed))
    return max(0.0, min(free))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The process's own control group and all above it, as far as they are seen from here."""
    mount, path = root / "sys/fs/cgroup" / controller, "/"
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if controller in controllers.split(","):
                path = own
    group = Path(path.strip("/"))  # in a container the path may be the host's: then the mount alone
    for inner in (group, *group.parents):
        if ".." not in inner.parts:
            yield mount / inner


def _least(group: Path, names: tuple[str, ...]) -> float:
    limits = [math.inf]
    for name in names:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            limits.append(int((group / name).read_text()))
    return min(limits)


def _reclaimable(group: Path, names: tuple[str, ...]) -> int:
    with contextlib.suppress(OSError, ValueError):
        lines = (group / "memory.stat").read_text().splitlines()
        return sum(int(v) for name, v in (line.split() for line in lines) if name in names)
    return 0


def give_back() -> None:
    """Let malloc return what it keeps of freed memory (`process.keep_freed_memory`), once."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int | None:
    """What this process has in memory now, after `give_back`; None where nothing tells."""
    give_back()
    return _status("VmRSS")


def peak_bytes(step: Callable[[], object]) -> int | None:
    """The most that this process has in memory while the step runs; None where nothing tells."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    except OSError:
        return None
    step()
    return _status("VmHWM")


def _status(name: str) -> int | None:
    with contextlib.suppress(OSError):
        found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
        return None if found is None else 1024 * int(found[1])
    return None
