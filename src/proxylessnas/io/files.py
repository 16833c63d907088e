"""Files are written whole or not at all, and read up to a limit."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from proxylessnas.errors import RunError, UserError

TEMPORARY = ".*.tmp"  # what a killed process may leave behind


def write_atomic(path: Path, data: bytes) -> None:
    """Whole or not at all, also when the machine loses power.

    Raises:
        RunError: the disk is full or the directory cannot be written; what was there stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; nothing that was there is damaged, "
            "make room and go on with --resume"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_bytes(path: str | Path, limit: int, error: type[UserError] = RunError) -> bytes:
    """All of a regular file of at most `limit` bytes; never a device or a pipe, which do not end.

    Raises:
        error: the file is missing, unreadable, too large or no regular file.
    """
    try:
        status = os.stat(path)  # before opening, which waits for a pipe's other end
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise error(f"cannot read {path}: it is no regular file of at most {limit:,} bytes")
        with Path(path).open("rb") as file:
            return file.read(status.st_size + 1)
    except (OSError, ValueError) as problem:  # ValueError: a zero byte in the path
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"cannot read {path}: {reason}") from None


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
