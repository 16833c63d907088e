"""A data spec, which is what `--data` takes, to a `Source`.

mnist5k, digits                   arrays that a package carries          packaged.py
surfaces                          crops of photographs of a package      surfaces.py
torchvision:NAME                  a class of torchvision.datasets        packaged.py
a folder, or a .zip, .tar of one  one folder a class, with or without
                                  train/, val/, test/                    folders.py
a .csv of file names and labels   beside the images; x.zip/labels.csv    tables.py
a .tar, or a folder of several    WebDataset: a.jpg beside a.cls         shards.py
a folder holding *.parquet        the layout of Hugging Face             huggingface.py
a .parquet, or save_to_disk       of Hugging Face                        huggingface.py
owner/name[:config]               a data set of the Hugging Face hub     huggingface.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from proxylessnas.config import HUB_NAME, DataSettings
from proxylessnas.data.archives import PACKED, table_in
from proxylessnas.data.archives import SUFFIXES as ARCHIVES
from proxylessnas.data.folders import archive_source, folder_source
from proxylessnas.data.huggingface import (
    holds_parquet,
    hub_source,
    is_saved,
    parquet_source,
    saved_source,
)
from proxylessnas.data.packaged import TORCHVISION, digits, mnist5k, torchvision_source
from proxylessnas.data.shards import holds_shards, shards_source
from proxylessnas.data.source import Source
from proxylessnas.data.surfaces import surfaces
from proxylessnas.data.tables import TABLE_SUFFIXES, archived_table_source, table_source
from proxylessnas.data.watching import Progress, silent, watched
from proxylessnas.errors import DataError, did_you_mean

T = TypeVar("T")
_BUNDLED = {"mnist5k": mnist5k, "digits": digits, "surfaces": surfaces}


def open_source(
    spec: str, settings: DataSettings | None = None, progress: Progress = silent
) -> Source:
    """The data set that a spec names, no image decoded yet.

    Raises:
        DataError: there is no such data set, or its layout is not understood.
    """
    if spec in _BUNDLED:
        return _BUNDLED[spec]()
    if spec.startswith("torchvision:"):
        return torchvision_source(spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        if is_saved(path):
            return saved_source(path, settings, progress)
        if _looked(holds_parquet, path, progress):
            return parquet_source(path, settings, progress)
        if _looked(holds_shards, path, progress):
            return shards_source(path, progress)
        return folder_source(path, progress)
    if path.exists():
        return _of_file(path, spec, settings, progress)
    found = _looked(partial(table_in, suffixes=TABLE_SUFFIXES), path, progress)
    if found is not None:
        return archived_table_source(*found, settings, progress)
    if path.is_symlink():
        raise DataError(f"{spec} is a link that leads nowhere; give the folder itself")
    if HUB_NAME.fullmatch(spec):
        return hub_source(spec, settings, progress)
    if "/" in spec or os.sep in spec or spec.startswith((".", "~")):
        raise DataError(f"there is no folder {spec} (looked for {path.absolute()})")
    raise DataError(f"unknown data set {spec!r}: {_suggestion(spec)}")


def _looked(look: Callable[[Path], T], path: Path, progress: Progress) -> T:
    """What `look` says of a path, which a slow disk may take long to show."""
    return watched(lambda: look(path), lambda: progress(0, 0, "files seen"))


def _of_file(path: Path, spec: str, settings: DataSettings | None, progress: Progress) -> Source:
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return table_source(path, settings, progress)
    if suffix == ".tar" and _looked(holds_shards, path, progress):
        return shards_source(path, progress)
    if suffix in ARCHIVES:
        return archive_source(path, progress)
    if suffix == ".parquet":
        return parquet_source(path, settings, progress)
    if path.name.lower().endswith(PACKED):
        raise DataError(
            f"{spec} is compressed as a whole, so that no image in it can be read without all "
            f"those before it: unpack it, and give the folder; .zip and .tar are read as they are"
        )
    raise DataError(
        f"{spec} is a file; --data takes a folder of images or of parquet files, a .zip or .tar of "
        "a folder, a .csv of file names and labels, or a .parquet"
    )


def _suggestion(word: str) -> str:
    torchvision = {name.lower(): f"torchvision:{name}" for name in TORCHVISION}
    if word.lower() in torchvision:
        return f"did you mean {torchvision[word.lower()]}?"
    return (
        f"{did_you_mean(word, _BUNDLED)} Or give a folder that exists, "
        "a Hugging Face name (owner/name) or torchvision:NAME"
    )
