"""Hugging Face: local folders of parquet and data sets of the hub, read by `datasets`."""

from __future__ import annotations

import getpass
import io
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from proxylessnas.data.source import SPLIT_ROLES, Part, Source, assemble
from proxylessnas.errors import DataError, MissingDependency

_IMAGE_COLUMNS = ("img", "image", "images", "picture", "pixel_values")
MAX_FOLDERS = 20_000  # that are looked into for parquet
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "category")


@dataclass(frozen=True)
class _Rows:
    """The image column of a `datasets.Dataset`; undecoded bytes, or a path beside the data."""

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

    def where(self, index: int) -> str:
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
            except OSError:  # what cannot be read holds nothing
                continue
        level = below
    return False


def parquet_source(root: Path) -> Source:
    return _from_splits(str(root), _load_dataset(str(root), None, what=f"the parquet in {root}"))


def hub_source(spec: str) -> Source:
    name, _, config = spec.partition(":")
    proxied = any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"))
    offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in (
        "1",
        "ON",
        "YES",
        "TRUE",
    )
    if not proxied and not offline:
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        host, _, port = re.sub(r"^\w+://", "", endpoint).split("/")[0].partition(":")
        default = 80 if endpoint.startswith("http://") else 443
        try:  # fails at once; `datasets` would retry for half a minute
            socket.create_connection((host, int(port or default)), timeout=10).close()
        except OSError as error:
            raise DataError(
                f"there is no folder {spec}, and the Hugging Face hub ({host}) cannot be reached: "
                f"{error.strerror or error}; give a local folder, or set HF_HUB_OFFLINE=1 to use "
                "a copy downloaded before"
            ) from error
    return _from_splits(spec, _load_dataset(name, config or None, what=f"{spec} on the hub"))


def _load_dataset(path: str, config: str | None, *, what: str) -> dict[str, Any]:
    """The splits by name, memory-mapped from the cache of `datasets`, without progress bars."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency("datasets", "huggingface", what) from error
    cache = Path(os.path.expanduser(datasets.config.HF_DATASETS_CACHE))
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        cache = Path(tempfile.gettempdir()) / f"proxylessnas-datasets-{getpass.getuser()}"
    with _without_progress(datasets):
        try:
            return dict(datasets.load_dataset(path, config, cache_dir=str(cache)))
        except (
            OSError,
            ValueError,
            RuntimeError,
            datasets.exceptions.DatasetsError,
        ) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise DataError(f"{what} cannot be loaded: {first}") from error


@contextmanager
def _without_progress(datasets: Any) -> Iterator[None]:
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _from_splits(name: str, splits: dict[str, Any]) -> Source:
    """`datasets` splits to a source: train, validation and test by name, labels to numbers."""
    roles = {SPLIT_ROLES[split]: split for split in splits if split in SPLIT_ROLES}
    if "train" not in roles and len(splits) == 1:
        roles = {"train": next(iter(splits))}
    if "train" not in roles:
        raise DataError(f"{name} has no split called train; found: {', '.join(sorted(splits))}")
    first = splits[roles["train"]]
    image, label = _columns(name, first.features)
    feature = first.features[label]
    raw = {
        role: _as_numbers_or_names(splits[split].data.column(label).to_pylist())
        if label in splits[split].features
        else [None] * len(splits[split])
        for role, split in roles.items()
    }
    names = getattr(feature, "names", None)
    if names is None:  # no class names in the schema: the distinct values are the classes
        values = sorted({value for value in raw["train"] if value not in (None, -1)})
        names, number = (
            [str(value) for value in values],
            {v: i for i, v in enumerate(values)},
        )
        for role, labels in raw.items():
            unknown = set(labels) - {None, -1} - set(number)
            if unknown:
                raise DataError(f"{name}: {role} has the label {unknown.pop()!r}, train has not")
            raw[role] = [number.get(value, -1) for value in labels]
    parts = {}
    for role, split in roles.items():
        if image not in splits[split].features:
            raise DataError(f"{name}: split {split} has no column {image!r}")
        numbers = np.array([-1 if v is None else v for v in raw[role]], dtype=np.int64)
        parts[role] = Part(numbers, _Rows(f"{name} {split}", splits[split], image))
    return assemble(name, names, parts)


def _as_numbers_or_names(values: list[Any]) -> list[Any]:
    for value in values:
        if not isinstance(value, int | str | None):
            raise DataError(f"a label is one number or name an image, not {value!r:.80}")
    return values


def _columns(name: str, features: Any) -> tuple[str, str]:
    """The image and the label column, by type first and by name else."""

    def pick(kind: str, usual: tuple[str, ...]) -> str | None:
        typed = [column for column in features if type(features[column]).__name__ == kind]
        named = [column for column in usual if column in features]
        both = [column for column in named if column in typed]
        return next(iter(both or typed or named), None)

    image, label = pick("Image", _IMAGE_COLUMNS), pick("ClassLabel", _LABEL_COLUMNS)
    for what, found, usual in (
        ("image", image, "img or image"),
        ("label", label, "label"),
    ):
        if found is None:
            raise DataError(
                f"{name} has no {what} column (expected: {usual}); found: {', '.join(features)}"
            )
    assert image is not None and label is not None
    return image, label
