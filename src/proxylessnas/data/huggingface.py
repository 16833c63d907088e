"""Hugging Face: local folders of parquet and data sets of the hub, read by `datasets`."""

from __future__ import annotations

import getpass
import io
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from proxylessnas.data.source import SPLIT_ROLES, Indices, Source, SplitPart, assemble
from proxylessnas.errors import DataError, one_line
from proxylessnas.io.importing import optional

MAX_FOLDERS = 20_000  # that are looked into for parquet
_IMAGE_COLUMNS = ("img", "image", "images", "picture", "pixel_values")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "category")


@dataclass(frozen=True)
class _ImageColumn:
    """The image column of a `datasets.Dataset`: undecoded bytes, or paths beside the data."""

    name: str
    dataset: Any
    column: str

    def open(self, index: int) -> Image.Image:
        cell = self.dataset.data.column(self.column)[index].as_py()
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if cell is None:
            raise ValueError("the image is missing")
        return Image.open(io.BytesIO(cell) if isinstance(cell, bytes) else cell)

    def describe(self, index: int) -> str:
        return f"{self.name} row {index}"


def holds_parquet(root: Path) -> bool:
    """Whether a parquet file lies in the folder or up to two folders below."""
    level = [str(root)]
    for _ in range(3):
        below: list[str] = []
        for folder in level[:MAX_FOLDERS]:
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.endswith(".parquet"):
                            return True
                        if not entry.name.startswith(".") and entry.is_dir():
                            below.append(entry.path)
            except OSError:  # a folder that cannot be read holds nothing
                continue
        level = below
    return False


def parquet_source(root: Path) -> Source:
    """A local folder of parquet files."""
    return _from_splits(str(root), _load_splits(str(root), None, f"the parquet in {root}"))


def hub_source(spec: str) -> Source:
    """A data set of the hub, owner/name[:config]."""
    name, _, config = spec.partition(":")
    _check_reachable(spec)
    return _from_splits(spec, _load_splits(name, config or None, f"{spec} on the hub"))


def _check_reachable(spec: str) -> None:
    """Fail at once where there is no network; `datasets` would retry for half a minute."""
    proxied = any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"))
    offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
    if proxied or offline:
        return
    hub = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        port = hub.port or (80 if hub.scheme == "http" else 443)
        socket.create_connection((hub.hostname, port), timeout=10).close()
    except OSError as error:
        raise DataError(
            f"there is no folder {spec}, and the Hugging Face hub ({hub.hostname}) cannot be "
            f"reached: {error.strerror or error}; give a local folder, or set HF_HUB_OFFLINE=1 "
            "to use a copy downloaded before"
        ) from error


def _load_splits(path: str, config: str | None, purpose: str) -> dict[str, Any]:
    """The splits by name, memory-mapped from the cache of `datasets`, without progress bars."""
    datasets = optional("datasets", "huggingface", purpose)
    cache = Path(os.path.expanduser(datasets.config.HF_DATASETS_CACHE))
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        cache = Path(tempfile.gettempdir()) / f"proxylessnas-datasets-{getpass.getuser()}"
    errors = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    with _without_progress_bars(datasets):
        try:
            return dict(datasets.load_dataset(path, config, cache_dir=str(cache)))
        except errors as error:
            raise DataError(f"{purpose} cannot be loaded: {one_line(error, 300)}") from error


@contextmanager
def _without_progress_bars(datasets: Any) -> Iterator[None]:
    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


def _from_splits(name: str, splits: Mapping[str, Any]) -> Source:
    """`datasets` splits to a source: the columns by type, labels to class numbers."""
    roles = _split_roles(name, splits)
    used = {role: splits[split] for role, split in roles.items()}
    features = used["train"].features
    image, label = _image_and_label_columns(name, features)
    values = {
        role: _label_values(split, label) if label in split.features else [None] * len(split)
        for role, split in used.items()
    }
    classes, labels = _class_numbers(name, features[label], values)
    parts = {}
    for role, split in used.items():
        if image not in split.features:
            raise DataError(f"{name}: split {roles[role]} has no column {image!r}")
        reader = _ImageColumn(f"{name} {roles[role]}", split, image)
        parts[role] = SplitPart(labels[role], reader)
    unused = {f"row of split {s}": len(splits[s]) for s in splits if s not in roles.values()}
    return assemble(name, classes, parts, unused)


def _split_roles(name: str, splits: Mapping[str, Any]) -> dict[str, str]:
    """Part -> the split's name; a single split is the training part, whatever its name."""
    roles = {SPLIT_ROLES[split]: split for split in splits if split in SPLIT_ROLES}
    if "train" not in roles and len(splits) == 1:
        return {"train": next(iter(splits))}
    if "train" not in roles:
        raise DataError(
            f"{name} has no split called train; its splits: {', '.join(sorted(splits))}"
        )
    return roles


def _image_and_label_columns(name: str, features: Mapping[str, Any]) -> tuple[str, str]:
    """The image and the label column, by type first and by name else."""

    def pick(meaning: str, kind: str, usual: tuple[str, ...], expected: str) -> str:
        typed = [column for column in features if type(features[column]).__name__ == kind]
        named = [column for column in usual if column in features]
        both = [column for column in named if column in typed]
        for column in both or typed or named:
            return column
        raise DataError(
            f"{name} has no {meaning} column (expected: {expected}); its columns: "
            f"{', '.join(features)}"
        )

    image = pick("image", "Image", _IMAGE_COLUMNS, "img or image")
    return image, pick("label", "ClassLabel", _LABEL_COLUMNS, "label")


def _label_values(split: Any, column: str) -> list[int | str | None]:
    values: list[Any] = split.data.column(column).to_pylist()
    for value in values:
        if not isinstance(value, int | str | None):
            raise DataError(f"a label is one number or name an image, not {value!r:.80}")
    return values


def _class_numbers(
    name: str, feature: Any, values: Mapping[str, list[Any]]
) -> tuple[list[str], dict[str, Indices]]:
    """Class names of the schema, or else the distinct training labels; labels as numbers."""
    names = getattr(feature, "names", None)
    classes = range(len(names)) if names else sorted(set(values["train"]) - {None, -1})
    numbers = {label: number for number, label in enumerate(classes)} | {None: -1, -1: -1}
    for role, labels in values.items():
        unknown = set(labels) - set(numbers)
        if unknown:
            raise DataError(f"{name}: {role} has the label {unknown.pop()!r}, train has not")
    return names or [str(label) for label in classes], {
        role: np.array([numbers[label] for label in labels], dtype=np.int64)
        for role, labels in values.items()
    }
