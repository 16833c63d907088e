"""Folders and tables at random: every image with the class that is drawn in it, or one line."""

from __future__ import annotations

import csv
import io
import random
import shutil
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amounts import seeds
from image_folders import PARTS, load, whole_part
from mutate import damaged, hostile
from PIL import Image

from proxylessnas.data import ImageData
from proxylessnas.errors import UserError

pytestmark = pytest.mark.slow

CLASSES = ("cat", "dog", "cow")
NAMES = {  # of folders, for the same three classes
    "plain": CLASSES,
    "like parts": ("train", "bus", "tram"),
    "accents": ("café", "naïve", "œuvre"),
    "odd": ("__cat__", "$5", "a b.c"),
    "numbers": ("9", "10", "007"),
}
SPLITS = (
    *(("train", "test"), ("Training", "Testing"), ("train", "val", "test"), ("train", "dev")),
    *(("x_train", "x_test"), ("trainset", "testset"), ("part1", "part2"), ("train",), ("A", "B")),
)


def image(kind: int, chance: random.Random, size: int = 12) -> Image.Image:
    """Noise around 40, 120 or 200: the class is to be read off the mean."""
    generator = np.random.default_rng(chance.randrange(1 << 30))
    return Image.fromarray(
        (40 + 80 * kind + generator.integers(-30, 30, (size, size))).astype(np.uint8)
    )


def encoded(kind: int, chance: random.Random) -> bytes:
    buffer = io.BytesIO()
    image(kind, chance).save(buffer, "png")
    return buffer.getvalue()


