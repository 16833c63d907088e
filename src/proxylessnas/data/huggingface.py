"""Hugging Face: local folders of parquet and data sets of the hub, read by `datasets`."""

from __future__ import annotations

import getpass
import io
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from proxylessnas.config import DataSettings
from proxylessnas.data.labels import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    choose_column,
    class_numbers,
    not_used,
    one_hot_columns,
)
from proxylessnas.data.parts import parts_among
from proxylessnas.data.pixels import are_bytes, image_of_pixels
from proxylessnas.data.source import Source, SplitPart, assemble, digest
from proxylessnas.data.watching import Progress, silent, watched
from proxylessnas.errors import DataError, foreign
from proxylessnas.io.importing import optional

_NUMBERS = (
    "bool",
    *(f"{k}int{n}" for k in ("", "u") for n in (8, 16, 32, 64)),
    "float32",
    "float64",
)
MAX_FOLDERS = 20_000  # that are looked into for parquet


@dataclass(frozen=True)
class _ImageColumn:
    """The image column of a `datasets.Dataset`: undecoded bytes, paths beside the data, pixels.

    scaled: pixels have the range of the set, see `image_of_pixels`.
    """

    name: str
    dataset: Any
    column: str
    folder: str
    scaled: bool = False

    def open(self, index: int) -> Image.Image:
        cell = self.dataset.data.column(self.column)[index].as_py()
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes):
            return Image.open(io.BytesIO(cell))
        if isinstance(cell, str) and cell:
            return Image.open(os.path.join(self.folder, cell))
        if isinstance(cell, list):
            return image_of_pixels(np.asarray(cell), scaled=self.scaled)
        raise ValueError("the image is missing" if cell is None else f"no image but {cell!r:.60}")

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
                        if entry.name.endswith(".parquet") and entry.is_file():
                            return True
                        if not entry.name.startswith(".") and entry.is_dir():
                            below.append(entry.path)
            except OSError:  # a folder that cannot be read holds nothing
                continue
        level = below
    return False


def is_saved(root: Path) -> bool:
    """Whether a folder is what `save_to_disk` of `datasets` wrote."""
    return (root / "dataset_dict.json").is_file() or (
        (root / "state.json").is_file() and (root / "dataset_info.json").is_file()
    )


def parquet_source(
    path: Path, settings: DataSettings | None = None, progress: Progress = silent
) -> Source:
    """A local folder of parquet files, or one such file."""
    name = str(path)
    files = {"data_files": name} if path.is_file() else {}
    splits = _loaded(
        f"the parquet in {name}",
        lambda datasets, cache: datasets.load_dataset(
            "parquet" if files else name, cache_dir=cache, **files
        ),
        progress,
    )
    return _from_splits(name, splits, settings, _stamps(path, ".parquet"))


def saved_source(
    root: Path, settings: DataSettings | None = None, progress: Progress = silent
) -> Source:
    """A folder that `save_to_disk` of `datasets` wrote."""
    purpose = f"what save_to_disk wrote to {root}"
    splits = _loaded(purpose, lambda datasets, _: datasets.load_from_disk(str(root)), progress)
    return _from_splits(str(root), splits, settings, _stamps(root, ".arrow"))


def hub_source(
    spec: str, settings: DataSettings | None = None, progress: Progress = silent
) -> Source:
    """A data set of the hub, owner/name[:config]."""
    name, _, config = spec.partition(":")
    _check_reachable(spec)
    splits = _loaded(
        f"{spec} on the hub",
        lambda datasets, cache: datasets.load_dataset(name, config or None, cache_dir=cache),
        progress,
    )
    return _from_splits(spec, splits, settings, {})


def _stamps(path: Path, suffix: str) -> dict[str, tuple[int, int]]:
    """Name -> size and time of the files that hold the data."""
    files = [path] if path.is_file() else sorted(path.rglob(f"*{suffix}"))
    return {str(f.relative_to(path)): (f.stat().st_size, f.stat().st_mtime_ns) for f in files}


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


def _loaded(purpose: str, load: Callable[[Any, str], Any], progress: Progress) -> Mapping[str, Any]:
    """The splits by name, memory-mapped from the cache of `datasets`, without its own bars."""
    datasets = optional("datasets", "huggingface", purpose)
    cache = Path(os.path.expanduser(datasets.config.HF_DATASETS_CACHE))
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        cache = Path(tempfile.gettempdir()) / f"proxylessnas-datasets-{getpass.getuser()}"
    started = time.monotonic()
    with _quiet(datasets), foreign(DataError, f"{purpose} cannot be loaded"):
        try:
            loaded = watched(
                lambda: load(datasets, str(cache)),
                lambda: progress(round(time.monotonic() - started), 0, "seconds of loading tables"),
            )
        except datasets.exceptions.DatasetsError as error:
            raise (error.__cause__ or error) from None  # "an error occurred" is no reason
    return loaded if isinstance(loaded, dict) else {"train": loaded}


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the library's own bars and lines: what is wrong is said in one line of ours."""
    logging = datasets.utils.logging
    disabled, level = datasets.are_progress_bars_disabled(), logging.get_verbosity()
    datasets.disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not disabled:
            datasets.enable_progress_bars()


