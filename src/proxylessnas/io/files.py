"""Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from proxylessnas.errors import RunError

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


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
