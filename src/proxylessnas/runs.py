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
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import yaml
from torch import Tensor, nn

from .config import RunConfig, parse_settings
from .errors import ConfigError, RunError

MAX_CONFIG_BYTES = 1 << 20
KEEP = 2


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
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; nothing that was there is damaged, "
            "make room and go on with --resume"
        ) from None


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RunDirectory:
    """One run's directory, held by one process at a time.

    writes: False for the ranks beside the main one, for which all that writes does nothing.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self._lock: IO[str] | None = None

    def file(self, name: str) -> Path:
        return self.path / name

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
        try:
            return json.loads(self.file(name).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"cannot read {self.file(name)}: {error}") from None

    def digest(self, name: str) -> str | None:
        """A file's SHA-256, None where it is missing."""
        try:
            return hashlib.sha256(self.file(name).read_bytes()).hexdigest()
        except OSError:
            return None

    # --- metrics ---

    def log(self, **fields: Any) -> None:
        """One line of metrics.jsonl."""
        if not self.writes:
            return
        try:
            with self.file("metrics.jsonl").open("a") as file:
                file.write(json.dumps(fields) + "\n")
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
            data = path.read_bytes()
            expected = self.file(name + ".sha256").read_text().strip()
            if hashlib.sha256(data).hexdigest() != expected:
                raise RunError(f"{path} is damaged: its checksum does not agree")
            tensors = safetensors.torch.load(data)
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size])
            return tensors, json.loads(header["__metadata__"]["values"])
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror or error}") from None
        except (ValueError, KeyError, safetensors.SafetensorError) as error:
            raise RunError(f"{path} is not a checkpoint: {error}") from None

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
        self, stage: str, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> str:
        """Write one checkpoint, keep the one before, and return its name."""
        saved = {"metrics_size": self.metrics_size(), **values}
        current = f"checkpoints/{stage}-{step:08d}.safetensors"
        if not self.writes:
            return current
        self.save_tensors(current, tensors, saved)
        for name in list(reversed(self._checkpoints(stage)))[KEEP:]:
            self.file(name).unlink(missing_ok=True)
            self.file(name + ".sha256").unlink(missing_ok=True)
        return current

    def load_checkpoint(self, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole; a damaged one is passed over with a warning."""
        for name in reversed(self._checkpoints(stage)):
            try:
                return self.load_tensors(name)
            except RunError as error:
                warnings.warn(f"{error}; the one before is used", stacklevel=2)
        return None

    def _checkpoints(self, stage: str) -> list[str]:
        found = self.file("checkpoints").glob(f"{stage}-*.safetensors")
        names = [p.name for p in found if re.fullmatch(stage + r"-\d+\.safetensors", p.name)]
        return [f"checkpoints/{name}" for name in sorted(names)]


@contextlib.contextmanager
def held(directory: RunDirectory) -> Iterator[RunDirectory]:
    directory.lock()
    try:
        yield directory
    finally:
        directory.unlock()


def read_config(path: Path) -> RunConfig:
    """A complete or partial config file.

    Raises:
        ConfigError: unreadable, not YAML, or a setting is unknown or out of range.
    """
    return parse_settings(RunConfig, read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_CONFIG_BYTES >> 20} MiB")
    try:
        if b"&" in raw and b"*" in raw:  # aliases could expand without bound
            for event in yaml.parse(raw, Loader=yaml.SafeLoader):
                if isinstance(event, yaml.AliasEvent):
                    raise ConfigError(f"{path} uses YAML aliases, which are not read")
        data = yaml.safe_load(raw)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise ConfigError(f"{path} is not YAML: {reason[:200]}") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"{path} is not a mapping of settings")
    return data
