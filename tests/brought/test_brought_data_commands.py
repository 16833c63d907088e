"""The command line on data as people bring them: one line and exit 2, and no silence."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clock import Clock
from image_folders import load, make_folder
from PIL import Image
from tiny_run import OPTIONS

from proxylessnas.cli.main import main
from proxylessnas.data import archives
from proxylessnas.data.watching import watched
from proxylessnas.io.console import Reporter


def unknown_parts(root: Path) -> Path:
    make_folder(root / "a")
    make_folder(root / "b")
    return root


def black(root: Path) -> Path:
    make_folder(root)
    for path in root.rglob("*.png"):
        Image.new("RGBA", (12, 12)).save(path)
    return root


def raw_photos(root: Path) -> Path:
    make_folder(root)
    (root / "cat" / "IMG_0001.DNG").write_bytes(b"")
    return root


def several_labels(root: Path) -> Path:
    make_folder(root)
    (root / "t.csv").write_text("file,label\ncat/00000.png,x\ncat/00000.png,y\n")
    return root / "t.csv"


def damaged_parquet(root: Path) -> Path:
    root.mkdir()
    (root / "train.parquet").write_bytes(b"PAR1" + bytes(100))
    return root


def damaged_zip(root: Path) -> Path:
    root.mkdir()
    (root / "x.zip").write_bytes(b"PK\3\4" + bytes(100))
    return root / "x.zip"


def too_large(root: Path) -> Path:
    make_folder(root)
    Image.new("1", (20_000, 20_000)).save(root / "cat" / "map.png")
    return root


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (unknown_parts, "the folders a, b hold the same folders (cat, dog)"),
        (black, "practically constant"),
        (raw_photos, "1 of 21 images in"),
        (several_labels, "stands there twice, as 'x' in train and as 'y' in train"),
        (damaged_parquet, "cannot be loaded: "),
        (damaged_zip, "is no whole zip file"),
        (too_large, "--loading.max-pixels allows more"),
    ],
)
def test_data_that_are_refused_before_anything_is_measured(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    make: Callable[[Path], Path],
    words: str,
) -> None:
    out = tmp_path / "run"
    data = make(tmp_path / "data")
    capfd.readouterr()
    assert main(["run", *OPTIONS, f"--data={data}", f"--out={out}", "--quiet"]) == 2
    captured = capfd.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("proxylessnas: ") and words in line
    assert captured.out == "" and not out.exists()


def test_columns_are_chosen_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(tmp_path / "x")
    rows = [f"{p.name},{p.parent.name},{p.parent.name[0]}" for p in tmp_path.rglob("*.png")]
    (tmp_path / "x" / "t.csv").write_text("file,species,breed\n" + "\n".join(rows))
    words = ["measure", *OPTIONS, f"--data={tmp_path / 'x' / 't.csv'}", f"--out={tmp_path / 'run'}"]
    assert main(words) == 2
    assert "choose with --loading.label-column species" in capsys.readouterr().err
    assert main([*words, "--loading.label-column=breed"]) == 0
    err = capsys.readouterr().err
    assert "2 classes: c 10, d 10" in err and "image column file; label column breed" in err


# --- silence ---


def test_a_first_count_after_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Reporter(clock=clock).bar("reading the data") as update:
        for count in range(0, 4000, 200):
            update(count, 0, "images listed")
            clock.sleep(0.5)
    assert capsys.readouterr().err.splitlines() == [
        "  reading the data: 400; images listed"  # the next after ten seconds
    ]


def test_counts_of_every_phase_of_reading(tmp_path: Path) -> None:
    make_folder(tmp_path, size=lambda i: (20 + i, 20))
    seen: list[tuple[int, int, str]] = []
    load(tmp_path, workers=0, progress=lambda *facts: seen.append(facts))
    phases = list(dict.fromkeys(what for _, _, what in seen))
    assert phases == ["files seen", "images listed", "headers", "images"]
    for what, last in (("images listed", (20, 0)), ("headers", (20, 20)), ("images", (20, 20))):
        assert [(done, total) for done, total, kind in seen if kind == what][-1] == last


def test_what_hangs_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that ends only after it was told of three times."""
    monkeypatch.setattr("proxylessnas.data.watching.EVERY", 0.001)
    told, enough = [], threading.Event()

    def tell() -> None:
        told.append(None)
        if len(told) == 3:
            enough.set()

    assert watched(lambda: enough.wait(60), tell) is True
    with pytest.raises(OSError, match="gone"):
        watched(lambda: (_ for _ in ()).throw(OSError("gone")), tell)


def test_a_slow_disk_shows_counts_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image waits until progress was shown: of a block that is not done yet, too."""
    monkeypatch.setattr("proxylessnas.data.survey.EVERY", 0.001)
    make_folder(tmp_path, count=20)
    shown = threading.Event()
    before = Image.open

    def slow(path: str) -> Image.Image:
        assert shown.wait(60)
        return before(path)

    monkeypatch.setattr(Image, "open", slow)

    def progress(done: int, total: int, what: str) -> None:
        if what == "headers":
            shown.set()

    assert load(tmp_path, progress=progress).size("train") == 32


@pytest.mark.parametrize("form", ["x.zip", "x.tar", "shard.tar", "shards", "x.zip/t.csv", "t.csv"])
def test_a_slow_archive_or_table_shows_that_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Whatever opens a file first waits until something was shown."""
    monkeypatch.setattr("proxylessnas.data.watching.EVERY", 0.001)
    files = {p: p.read_bytes() for p in sorted(make_folder(tmp_path / "f").rglob("*.png"))}
    table = "file,label\n" + "\n".join(f"{p.parent.name}/{p.name},{p.parent.name}" for p in files)
    entries = {str(p.relative_to(tmp_path / "f")): data for p, data in files.items()}
    (tmp_path / "f" / "t.csv").write_text(table)
    if form.startswith("x.zip"):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
            for name, data in (
                entries | ({"t.csv": table.encode()} if "/" in form else {})
            ).items():
                packed.writestr(name, data)
    else:
        (tmp_path / "shards").mkdir()
        path = tmp_path / {"shards": "shards/0.tar"}.get(form, form.replace(".csv", ".tar"))
        if "shard" in form:
            names = {name.replace("/", "-"): data for name, data in entries.items()}
            labels = {f"{name[:-4]}.cls": name.partition("-")[0].encode() for name in names}
            entries = names | labels
        with tarfile.open(path, "w") as packed_tar:
            for name, data in entries.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                packed_tar.addfile(entry, io.BytesIO(data))
    shown, scan, opened = threading.Event(), os.scandir, archives._opened

    def slowly(function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any) -> Any:
            assert shown.wait(60), "nothing was shown"
            return function(*args)

        return slow

    monkeypatch.setattr(archives, "_opened", slowly(opened))
    monkeypatch.setattr(os, "scandir", slowly(scan))
    spec = tmp_path / "f" / form if form == "t.csv" else tmp_path / form
    assert load(spec, workers=0, progress=lambda *_: shown.set()).size("train") > 0