def _from_splits(
    name: str,
    splits: Mapping[str, Any],
    settings: DataSettings | None = None,
    stamps: Mapping[str, tuple[int, int]] | None = None,
) -> Source:
    """`datasets` splits to a source: the columns by type, labels to class numbers."""
    settings = settings or DataSettings()
    roles = _split_roles(name, splits)
    used = {role: splits[split] for role, split in roles.items()}
    features = used["train"].features
    image, images_said = _image_column(name, features, settings)
    hot = _one_hot(name, used, image, settings)
    if hot is None:
        label, labels_said = _label_column(name, features, settings)
        columns, names = [label], _names(features[label])
        values = {role: _label_values(split, label, names) for role, split in used.items()}
    else:
        columns, values = hot
        names, labels_said = columns, f"a column a class: {', '.join(columns)}"
    classes, labels = class_numbers(name, values, names)
    parts = {}
    for role, split in used.items():
        if image not in split.features:
            raise DataError(f"{name}: split {roles[role]} has no column {image!r}")
    scaled = any(_is_scaled(split, image) for split in used.values())
    for role, split in used.items():
        reader = _ImageColumn(f"{name} {roles[role]}", split, image, name, scaled)
        parts[role] = SplitPart(labels[role], reader)
    of_files = {role: digest(stamps) for role in used} if stamps else {}
    return assemble(
        name,
        classes,
        parts,
        {f"row of split {s}": len(splits[s]) for s in splits if s not in roles.values()},
        notes=[
            ", ".join(f"{role} from split {split}" for role, split in roles.items()),
            images_said,
            labels_said,
            *not_used(features, (image, *columns)),
        ],
        digests=of_files or {role: (split._fingerprint, "") for role, split in used.items()},
    )


def _is_scaled(split: Any, column: str) -> bool:
    """Whether a column of lists of numbers holds others than bytes."""
    for chunk in split.data.column(column).chunks:
        chunk = getattr(chunk, "storage", chunk)  # of Array2D and Array3D
        while "list" in str(chunk.type).partition("<")[0]:
            chunk = chunk.flatten()
        if not re.fullmatch(r"u?int\d+|float|double|halffloat", str(chunk.type)):
            return False
        if not are_bytes(chunk.drop_null().to_numpy(zero_copy_only=False)):
            return True
    return False


def _split_roles(name: str, splits: Mapping[str, Any]) -> dict[str, str]:
    """Part -> the split's name; a single split is the training part, whatever its name."""
    if len(splits) == 1:
        return {"train": next(iter(splits))}
    named = parts_among(splits)
    if "train" not in named:
        raise DataError(
            f"{name} has no split called train; its splits: {', '.join(sorted(splits))}"
        )
    usual = ("train", "validation", "test")
    for names in named.values():
        if len(names) > 1 and not set(names) & set(usual):
            raise DataError(f"{name} has several splits for one part: {', '.join(names)}")
    return {
        role: next((split for split in names if split in usual), names[0])
        for role, names in named.items()
    }


def _image_column(
    name: str, features: Mapping[str, Any], settings: DataSettings
) -> tuple[str, str]:
    """The column of images, by type first and by name else; and what is said of it."""
    typed = [column for column in features if type(features[column]).__name__ == "Image"]
    named = [column for column in features if column.lower() in IMAGE_COLUMNS]
    return choose_column(name, "image", features, typed or named, settings.image_column)


def _label_column(
    name: str, features: Mapping[str, Any], settings: DataSettings
) -> tuple[str, str]:
    """The column of labels, by type or by name; and what is said of it."""
    return choose_column(name, "label", features, _like_labels(features), settings.label_column)


def _like_labels(features: Mapping[str, Any]) -> list[str]:
    return [c for c in features if _names(features[c]) or c.lower() in LABEL_COLUMNS]


def _one_hot(
    name: str, splits: Mapping[str, Any], image: str, settings: DataSettings
) -> tuple[list[str], dict[str, list[Any]]] | None:
    """Columns that are a class each, and part -> labels; None where a column holds the labels."""
    features = splits["train"].features
    if settings.label_column is not None or _like_labels(features):
        return None
    plain = [c for c in features if c != image and getattr(features[c], "dtype", "") in _NUMBERS]
    read = {
        role: {c: _label_values(split, c, None) for c in plain} for role, split in splits.items()
    }
    hot = {role: one_hot_columns(f"{name} {role}", columns) for role, columns in read.items()}
    found = hot["train"]
    if found is None:
        return None
    return found[0], {
        role: [None] * len(splits[role]) if pair is None else list(pair[1])
        for role, pair in hot.items()
    }


def _names(feature: Any) -> list[str] | None:
    """The class names of a column of class numbers, or of lists of them."""
    names = getattr(feature, "names", None) or getattr(
        getattr(feature, "feature", None), "names", None
    )
    return None if names is None else list(names)


def _label_values(split: Any, column: str, names: list[str] | None) -> list[Any]:
    """A label a row; as names where the split numbers its classes in another order than train."""
    if column not in split.features:
        return [None] * len(split)
    with foreign(DataError, f"the column {column} cannot be read"):
        values: list[Any] = split.data.column(column).to_pylist()
    own = _names(split.features[column])
    if own in (None, names):
        return values
    assert own is not None
    return [own[v] if isinstance(v, int) and 0 <= v < len(own) else v for v in values]