def checked(
    read: Callable[[], ImageData], names: tuple[str, ...] | None = None
) -> ImageData | None:
    """The data, each of whose images has the class that is drawn in it; None where refused.

    names: of the classes as they are drawn; None: any.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = read()
        except UserError as error:
            assert str(error) and "\n" not in str(error) and len(str(error)) < 2000
            return None
    assert "\n\n" not in str(data.summary)
    if names is None:
        return data
    for part in PARTS:
        images, labels = whole_part(data, part)
        means = (images * data.info.std[0] + data.info.mean[0]).mean((1, 2, 3)) * 255
        kinds = ((means - 40) / 80).round().int().tolist()
        assert [names[kind] for kind in kinds] == [data.info.classes[n] for n in labels.tolist()]
    return data


# --- folders ---


def make_class(folder: Path, kind: int, count: int, chance: random.Random) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        suffix = chance.choice((".png", ".PNG", ".bmp", ".tif", ".pgm"))
        image(kind, chance).save(folder / f"{i}{suffix}")


def link(path: Path, target: Path) -> None:
    if not path.is_symlink():
        path.symlink_to(target)


def clutter(root: Path, chance: random.Random) -> None:
    """What else lies about; none of it changes the class of an image."""
    folders = [root, *(p for p in root.rglob("*") if p.is_dir())]
    for _ in range(chance.randrange(4)):
        at = chance.choice(folders)
        kind = chance.randrange(9)
        if kind == 0:
            (at / chance.choice(("notes.txt", "Thumbs.db", ".DS_Store", "._a.png"))).write_text("x")
        elif kind == 1:
            make_class(at / "@eaDir" / "x.jpg", chance.randrange(3), 2, chance)
        elif kind == 2:
            make_class(at / "__MACOSX", chance.randrange(3), 2, chance)
        elif kind == 3:
            link(at / "loop", root)
        elif kind == 4:
            (at / "broken.png").write_bytes(chance.randbytes(chance.randrange(60)))
        elif kind == 5:
            (at / "empty").mkdir(exist_ok=True)
        elif kind == 6:
            (at / "x.heic").write_bytes(b"")
        elif kind == 7:
            link(at / "gone.png", root / "nowhere.png")
        elif at == root:
            image(0, chance).save(root / "loose.png")


@pytest.mark.parametrize("seed", seeds(300, few=60))
def test_folders(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    names = NAMES[chance.choice(list(NAMES))]
    split = chance.choice(SPLITS) if chance.random() < 0.6 else ("",)
    inside = tmp_path / "data" / chance.choice(("", "", "archive", "a/b"))
    for part in split:
        above = inside / part
        if part and chance.random() < 0.2:
            above /= part
        for kind, name in enumerate(names):
            form = chance.choice(("NFC", "NFD"))
            folder = above / unicodedata.normalize(form, name)
            if chance.random() < 0.2:
                folder /= "2021"
            make_class(folder, kind, chance.randint(6, 9), chance)
    clutter(tmp_path / "data", chance)
    spec = tmp_path / "data"
    if chance.random() < 0.3:
        spec = Path(shutil.make_archive(str(tmp_path / "z"), "zip", spec))
    checked(lambda: load(spec, workers=0), names)


def test_most_of_these_folders_are_read(tmp_path: Path) -> None:
    """A reader that refuses everything keeps the contract, too."""
    for kind, name in enumerate(CLASSES):
        make_class(tmp_path / name, kind, 8, random.Random(kind))
    assert checked(lambda: load(tmp_path, workers=0), CLASSES) is not None


@pytest.mark.parametrize("seed", seeds(200, few=30))
def test_damaged_zip_files(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for kind, name in enumerate(CLASSES):
            for i in range(8):
                archive.writestr(f"{name}/{i}.png", encoded(kind, chance))
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(damaged(whole, chance))
    checked(lambda: load(tmp_path / "a.zip", workers=0))


# --- tables ---


@pytest.fixture(autouse=True)
def _own_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    cache = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(cache))
    yield
    shutil.rmtree(cache, ignore_errors=True)


def make_csv(root: Path, chance: random.Random) -> Path:
    """Columns in any order under any usual name, with any delimiter and encoding."""
    names = NAMES[chance.choice(list(NAMES))]
    columns: dict[str, list[str]] = {"file": [], "label": [], "x": [], "part": []}
    for kind, name in enumerate(names):
        make_class(root / "images" / f"folder{kind}", kind, 8, chance)
        for path in sorted((root / "images" / f"folder{kind}").iterdir()):
            columns["file"].append(str(path.relative_to(root)))
            columns["label"].append(unicodedata.normalize(chance.choice(("NFC", "NFD")), name))
            columns["x"].append(str(chance.random()))
            columns["part"].append("train" if len(columns["part"]) % 4 else "test")
    headers = {
        "file": chance.choice(("file", "image", "Path", "file name", "filepath")),
        "label": chance.choice(("label", "Class", "category", "species")),
        **{"x": "weight", "part": chance.choice(("split", "part", "data set"))},
    }
    labels = ["label"]
    if chance.random() < 0.3:  # a column a class
        given = [unicodedata.normalize("NFC", label) for label in columns["label"]]
        one, zero = chance.choice((("1", "0"), ("1.0", "0.0")))
        labels = [f"={name}" for name in names]
        for name, column in zip(names, labels, strict=True):
            columns[column] = [one if label == name else zero for label in given]
            headers[column] = name
    chosen = ["file", *labels, *chance.sample(["x", "part"], chance.randrange(3))]
    chance.shuffle(chosen)
    rows = list(zip(*(columns[name] for name in chosen), strict=True))
    chance.shuffle(rows)
    text = io.StringIO()
    quoting = chance.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    writer = csv.writer(text, delimiter=chance.choice(",;\t"), quoting=quoting)
    if chance.random() < 0.8 or len(labels) > 1:
        writer.writerow([headers[name] for name in chosen])
    writer.writerows(rows)
    path = root / "table.csv"
    path.write_bytes(text.getvalue().encode(chance.choice(("utf-8", "utf-8-sig", "utf-16"))))
    return path


@pytest.mark.parametrize("seed", seeds(200, few=40))
def test_csv_files(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = make_csv(tmp_path, chance)
    kinds = {name: names for names in NAMES.values() for name in names}
    data = checked(lambda: load(path, workers=0))
    if data is not None:
        checked(lambda: load(path, workers=0), kinds[data.info.classes[0]])
    path.write_bytes(damaged(path.read_bytes(), chance))
    checked(lambda: load(path, workers=0))


def labels_of(kinds: list[int], chance: random.Random) -> tuple[list[Any], tuple[str, ...]]:
    """The same classes in one of the forms that a label may have, and their names."""
    numbers = ("0", "1", "2")
    return chance.choice(
        [
            (kinds, numbers),
            ([float(k) for k in kinds], numbers),
            ([[k] for k in kinds], numbers),
            ([[float(k == i) for i in range(3)] for k in kinds], numbers),
            ([int(k == i) for k in kinds for i in (k,)], numbers),  # one class: refused
            ([CLASSES[k] for k in kinds], CLASSES),
            ([CLASSES[k].encode() for k in kinds], CLASSES),
            ([k + 0.5 for k in kinds], numbers),
            ([[k, k] for k in kinds], numbers),
            ([None if chance.random() < 0.2 else k for k in kinds], numbers),
        ]
    )


def make_parquet(path: Path, chance: random.Random) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = [k for k in range(3) for _ in range(8)]
    labels, names = labels_of(kinds, chance)
    cells: list[Any] = [encoded(k, chance) for k in kinds]
    if chance.random() < 0.3:
        cells = [np.asarray(Image.open(io.BytesIO(cell))).tolist() for cell in cells]
    columns = {chance.choice(("image", "img", "pixel_values")): cells}
    if chance.random() < 0.2:  # a column a class
        names = CLASSES
        columns |= {name: [kind == k for kind in kinds] for k, name in enumerate(CLASSES)}
    else:
        columns[chance.choice(("label", "labels", "class"))] = labels
    if chance.random() < 0.3:
        columns["other"] = [chance.randrange(9) for _ in kinds]
    pq.write_table(pa.table(columns), path)
    return names


@pytest.mark.parametrize("seed", seeds(120, few=24))
def test_parquet(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "train.parquet"
    names = make_parquet(path, chance)
    checked(lambda: load(path, workers=0), names)
    path.write_bytes(damaged(path.read_bytes(), chance))
    checked(lambda: load(tmp_path, workers=0))


@pytest.mark.parametrize("seed", seeds(60, few=12))
def test_save_to_disk(tmp_path: Path, seed: int) -> None:
    import datasets

    chance = random.Random(seed)
    kinds = [k for k in range(3) for _ in range(8)]
    labels, names = labels_of(kinds, chance)
    made = datasets.Dataset.from_dict(
        {"image": [{"bytes": encoded(k, chance), "path": None} for k in kinds], "label": labels}
    )
    made.save_to_disk(str(tmp_path / "saved"))
    checked(lambda: load(tmp_path / "saved", workers=0), names)
    path = chance.choice(sorted(p for p in (tmp_path / "saved").iterdir() if p.is_file()))
    whole = path.read_bytes()
    is_json = path.suffix == ".json"
    path.write_bytes(hostile(whole.decode(), chance) if is_json else damaged(whole, chance))
    checked(lambda: load(tmp_path / "saved", workers=0))
