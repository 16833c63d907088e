"""`--image-size 24,32` or `auto`: the size is chosen with the network, under one limit."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from proxylessnas.cli.main import main
from proxylessnas.config import RunConfig, parse_sizes
from proxylessnas.errors import ConfigError
from proxylessnas.runs import sizes
from proxylessnas.runs.directory import RunDirectory
from tests.runs import test_specialised

trained = test_specialised.trained

SEVERAL = [
    "--image-size=24,32" if word.startswith("--image-size") else word
    for word in test_specialised.WORDS
]


def test_one_network_comes_out_at_the_size_whose_loss_is_least(
    trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert main(["run", *SEVERAL, f"--pretrained={trained}", f"--out={out}"]) == 0
    facts = json.loads((out / "sizes.json").read_text())["tried"]
    assert facts.keys() == {"24", "32"}
    best = min(facts, key=lambda size: facts[size]["loss"])
    config, summary = (
        RunDirectory(out).read_config(),
        json.loads((out / "summary.json").read_text()),
    )
    assert config.train.learning_rate < 0.004 and config.machine.threads  # as one size decides them
    assert config.image_size == int(best) and summary["sizes"].keys() == facts.keys()
    assert json.loads((out / "architecture.json").read_text())["input"]["shape"][1] == int(best)
    assert summary["predicted_latency_ms"] <= summary["target_latency_ms"] * 1.001
    assert not (out / "sizes").exists() and not (out / "stages" / "trial.json").exists()
    # Given again, the same words go on with the run that is there.
    assert main(["run", *SEVERAL, f"--pretrained={trained}", f"--out={out}", "--resume"]) == 0
    other = [*SEVERAL, "--target-latency=0.7x", f"--out={out}", "--resume"]
    assert main(["run", *other]) == 2  # another limit is another run


def test_within_a_budget_every_size_has_a_part_and_training_has_the_rest(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["run", *SEVERAL, f"--pretrained={trained}"]
    out = tmp_path / "run"
    # Refused is what the largest size cannot do in its part, before anything is kept.
    assert main([*start, f"--out={out}", "--budget=30s"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "30s" in error and "image size 32 has a part" in error
    assert not out.exists()

    assert main([*start, f"--out={out}", "--budget=20m"]) == 0
    kept = json.loads((out / "budget.json").read_text())
    assert kept["fitted"] == ["teach", "candidates", "measure", "search", "train"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sizes"].keys() == {"24", "32"} and summary["baselines"]
    assert RunDirectory(out).read_config().budget == "20m"  # the run's, not a size's


def test_the_parts_of_a_budget_are_by_pixels(tmp_path: Path) -> None:
    config = RunConfig(pretrained="efficientnet_lite0", image_size="96,128", budget="10m")
    budget = sizes._divided(config, RunDirectory(tmp_path), time.monotonic(), (128, 96))
    assert budget is not None
    total, first, rest = 600 * (1 - 0.02), 128**2, sizes.REST * 128**2
    assert budget.seconds_for("128") == pytest.approx(
        total * first / (first + 96**2 + rest), abs=0.1
    )
    budget.fitted.append("128")  # what it did not take is for those to come
    assert budget.seconds_for("96") == pytest.approx(total * 96**2 / (96**2 + rest), abs=0.1)


def test_stopped_between_two_sizes_it_goes_on(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from proxylessnas.io.stopping import Stopped
    from proxylessnas.runs import directory

    out, real = tmp_path / "run", sizes.tried

    def stopped(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr(sizes, "tried", stopped)
    assert main(["run", *SEVERAL, f"--pretrained={trained}", f"--out={out}"]) == 130
    before = (out / "sizes" / "32" / "teacher.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(sizes, "tried", real)
    monkeypatch.setattr(directory.shutil, "rmtree", lambda *_, **__: None)
    assert main(["run", f"--out={out}", "--resume", "--quiet"]) == 0
    assert (out / "sizes" / "32" / "teacher.safetensors").stat().st_mtime_ns == before
    assert (out / "summary.json").exists()


def test_a_limit_that_no_size_keeps_leaves_nothing(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [w for w in SEVERAL if not w.startswith("--target-latency")]
    for limit in ("0.0001x", "0.00001ms"):
        out = f"--out={tmp_path / 'run'}"
        assert (
            main(["run", *words, f"--target-latency={limit}", f"--pretrained={trained}", out]) == 2
        )
        assert "no network around" in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "expected"), [("auto", None), ("96, 128,96", (128, 96)), ("64", (64,))]
)
def test_sizes_are_read(text: str, expected: tuple[int, ...] | None) -> None:
    assert parse_sizes(text) == expected


@pytest.mark.parametrize("text", ["", "96,", "12.5", "-3", "big", "0", "96;128", "5000"])
def test_other_sizes_are_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="image size"):
        parse_sizes(text)
    assert main(["run", "--data=digits", f"--image-size={text}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "auto" in error


def test_several_sizes_from_scratch_are_refused() -> None:
    with pytest.raises(ConfigError, match="--pretrained"):
        RunConfig(image_size="96,128")
    assert RunConfig(image_size=96).side == 96
