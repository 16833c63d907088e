"""Every command of the documents is run, in the order of its page, in a directory like a reader's.

What a reader has (photos, a model, weights, a finished run) is made small, what takes minutes is
shortened by options that come after the page's own. `make test-all` runs them; the options of all
and the cheap ones are tested everywhere (`test_docs.py`).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from amounts import THOROUGH
from image_folders import make_folder, mixed_size
from reference_networks import data_folder
from safetensors.torch import save_file
from tiny_run import OPTIONS

from proxylessnas import zoo
from proxylessnas.spaces import build
from proxylessnas.zoo.weights import published_keys

ROOT = Path(__file__).parent.parent
PAGES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").glob("*.md"))
DOCUMENTS = [p for p in ["README.md", *PAGES] if p != "docs/log.md"]
COMMAND = re.compile(r"^ {4}((?:torchrun [^\n]*-m )?(?:proxylessnas|python kit\.zip)\b.*)$", re.M)
FINISHED = ("runs/demo", "runs/other", "runs/other-limit")
CLASSES = ("daisy", "dandelion", "rose", "sunflower", "tulip")
SIDE = 32  # pixels of what is shortened; published tables are of 224
SHORTER = (
    *("--loading.limit=60", "--measure.networks=4", "--train.epochs=1", "--teach.epochs=1"),
    "--quiet",
)
SHORTER_SEARCH = (
    *("--search.epochs=1", "--search.warmup-epochs=0", "--derive.top-k=2"),
    "--candidates.score-rounds=0",
)
# Minutes as a reader has them, to seconds.
INSTEAD = {"10m": "3s", "2h": "2m", "96": str(SIDE), "/shared/recipe.yaml": "recipe.yaml"}
SMALL_SPACE = next(option for option in OPTIONS if option.startswith("--space-settings"))
LACKING = ("pip install", "cannot be downloaded")
MODEL = """
from torch import nn


def factory(classes=5):
    layers = []
    for before, after in ((3, 16), (16, 32)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))
"""
COSTS = """
def flash(layer, inputs):
    return sum(p.numel() for p in layer.parameters()) / 1024
"""


def commands(page: str) -> list[list[str]]:
    """The words of a page's commands, continued lines joined and comments left out."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    lines = [line for line in COMMAND.findall(text) if "..." not in line]
    return [shlex.split(line, comments=True) for line in lines]


def test_the_commands_are_found() -> None:
    """As many as lines begin with one, so that none is passed over."""
    for page in DOCUMENTS:
        begun = re.findall(r"^ {4}proxylessnas [^.\n]*(?!\.\.\.)$", (ROOT / page).read_text(), re.M)
        assert len(commands(page)) >= len(begun), page
    assert sum(len(commands(page)) for page in DOCUMENTS) > 40


@pytest.fixture
def reader(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's directory, which is home as well."""
    for name in FINISHED:
        shutil.copytree(finished_run, tmp_path / name)
    for photos in ("photos", "photos-of-another-camera"):
        make_folder(tmp_path / photos, CLASSES, 16, mixed_size)
    for name in ("image.png", "image.jpg"):
        shutil.copy(next((tmp_path / "photos").rglob("*.png")), tmp_path / name)
    (tmp_path / "mycode.py").write_text(MODEL)
    (tmp_path / "mycosts.py").write_text(COSTS)
    scope: dict[str, Callable[[], torch.nn.Module]] = {}
    exec(MODEL, scope)
    save_file(scope["factory"]().state_dict(), tmp_path / "best.safetensors")
    published = published_keys(build(zoo.load("proxyless_cpu")))
    torch.save({"state_dict": published}, tmp_path / "FILE")
    (tmp_path / "FOLDER").mkdir()
    for folder in ("FOLDER", "."):
        shutil.copy(data_folder() / "mobile_trim.yaml", tmp_path / folder)
    (tmp_path / "recipe.yaml").write_text("\n".join(o[2:].replace("=", ": ", 1) for o in OPTIONS))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shortened(words: list[str], number: int) -> list[str]:
    """A page's command as it is run here."""
    words = [INSTEAD.get(w, w.replace("~", os.environ["HOME"])) for w in words]
    start = words.index("proxylessnas") if "proxylessnas" in words else 0
    if words[0] == "python":
        return [sys.executable, *words[1:]]
    program = [sys.executable, "-m", "proxylessnas"]
    if words[0] == "torchrun":
        program = [sys.executable, "-m", "torch.distributed.run", *words[1:start], "proxylessnas"]
    verb, *options = words[start + 1 :]
    if verb == "derive":
        options.append("--derive.top-k=2")
    if verb == "measure" and "--import-kit" not in options:
        options += ["--measure.rounds=2", "--measure.network-rounds=2", "--measure.runs=2"]
    if verb == "run":
        options += SHORTER if "--model" in options else SHORTER + SHORTER_SEARCH
        if "--device" not in options:
            options.append(f"--image-size={SIDE}")
        if "--budget" in options:  # the least useful search of the whole space takes minutes
            options += ["--space=macro", SMALL_SPACE, "--out=runs/photos-mobile"]
        elif not {"--out", "--config"} & {*options}:
            options.append(f"--out=runs/{number}")
    return [*program, verb, *options]


@pytest.mark.slow
@pytest.mark.skipif(not THOROUGH, reason="make test-all")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [p for p in DOCUMENTS if commands(p)])
def test_a_page_s_commands_run(page: str, reader: Path) -> None:
    """To the end; or in one line where a package or the network to fetch weights is missing."""
    run = ""
    for number, words in enumerate(commands(page)):
        words = [run if word == "RUN" else word for word in words]
        if "run" in words and "--out" in words and "--resume" not in words:  # the page's own run
            shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
        run = f"runs/{number}" if words[1] == "run" else run  # the page's RUN is its last one
        done = subprocess.run(shortened(words, number), capture_output=True, text=True)
        said = (shlex.join(words), done.stdout[-2000:], done.stderr[-2000:])
        lacks = any(line in done.stderr for line in LACKING)
        assert done.returncode == 0 or lacks, said
