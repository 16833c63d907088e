"""The run directory: what a run leaves behind, and how it goes on after being killed.

    config.yaml          every setting; `--config` on it repeats the run
    latency_table.json   what the device said
    metrics.jsonl        one line an event
    checkpoints/         the last two of every stage that trains; weights as safetensors
    architecture.json    the derived network
    weights.safetensors  its trained weights
    model.onnx           the exported network
    summary.json         all figures

Files are written whole or not at all: to a temporary file, synced, then renamed. A
checkpoint counts only if its checksum does. Nothing that unpickles code is ever read.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import yaml
from torch import Tensor, nn

from proxylessnas.config import RunConfig, read_config
from proxylessnas.errors import RunError, one_line
from proxylessnas.io.files import TEMPORARY
from proxylessnas.io.files import write_atomic as write_atomic

MAX_JSON_BYTES = 64 << 20
MAX_TENSOR_BYTES = 16 << 30
KEEP = 2
# What reading a stranger's values may raise, beside our own errors.
MALFORMED = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError),
)


class RunDirectory:
    """One run's directory, held by one process at a time.

    writes: False for the ranks beside the main one, for which all that writes does nothing.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self._lock: IO[str] | None = None

    def file(self, name: str) -> Path:
        return self.path / name

    def inside(self, name: str) -> bool:
        """Whether a name that a file gives is of a regular file in this directory."""
        path = self.file(name)
        try:
            within = path.resolve().is_relative_to(self.path.resolve())
            return within and not Path(name).is_absolute() and path.is_file()
        except (OSError, ValueError, RuntimeError):  # too long, a zero byte, a loop of links
            return False

    def has(self, name: str) -> bool:
        return self.file(name).is_file()

    # --- who holds it ---

    def lock(self) -> None:
        """Refuse a second process; the lock dies with its holder.

        Raises:
            RunError: another process runs here, or the directory cannot be made.
        """
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self.file(".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another process works in {self.path}; wait for it, or choose another --out"
            ) from None
        except OSError as error:
            raise RunError(f"cannot use {self.path}: {error.strerror or error}") from None
        for folder in (self.path, self.file("stages"), self.file("checkpoints")):
            for left in folder.glob(TEMPORARY):  # by a process that was killed while writing
                left.unlink(missing_ok=True)

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def remove_if_unused(self) -> None:
        """Take the directory away if nothing but the lock was ever put in."""
        if (
            self.writes
            and self.path.is_dir()
            and {p.name for p in self.path.iterdir()} <= {".lock"}
        ):
            self.file(".lock").unlink(missing_ok=True)
            self.path.rmdir()

    # --- settings ---

    def write_config(self, config: Mapping[str, Any], note: str = "") -> None:
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        header = "# Every setting of this run; proxylessnas run --config on this file repeats it.\n"
        self.write("config.yaml", (header + note + text).encode())

    def read_config(self) -> RunConfig:
        return read_config(self.file("config.yaml"))

    # --- plain values ---

    def write(self, name: str, data: bytes) -> None:
        """A file, whole or not at all."""
        if self.writes:
            write_atomic(self.file(name), data)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, (json.dumps(value, indent=2) + "\n").encode())

    def read_json(self, name: str) -> Any:
        path = self.file(name)
        try:
            return json.loads(_read(path, MAX_JSON_BYTES))
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise RunError(f"cannot read {path}: {one_line(error)}") from None

    def digest(self, name: str) -> str | None:
        """A file's SHA-256; None where it is missing or lies elsewhere."""
        if not self.inside(name):
            return None
        try:
            with self.file(name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None

    # --- metrics ---

    def log(self, **fields: Any) -> None:
        """One line of metrics.jsonl; a number that is not finite is null, as JSON has it."""
        if not self.writes:
            return
        finite = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in fields.items()
        }
        try:
            with self.file("metrics.jsonl").open("a") as file:
                file.write(json.dumps(finite) + "\n")
        except OSError as error:
            raise RunError(
                f"cannot write {self.file('metrics.jsonl')}: {error.strerror or error}"
            ) from None

    def metrics_size(self) -> int:
        path = self.file("metrics.jsonl")
        return path.stat().st_size if path.exists() else 0

    def cut_metrics(self, size: int) -> None:
        """Forget the lines after a checkpoint: they will be written again."""
        if self.writes and self.metrics_size() > size:
            os.truncate(self.file("metrics.jsonl"), size)

    def cut_metrics_of(self, stage: str) -> None:
        """Forget a stage's lines, and what came after them: it starts from the beginning."""
        size = 0
        if self.has("metrics.jsonl"):
            for line in self.file("metrics.jsonl").read_bytes().splitlines(keepends=True):
                if json.dumps({"stage": stage})[1:-1].encode() in line or not line.endswith(b"\n"):
                    break
                size += len(line)
            self.cut_metrics(size)

    # --- weights and checkpoints ---

    def save_tensors(
        self, name: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any] | None = None
    ) -> None:
        if not self.writes:
            return
        metadata = {"values": json.dumps(dict(values or {}))}
        plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        data = safetensors.torch.save(plain, metadata)
        self.write(name, data)
        self.write(name + ".sha256", hashlib.sha256(data).hexdigest().encode())

    def load_tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and values of one file.

        Raises:
            RunError: it is missing, or its checksum does not agree.
        """
        path = self.file(name)
        try:
            expected = _read(self.file(name + ".sha256"), 1024).decode("ascii").strip()
            data = _read(path, MAX_TENSOR_BYTES)
            if hashlib.sha256(data).hexdigest() != expected:
                raise RunError(f"{path} is damaged: its checksum does not agree")
            tensors = safetensors.torch.load(data)
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size])
            values = json.loads(header["__metadata__"]["values"])
        except OSError as error:
            missing = error.filename or path
            raise RunError(f"cannot read {missing}: {error.strerror or error}") from None
        except (*MALFORMED, safetensors.SafetensorError) as error:
            raise RunError(f"{path} is not a checkpoint: {one_line(error)}") from None
        if not isinstance(values, dict):
            raise RunError(f"{path} is not a checkpoint: its values are no object")
        return tensors, values

    def load_weights(self, name: str, network: nn.Module) -> None:
        """Put a file's weights into a network.

        Raises:
            RunError: the file is missing or damaged, or belongs to another network.
        """
        tensors, _ = self.load_tensors(name)
        try:
            network.load_state_dict(tensors)
        except RuntimeError:
            raise RunError(
                f"{self.file(name)} and the architecture beside it are not of one network: one of "
                "the two was exchanged; derive and train again in a new directory"
            ) from None

    def save_checkpoint(
        self,
        stage: str,
        step: int,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, Any],
        *,
        keep: Collection[int] = (),
    ) -> str:
        """Write one checkpoint, keep the one before and those of the steps `keep`.

        Returns its name.
        """
        saved = {"metrics_size": self.metrics_size(), **values}
        current = checkpoint_name(stage, step)
        if not self.writes:
            return current
        self.save_tensors(current, tensors, saved)
        kept = {checkpoint_name(stage, step) for step in keep}
        self._remove(n for n in self._checkpoints(stage)[:-KEEP] if n not in kept)
        return current

    def load_checkpoint(self, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole; a damaged one is passed over with a warning."""
        names = self._checkpoints(stage)
        while names:
            try:
                return self.load_tensors(names.pop())
            except RunError as error:
                instead = "the one before is used" if names else "the stage begins again"
                warnings.warn(f"{error}; {instead}", stacklevel=2)
        return None

    def has_checkpoints(self, stage: str) -> bool:
        return bool(self._checkpoints(stage))

    def remove_checkpoints(self, stage: str, after: int = -1) -> None:
        """Forget the checkpoints of later steps than `after`."""
        last = checkpoint_name(stage, after) if after >= 0 else ""
        self._remove(n for n in self._checkpoints(stage) if n > last)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names if self.writes else ():
            self.file(name).unlink(missing_ok=True)
            self.file(name + ".sha256").unlink(missing_ok=True)

    def _checkpoints(self, stage: str) -> list[str]:
        found = self.file("checkpoints").glob(f"{stage}-*.safetensors")
        names = [p.name for p in found if re.fullmatch(stage + r"-\d+\.safetensors", p.name)]
        return [f"checkpoints/{name}" for name in sorted(names)]


def checkpoint_name(stage: str, step: int) -> str:
    return f"checkpoints/{stage}-{step:08d}.safetensors"


def _read(path: Path, limit: int) -> bytes:
    """A regular file of at most `limit` bytes; never a device or a pipe, which do not end."""
    size = path.stat().st_size
    if not path.is_file() or size > limit:
        raise ValueError(f"it is no regular file of at most {limit} bytes")
    return path.read_bytes()


@contextlib.contextmanager
def held(directory: RunDirectory) -> Iterator[RunDirectory]:
    directory.lock()
    try:
        yield directory
    finally:
        directory.unlock()
