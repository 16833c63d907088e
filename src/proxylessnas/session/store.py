"""Where a session's results go: named files, in memory here, in a directory in `runs/`.

Whatever the place: JSON is checked, tensors carry a checksum, and nothing that unpickles code
is ever read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
from torch import Tensor, nn

from proxylessnas.config import RunConfig
from proxylessnas.errors import RunError, one_line
from proxylessnas.io.json_files import decode_json
from proxylessnas.io.yaml_files import encode_yaml
from proxylessnas.training.faults import State

MODEL = "model.json"  # of a model of the user's own: which one it is
MAX_JSON_BYTES = 64 << 20
MAX_TENSOR_BYTES = 16 << 30
KEPT_CHECKPOINTS = 2
BROUGHT_TABLE = "brought_table.json"  # a table that was given as an object
STEADY = "-steady"  # of a stage that is done once more with gradients cut: its checkpoints' name
CONFIG, METRICS = "config.yaml", "metrics.jsonl"
# What reading a stranger's values may raise, beside our own errors.
MALFORMED = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError),
)


class Store(ABC):
    """Named files; names use `/`. A subclass says where the bytes are.

    keeps_checkpoints: whether those of stages that are done stay.
    """

    keeps_checkpoints = False

    # --- bytes ---

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """A file, whole or not at all."""

    @abstractmethod
    def read(self, name: str, limit: int) -> bytes:
        """A file of at most so many bytes; raises RunError."""

    @abstractmethod
    def append(self, name: str, data: bytes) -> None: ...

    @abstractmethod
    def truncate(self, name: str, size: int) -> None: ...

    @abstractmethod
    def remove(self, name: str) -> None: ...

    @abstractmethod
    def names(self) -> list[str]:
        """All files, sorted."""

    @abstractmethod
    def digest(self, name: str) -> str | None:
        """A file's SHA-256; None where it is missing."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes; 0 where it is missing."""

    @abstractmethod
    def below(self, folder: str) -> Store:
        """A store of its own, whose files are in a folder of this one."""

    @abstractmethod
    def clear(self) -> None:
        """Remove every file."""

    def has(self, name: str) -> bool:
        return name in self.names()

    def file(self, name: str) -> Path:
        """How messages call a file."""
        return Path(name)

    @property
    def path(self) -> Path | None:
        """The directory; None in memory, where nothing outlives the process."""
        return None

    def check_free(self) -> None:  # noqa: B027 (a store in memory is free)
        """RunError where files of somebody else lie, among which a new run's would be lost."""

    @contextmanager
    def held(self) -> Iterator[Self]:
        """Within the block no other process works in the directory; a store in memory has none."""
        yield self

    # --- plain values ---

    def write_json(self, name: str, value: Any) -> None:
        """Plain values; a number that is not finite is null, as JSON has it."""
        self.write(name, (json.dumps(_finite(value), indent=2) + "\n").encode())

    def read_json(self, name: str) -> Any:
        text = self.read(name, MAX_JSON_BYTES)
        try:
            return decode_json(text, RunError)
        except RunError as error:
            raise RunError(f"cannot read {self.file(name)}: {error}") from None

    def read_config(self) -> RunConfig:
        """The settings of the run that a directory holds."""
        raise RunError("there is no run in memory to go on with")

    def write_config(self, config: RunConfig, note: str = "") -> None:
        """Every setting of the run.

        note: comment lines for people.
        """
        values = dataclasses.asdict(config)
        header = "# Every setting of this run; proxylessnas run --config on this file repeats it.\n"
        self.write(CONFIG, (header + note + encode_yaml(values)).encode())

    # --- metrics ---

    def log(self, **fields: Any) -> None:
        """One line of metrics.jsonl."""
        self.append(METRICS, (json.dumps(_finite(fields)) + "\n").encode())

    def cut_metrics(self, size: int) -> None:
        """Forget the lines after a checkpoint: they will be written again."""
        if self.size(METRICS) > size:
            self.truncate(METRICS, size)

    def cut_metrics_of(self, stage: str) -> None:
        """Forget a stage's lines, and what came after them: it starts from the beginning."""
        if not self.size(METRICS):
            return
        size, mark = 0, json.dumps({"stage": stage})[1:-1].encode()
        for line in self.read(METRICS, 1 << 30).splitlines(keepends=True):
            if mark in line or not line.endswith(b"\n"):
                break
            size += len(line)
        self.cut_metrics(size)

    # --- tensors ---

    def save_tensors(
        self, name: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any] | None = None
    ) -> None:
        metadata = {"values": json.dumps(dict(values or {}))}
        plain, storages = dict[str, Tensor](), set[int]()
        for key, tensor in tensors.items():
            tensor = tensor.detach().cpu().contiguous()
            place = tensor.untyped_storage().data_ptr()
            # Tied weights: the format takes no two tensors of one memory.
            plain[key] = tensor.clone() if place in storages else tensor
            storages.add(place)
        data = safetensors.torch.save(plain, metadata)
        self.write(name, data)
        self.write(name + ".sha256", hashlib.sha256(data).hexdigest().encode())

    def load_tensors(self, name: str) -> State:
        """Tensors and values of one file.

        Raises:
            RunError: it is missing, or its checksum does not agree.
        """
        expected = self.read(name + ".sha256", 1024).decode("ascii", "replace").strip()
        data = self.read(name, MAX_TENSOR_BYTES)
        path = self.file(name)
        if hashlib.sha256(data).hexdigest() != expected:
            raise RunError(f"{path} is damaged: its checksum does not agree")
        try:
            tensors = safetensors.torch.load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            values = json.loads(header["__metadata__"]["values"])
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

    # --- checkpoints: tensor files of a stage's steps ---

    def save_checkpoint(
        self, stage: str, step: int, state: State, *, keep: Collection[int] = ()
    ) -> str:
        """Write one checkpoint, keep the one before and those of the steps `keep`.

        Returns its name.
        """
        tensors, values = state
        current = checkpoint_name(stage, step)
        self.save_tensors(current, tensors, {"metrics_size": self.size(METRICS), **values})
        kept = {checkpoint_name(stage, step) for step in keep}
        old = self.checkpoints(stage)[:-KEPT_CHECKPOINTS]
        self._remove_tensors(name for name in old if name not in kept)
        return current

    def load_checkpoint(self, stage: str) -> State | None:
        """The newest checkpoint that is whole; a damaged one is passed over with a warning."""
        names = self.checkpoints(stage)
        while names:
            try:
                return self.load_tensors(names.pop())
            except RunError as error:
                instead = "the one before is used" if names else "the stage begins again"
                warnings.warn(f"{error}; {instead}", stacklevel=2)
        return None

    def remove_checkpoints(self, stage: str, after: int = -1) -> None:
        """Forget the checkpoints of later steps than `after`; by default all of the stage."""
        if after < 0:
            self.drop_checkpoints(stage, but=())
            return
        last = checkpoint_name(stage, after)
        self._remove_tensors(name for name in self.checkpoints(stage) if name > last)

    def drop_checkpoints(self, stage: str, *, but: Collection[str]) -> None:
        """Forget a stage's checkpoints beside those that its record names."""
        names = [*self.checkpoints(stage), *self.checkpoints(stage + STEADY)]
        self._remove_tensors(name for name in names if name not in but)

    def checkpoints(self, stage: str) -> list[str]:
        """The names of a stage's checkpoints, the oldest first."""
        form = re.compile(rf"checkpoints/{re.escape(stage)}-\d+\.safetensors")
        return [name for name in self.names() if form.fullmatch(name)]

    def _remove_tensors(self, names: Iterable[str]) -> None:
        for name in list(names):
            self.remove(name)
            self.remove(name + ".sha256")


