"""Data after a run began: changed under it, in another folder, damaged, or read elsewhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from image_folders import make_folder, picture
from PIL import Image
from tiny_run import OPTIONS, made_once

from proxylessnas import search
from proxylessnas.cli.main import main
from proxylessnas.errors import ConfigError

# Noise is told from flat images at once.
CLASSES = ("flat", "noisy")


def make_images(root: Path, first: int = 0, count: int = 30) -> Path:
    make_folder(root, classes=("noisy",), count=count, first=first, mode="L")
    (root / "flat").mkdir()
    for i in range(count):
        Image.new("L", (12, 12), 40 + 5 * i).save(root / "flat" / f"{first + i:05}.png")
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `images`, and the finished `run` on it."""

    def make(directory: Path) -> None:
        data = make_images(directory / "images")
        words = [*OPTIONS, f"--data={data}", f"--out={directory / 'run'}", "--quiet"]
        assert main(["run", *words, "--train.epochs=15", "--search.epochs=1"]) == 0

    return made_once(tmp_path_factory, "finished_on_a_folder", make)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run alone: its data stay where they are."""
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A folder `images`, and a `run` on it that was measured and no more."""
    data = make_images(tmp_path / "images")
    words = [*OPTIONS, f"--data={data}", f"--out={tmp_path / 'run'}", "--quiet"]
    assert main(["measure", *words]) == 0
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that exits with 2."""
    capsys.readouterr()
    assert main(list(words)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


# --- data that change under a run ---


def add(images: Path) -> None:
    picture(7000, mode="L").resize((12, 12)).save(images / "noisy" / "new.png")


def remove(images: Path) -> None:
    (images / "noisy" / "01003.png").unlink(missing_ok=True)
    next((images / "noisy").iterdir()).unlink()


def replace(images: Path) -> None:
    path = sorted((images / "flat").iterdir())[3]
    picture(7001, mode="L").save(path)


def swap(images: Path) -> None:
    """An image goes and another one comes: as many as before."""
    next((images / "noisy").iterdir()).unlink()
    add(images)


def touch(images: Path) -> None:
    for path in (images / "flat").iterdir():
        os.utime(path, (1, 1))


def new_class(images: Path) -> None:
    shutil.copytree(images / "noisy", images / "other")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (add, "train has 61 images, 60 before"),
        (swap, "train has 60 images as before, of other names, sizes or labels"),
        (replace, "train has 60 images as before, of other names, sizes or labels"),
        (touch, "train has the same 60 names and sizes, of other times"),
        (new_class, "have other classes than when it began (not in both: other)"),
    ],
)
def test_data_that_change_between_a_stop_and_resume(
    begun: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    words: str,
) -> None:
    change(begun / "images")
    again = ["search", str(begun / "run"), "--quiet"]
    assert words in (line := refusal(capsys, *again))
    assert (change is new_class) != ("or go on with --accept-changed-data" in line)
    assert not (begun / "run" / "stages" / "search.json").exists()
    if change is not new_class:
        assert main([*again, "--accept-changed-data"]) == 0
        assert main(["derive", str(begun / "run"), "--quiet"]) == 0  # accepted once for all


@pytest.mark.parametrize("accepted", [False, True])
def test_from_python_changed_data_are_accepted_by_an_argument(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, accepted: bool
) -> None:
    """Which reaches the check that the command line's option reaches."""

    class Opened(Exception):
        pass

    def opened(*_: object, accept_changed_data: bool, **__: object) -> None:
        raise Opened(str(accept_changed_data))

    monkeypatch.setattr("proxylessnas.runs.python_call.open_run", opened)
    with pytest.raises(Opened, match=str(accepted)):
        search(data="digits", out=tmp_path / "run", accept_changed_data=accepted, quiet=True)
    with pytest.raises(ConfigError, match="accept_changed_data is int, not True"):
        search(data="digits", accept_changed_data=1, quiet=True)  # type: ignore[arg-type]


def test_data_that_do_not_change(begun: Path) -> None:
    assert main(["run", "--resume", f"--out={begun / 'run'}", "--quiet"]) == 0


# --- another folder of the same classes ---


