"""K10. Data of every form that change under a run: what their digests see."""

from __future__ import annotations

import csv
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_folders import picture

from proxylessnas.config import DataSettings
from proxylessnas.data import load_data

Images = dict[str, bytes]  # CLASS/NAME -> a file


def bmp(seed: int) -> bytes:
    """All of one size, as replaced files seldom are."""
    buffer = io.BytesIO()
    picture(seed).resize((12, 12)).save(buffer, "BMP")
    return buffer.getvalue()


def images() -> Images:
    return {f"{c}/{c}{i:02}.bmp": bmp(i + 100 * (c == "b")) for c in "ab" for i in range(20)}


def added(images: Images) -> Images:
    return images | {"a/new.bmp": bmp(777)}


def moved(images: Images) -> Images:
    return {("b/a03.bmp" if name == "a/a03.bmp" else name): x for name, x in images.items()}


def renamed(images: Images) -> Images:
    return {("a/other.bmp" if name == "a/a03.bmp" else name): x for name, x in images.items()}


def swapped(images: Images) -> Images:
    """Two images of two classes change places."""
    return images | {"a/a03.bmp": images["b/b03.bmp"], "b/b03.bmp": images["a/a03.bmp"]}


def same(images: Images) -> Images:
    return images


def as_zip(root: Path, images: Images, backwards: bool) -> Path:
    with zipfile.ZipFile(root / "x.zip", "w") as archive:
        for name in sorted(images, reverse=backwards):
            archive.writestr(zipfile.ZipInfo(name), images[name])  # of 1980
    return root / "x.zip"


def as_tar(root: Path, images: Images, backwards: bool) -> Path:
    with tarfile.open(root / "x.tar", "w") as archive:
        for name in sorted(images, reverse=backwards):
            entry = tarfile.TarInfo(name)
            entry.size = len(images[name])
            archive.addfile(entry, io.BytesIO(images[name]))
    return root / "x.tar"


def as_table(root: Path, images: Images, backwards: bool) -> Path:
    for name, data in images.items():
        file = root / name.partition("/")[2]
        file.write_bytes(data)
        os.utime(file, (1, 1))
    rows = [(name.partition("/")[2], name[0]) for name in images]
    with (root / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *rows])
    return root / "x.csv"


def as_parquet(root: Path, images: Images, backwards: bool) -> Path:
    column = [{"bytes": data, "path": None} for data in images.values()]
    table = pa.table({"image": column, "label": [ord(name[0]) - ord("a") for name in images]})
    pq.write_table(table, root / "train.parquet")
    return root


def as_pixels(root: Path, images: Images, backwards: bool) -> Path:
    """Beside files whose names are numbers, as the cells are."""
    (root / "0.bmp").write_bytes(bmp(0))
    (root / "1.bmp").write_bytes(bmp(1))
    names = ["label", *(f"pixel{i}" for i in range(64))]
    rows = [[int(name[0] == "b"), *np.frombuffer(x[-64:], np.uint8)] for name, x in images.items()]
    with (root / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return root / "x.csv"


FORMS = [as_zip, as_tar, as_table, as_parquet, as_pixels]
# A digest is of paths, sizes and times. A shard of parquet, and a tar, have what they have.
UNSEEN = {(as_tar, swapped), (as_table, swapped), (as_parquet, swapped), (as_parquet, renamed)}
UNSEEN |= {(as_pixels, renamed), (as_pixels, same), (as_parquet, same)}


@pytest.mark.parametrize("change", [same, added, moved, renamed, swapped])
@pytest.mark.parametrize("form", FORMS)
def test_what_changed_is_seen(
    tmp_path: Path,
    form: Callable[[Path, Images, bool], Path],
    change: Callable[[Images], Images],
) -> None:
    """The files keep their time, and those of an archive come in another order."""

    def digests(made: Images, backwards: bool) -> object:
        path = form(tmp_path, made, backwards)
        for file in [*tmp_path.rglob("*.parquet"), *tmp_path.rglob("x.csv")]:
            os.utime(file, (1, 1))
        data = load_data(str(path), DataSettings(workers=0))
        return data.info.classes, data.digests

    before = digests(images(), False)
    after = digests(change(images()), True)
    assert (after == before) == (change is same or (form, change) in UNSEEN)
