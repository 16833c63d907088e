"""The run directory: what a run leaves behind, and how it goes on after being killed.

    config.yaml          every setting; `--config` on it repeats the run
    data.json            what tells whether the data have changed
    latency_table.json   what the device said
    metrics.jsonl        one line an event
    stages/              a record of every finished stage, with its files' checksums
    checkpoints/         the last two of every stage that trains; weights as safetensors
    architecture.json    the derived network
    inherited.safetensors  its weights as the search left them
    weights.safetensors  its trained weights
    model.onnx           the exported network
    summary.json         all figures

Files are written whole or not at all: to a temporary file, synced, then renamed. A
checkpoint counts only if its checksum does.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

from proxylessnas.config import RunConfig, read_config
from proxylessnas.errors import RunError
from proxylessnas.io.files import TEMPORARY, read_bytes, write_atomic
from proxylessnas.session.store import BROUGHT_TABLE, CONFIG, MemoryStore, Store


class RunDirectory(Store):
    """One run's directory, held by one process at a time.

    writes: False for the ranks beside the main one, for which all that writes does nothing.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self._path, self.writes = Path(path), writes
        self._lock: IO[str] | None = None

    @property
    def path(self) -> Path:
        return self._path

    def file(self, name: str) -> Path:
        return self._path / name

    def inside(self, name: str) -> bool:
        """Whether a name that a file gives is of a regular file in this directory."""
        path = self.file(name)
        try:
            within = path.resolve().is_relative_to(self._path.resolve())
            return within and not Path(name).is_absolute() and path.is_file()
        except (OSError, ValueError, RuntimeError):  # too long, a zero byte, a loop of links
            return False

    # --- bytes ---

    def write(self, name: str, data: bytes) -> None:
        if self.writes:
            write_atomic(self.file(name), data)

    def read(self, name: str, limit: int) -> bytes:
        return read_bytes(self.file(name), limit, RunError)

    def append(self, name: str, data: bytes) -> None:
        if not self.writes:
            return
        try:
            with self.file(name).open("ab") as file:
                file.write(data)
        except OSError as error:
            raise RunError(f"cannot write {self.file(name)}: {error.strerror or error}") from None

    def truncate(self, name: str, size: int) -> None:
        if self.writes:
            os.truncate(self.file(name), size)

    def remove(self, name: str) -> None:
        if self.writes:
            self.file(name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        files = (p for p in self._path.rglob("*") if p.is_file() and not p.name.startswith("."))
        return sorted(str(p.relative_to(self._path)) for p in files)

    def has(self, name: str) -> bool:
        return os.path.isfile(self.file(name))  # False, too, of a path that cannot be

    def digest(self, name: str) -> str | None:
        """A file's SHA-256; None where it is missing or lies elsewhere."""
        if not self.inside(name):
            return None
        try:
            with self.file(name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None

    def size(self, name: str) -> int:
        path = self.file(name)
        return path.stat().st_size if path.exists() else 0

    def below(self, folder: str) -> RunDirectory:
        return RunDirectory(self.file(folder), writes=self.writes)

    def clear(self) -> None:
        if self.writes:
            shutil.rmtree(self._path, ignore_errors=True)

    # --- settings ---

    def read_config(self) -> RunConfig:
        return read_config(self.file(CONFIG), complete=True)

    # --- who holds it ---

    def lock(self) -> None:
        """Refuse a second process; the lock dies with its holder.

        Raises:
            RunError: another process runs here, or the directory cannot be made.
        """
        if not self.writes or self._lock is not None:
            return
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._lock = self.file(".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.unlock()
            raise RunError(
                f"another process works in {self._path}; wait for it, or choose another directory"
            ) from None
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            reason = getattr(error, "strerror", None) or error
            raise RunError(f"cannot use {self._path}: {reason}; choose another directory") from None
        for folder in (self._path, self.file("stages"), self.file("checkpoints")):
            for left in folder.glob(TEMPORARY):  # by a process that was killed while writing
                left.unlink(missing_ok=True)

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @contextlib.contextmanager
    def held(self) -> Iterator[Self]:
        self.lock()
        try:
            yield self
        finally:
            self.unlock()

    def check_free(self, mark: str = CONFIG) -> None:
        """Refuse a directory of somebody else's files, among which a run's would be lost.

        mark: the file that tells a directory to go on with.

        Raises:
            RunError: it is not empty, and holds no run.
        """
        if self.has(mark) or not os.path.isdir(self._path):
            return
        others = sorted({name.split("/")[0] for name in self.names()} - {BROUGHT_TABLE})
        if others:
            raise RunError(
                f"{self._path} is not empty and holds no run ({', '.join(others[:3])}"
                f"{', ...' if len(others) > 3 else ''}): choose a new directory"
            )

    def remove_if_unused(self) -> None:
        """Take the directory away if nothing but the lock was ever put in."""
        if (
            self.writes
            and os.path.isdir(self._path)
            and {p.name for p in self._path.iterdir()} <= {".lock"}
        ):
            self.file(".lock").unlink(missing_ok=True)
            self._path.rmdir()


@contextlib.contextmanager
def begun(directory: RunDirectory | None) -> Iterator[Store]:
    """`Store.held`, and a directory made for nothing goes again; without one, a store in memory."""
    if directory is None:
        yield MemoryStore()
        return
    existed = os.path.exists(directory.path)
    try:
        with directory.held():
            yield directory
    finally:
        if not existed:
            directory.remove_if_unused()
