"""What cannot be specialised is refused in one line, before anything is learned or left behind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from image_folders import make_folder
from pretrained import small_teacher, trained_run

import proxylessnas
from proxylessnas.cli.main import main
from proxylessnas.core.supernet import Supernet
from proxylessnas.data import LoaderBatches
from proxylessnas.errors import DataError, LimitError
from proxylessnas.hardware.costs import count_costs
from proxylessnas.hardware.count import count_macs
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.hardware.trace import trace
from proxylessnas.pretrained.candidates import candidate_names
from proxylessnas.pretrained.space import blank_candidates, space_around
from proxylessnas.runs.reach import smallest_network
from proxylessnas.runs.specialised import images_of
from proxylessnas.spaces.blocks import Network, WithClassifier

QUICK = ["--runtime=fake", "--machine.threads=1", "--teach.epochs=1", "--train.epochs=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photos"), count=8)


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of a run that is refused."""
    assert main(["run", *QUICK, *words]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and "teach:" not in error
    return error.splitlines()[-1]


# --- a limit under what the space reaches ---


def test_a_limit_out_of_reach_names_the_range_and_a_smaller_input(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The input that it names does reach the limit, and one that is larger does not."""
    run = [f"--data={photos}", f"--pretrained={trained}", f"--out={tmp_path / 'run'}"]
    said = refusal([*run, "--image-size=96", "--target-latency=0.2ms"], capsys)
    assert not (tmp_path / "run").exists()
    found = re.search(
        r"at 96 pixels keeps a latency of 0\.2 ms: they take from about (\S+) to (\S+) ms; an "
        r"input of (\d+) pixels would reach it: --image-size (\d+) --target-latency 0\.2ms",
        said,
    )
    assert found is not None, said
    assert 0.2 < float(found[1]) < float(found[2])
    size = int(found[3])
    larger = [f"--image-size={size + 16}", "--target-latency=0.2ms"]
    assert f"an input of {size} pixels" in refusal([*run, *larger], capsys)
    done = [*QUICK, *run, f"--image-size={size}", "--target-latency=0.2ms", "--quiet"]
    assert main(["run", *done, "--baselines=false"]) == 0


def test_a_share_of_the_teachers_latency_out_of_reach(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [f"--data={photos}", f"--pretrained={trained}", f"--out={tmp_path / 'run'}"]
    said = refusal([*run, "--image-size=64", "--target-latency=0.01x"], capsys)
    assert "(0.01x): they take from about" in said
    assert "no smaller input does either, down to 32 pixels" in said
    call: dict[str, Any] = {"pretrained": trained, "data": photos, "runtime": "fake"}
    with pytest.raises(LimitError, match=r"\(0\.01x\): they take from about"):
        proxylessnas.search(**call, image_size=64, target_latency="0.01x", quiet=True)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("macs=1000", "no network of this space keeps a macs of 1000: the reachable range is"),
        ("parameters=0.01x", "no network of this space keeps a parameters of"),
        ("peak_memory=1e-6", "all need more than 1e-06 MiB at their peak"),
        ("energy=3", "energy has a limit, and nothing has measured it"),
        ("flash=3", "no cost 'flash' to limit"),
    ],
)
def test_other_limits_out_of_reach(
    limit: str,
    said: str,
    trained: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = [f"--data={photos}", f"--pretrained={trained}", "--image-size=32", f"--limit={limit}"]
    assert said in refusal([*run, f"--out={tmp_path / 'run'}"], capsys)
    assert not (tmp_path / "run").exists()


def test_the_smallest_network_is_the_one_of_the_fewest_macs() -> None:
    teacher, x = small_teacher(), torch.randn(1, 3, 24, 24)
    named = blank_candidates(teacher, [candidate_names(block) for block in teacher.blocks])
    supernet = Supernet(space_around(teacher, named))
    costs = count_costs(supernet, trace(supernet, (x,)))
    least, _ = costs.range(supernet.mask)[costs.index("macs")]
    assert count_macs(smallest_network(teacher), (x,)) == least


# --- few photos, gray photos ---


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, "has 1 training images; at least 3 are needed"),
        (3, "3 images are left to learn 3 classes from, beside those held out for validation"),
    ],
)
def test_fewer_photos_than_the_classes_need(
    count: int, said: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "photos", classes=("a", "b", "c"), count=count)
    out = tmp_path / "run"
    assert said in refusal([f"--data={folder}", f"--pretrained={trained}", f"--out={out}"], capsys)
    assert not out.exists()
    with pytest.raises(DataError, match=said):
        proxylessnas.search(pretrained=trained, data=folder, runtime="fake", quiet=True)


def test_a_handful_of_gray_photos(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fewer than one batch of photos are cut from, too; that images are gray is said."""
    folder = make_folder(tmp_path / "photos", count=4, mode="L")
    out = tmp_path / "run"
    words = [f"--data={folder}", f"--pretrained={trained}", "--image-size=32", f"--out={out}"]
    assert main(["run", *QUICK, *words, "--target-latency=0.8x"]) == 0
    assert "gray images: the network's first layer takes one channel" in capsys.readouterr().err
    assert proxylessnas.load(out, quiet=True).derive()(torch.randn(2, 1, 32, 32)).shape == (2, 2)


@pytest.mark.parametrize(("batch", "skip", "most"), [(100, 7, 50), (8, 7, 50), (8, 0, 20)])
def test_images_after_those_that_are_skipped(batch: int, skip: int, most: int) -> None:
    numbers = torch.arange(29.0)
    batches = [(rows, rows) for rows in numbers.split(batch)]
    images = images_of(LoaderBatches(batches, name="train"), most, skip=skip)
    assert isinstance(images, Iterator)
    together = torch.cat(list(images))
    assert torch.equal(together, numbers[skip:][: len(together)]) and len(together) >= min(
        most, 29 - skip
    )


# --- trained weights are proposed ---


@pytest.mark.parametrize(
    ("mode", "words", "proposals"),
    [
        ("RGB", [], 1),
        ("RGB", ["--pretrained=none"], 0),
        ("L", [], 0),  # digits and the like
    ],
)
def test_few_photos_from_scratch_are_told_of_trained_weights(
    mode: str,
    words: list[str],
    proposals: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one line, and not again when the run goes on."""
    folder = make_folder(tmp_path / "photos", count=8, mode=mode)
    space = ["--space=macro", "--space-settings={widths: [8], depths: [1], stem: 8, head: 16}"]
    out = [f"--out={tmp_path / 'run'}", "--machine.memory-format=contiguous"]
    epochs = ["--search.warmup-epochs=0", "--search.epochs=1", "--train.epochs=1"]
    scratch = [*QUICK, f"--data={folder}", *space, *epochs, *out, *words]
    assert main(["run", *scratch, "--measure.networks=3"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "--pretrained" in line]
    assert len(lines) == proposals
    assert all("photos are few to begin from scratch" in line for line in lines)
    assert main(["run", "--resume", *out]) == 0
    assert "--pretrained" not in capsys.readouterr().err


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_images_that_the_network_fails_on_are_told_before_anything_is_done(
    trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A batch of every part goes through the network, the loss and back, as it would later."""
    runtime, calls = FakeRuntime(), []

    def failing(network: WithClassifier, x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        if len(calls) > ("train", "valid", "test").index(part):
            raise RuntimeError("too small for its kernels")
        return network.classifier(torch.zeros(len(x), network.classifier.in_features))

    monkeypatch.setattr(Network, "forward", failing)
    line = f"fails on the first images of {part} .*float32.*: too small for its kernels"
    with pytest.raises(DataError, match=line):
        proxylessnas.search(
            pretrained=trained,
            data=photos,
            target_latency="0.9x",
            runtime=runtime,
            out=tmp_path / "run",
            quiet=True,
        )
    assert runtime.loaded == 0 and not (tmp_path / "run").exists() and set(calls) == {2}