class MemoryStore(Store):
    """Files that live as long as the process."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.folders: dict[str, MemoryStore] = {}

    def write(self, name: str, data: bytes) -> None:
        self.files[name] = data

    def read(self, name: str, limit: int) -> bytes:
        if name not in self.files:
            raise RunError(f"there is no {name}: the stage that makes it was not run")
        return self.files[name]

    def append(self, name: str, data: bytes) -> None:
        self.files[name] = self.files.get(name, b"") + data

    def truncate(self, name: str, size: int) -> None:
        self.files[name] = self.files[name][:size]

    def remove(self, name: str) -> None:
        self.files.pop(name, None)

    def names(self) -> list[str]:
        return sorted(self.files)

    def digest(self, name: str) -> str | None:
        data = self.files.get(name)
        return None if data is None else hashlib.sha256(data).hexdigest()

    def size(self, name: str) -> int:
        return len(self.files.get(name, b""))

    def below(self, folder: str) -> MemoryStore:
        return self.folders.setdefault(folder, MemoryStore())

    def clear(self) -> None:
        self.files.clear()
        self.folders.clear()


def _finite(value: Any) -> Any:
    """Plain values with null in the place of numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def checkpoint_name(stage: str, step: int) -> str:
    return f"checkpoints/{stage}-{step:08d}.safetensors"