def test_evaluate_prints_the_accuracy_again(
    finished: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracy = json.loads((run / "stages" / "evaluate.json").read_text())["accuracy"]
    assert main(["evaluate", str(run)]) == 0
    assert f"test accuracy {100 * accuracy:.2f} % of 12 images" in capsys.readouterr().out


@pytest.mark.parametrize("inside", ["", "train"])
def test_a_finished_run_on_another_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], inside: str
) -> None:
    other = make_images(tmp_path / "other" / inside, first=500, count=15)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert main(["evaluate", str(run), f"--data={tmp_path / 'other'}"]) == 0
    out, err = capsys.readouterr()
    assert "30 images of the train part; flat 15, noisy 15" in err
    files = sorted(other.rglob("*.png"))
    assert main(["predict", str(run), *map(str, files), "--top=1", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    right = sum(Path(row["image"]).parent.name in row["classes"] for row in rows)
    assert right > 20 and out.startswith(
        f"accuracy on {tmp_path / 'other'} {100 * right / 30:.2f} % of 30 images (95 %: "
    )
    (other / "flat").rename(other / "x")  # every label wrong
    (other / "noisy").rename(other / "flat")
    (other / "x").rename(other / "noisy")
    assert main(["evaluate", str(run), f"--data={tmp_path / 'other'}", "--quiet"]) == 0
    assert f"{100 * (1 - right / 30):.2f} % of 30 images" in capsys.readouterr().out
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_of_another_data_set_with_parts_the_test_part_counts(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "other" / "train", first=500, count=5)
    make_images(tmp_path / "other" / "test", first=800, count=7)
    assert main(["evaluate", str(run), f"--data={tmp_path / 'other'}"]) == 0
    out, err = capsys.readouterr()
    assert "14 images of the test part" in err and "% of 14 images" in out


def rename(folder: Path) -> None:
    (folder / "noisy").rename(folder / "noise")


def one_more(folder: Path) -> None:
    shutil.copytree(folder / "noisy", folder / "third")


def one_damaged(folder: Path) -> None:
    (folder / "flat" / "broken.png").write_bytes(b"gone")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename, "has other classes than the network: noise, noisy are not in both"),
        (one_more, "has other classes than the network: third is not in both"),
        (one_damaged, "1 of 31 images of"),
        (shutil.rmtree, "there is no data set"),
    ],
)
def test_another_folder_that_does_not_fit(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    words: str,
) -> None:
    change(make_images(tmp_path / "other", count=15))
    command = ["evaluate", str(run), f"--data={tmp_path / 'other'}", "--quiet"]
    assert words in refusal(capsys, *command)


# --- images to be classified ---


def test_predict_goes_on_after_a_bad_file(
    finished: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [str(sorted((finished / "images" / name).iterdir())[4]) for name in CLASSES]
    (tmp_path / "bad.png").write_text("no image")
    images = [good[0], str(tmp_path / "bad.png"), str(tmp_path / "gone.png"), good[1]]
    assert main(["predict", str(run), *images, "--top=1"]) == 2
    out, err = capsys.readouterr()
    assert [line.partition(": ")[0] for line in out.splitlines()] == good
    assert ["bad.png" in err.splitlines()[0], "gone.png" in err.splitlines()[1]] == [True, True]
    assert main(["predict", str(run), *images, "--json"]) == 2
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(row) - {"image"} for row in rows] == [
        {"classes"},
        {"error"},
        {"error"},
        {"classes"},
    ]
    assert main(["predict", str(run), *good]) == 0


# --- the exported file elsewhere ---


def test_an_exported_file_says_what_it_takes_and_gives(finished: Path) -> None:
    model = onnx.load_model(finished / "run" / "model.onnx")
    facts = {p.key: p.value for p in model.metadata_props}
    assert facts["color_order"] == "gray" and facts["resize_filter"] == "bilinear, antialiased"
    assert facts["pixels"].startswith("values from 0 to 255") and "- mean" in facts["normalise"]
    order = ("EXIF", "white", "crop", "central_share", "resize the box to 12 x 12", "normalise")
    places = [facts["preprocessing"].index(word) for word in order]
    assert places == sorted(places)
    assert facts["output"].startswith("logits") and facts["made_by"].startswith("proxylessnas")
    assert json.loads(facts["classes"]) == list(CLASSES)


def test_another_name_of_the_same_data_is_no_other_data(
    finished: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its training images must not be taken for new ones."""
    assert main(["evaluate", str(run), f"--data={finished}/run/../images/"]) == 0
    assert "of 12 images" in capsys.readouterr().out
