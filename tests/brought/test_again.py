"""More training after a bad result: a later stage is done again with other settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import TINY_RUN

from proxylessnas.cli.main import main

STAGES = ("measure", "search", "derive", "train", "evaluate", "export")


def stages(run: Path) -> set[str]:
    return {path.stem for path in (run / "stages").glob("*.json")}


def test_a_network_is_trained_longer_upon_what_was_found(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train DIR --train.epochs 3`: search and derive stay, what follows is marked undone."""
    search = (run_copy / "stages" / "search.json").read_bytes()
    weights = (run_copy / "weights.safetensors").read_bytes()
    assert main(["train", str(run_copy), "--train.epochs=3"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "train: done again with these settings" in said
    assert "no longer valid: evaluate, export" in said
    assert stages(run_copy) == {"measure", "search", "derive", "train"}
    assert (run_copy / "stages" / "search.json").read_bytes() == search
    assert (run_copy / "weights.safetensors").read_bytes() != weights
    assert not (run_copy / "summary.json").exists()
    assert main(["run", "--resume", f"--out={run_copy}", "--quiet"]) == 0
    assert stages(run_copy) == set(STAGES)
    facts = json.loads((run_copy / "summary.json").read_text())
    assert facts["verdict"] is not None


def test_deriving_again_undoes_the_training_too(run_copy: Path) -> None:
    assert main(["derive", str(run_copy), "--derive.top-k=2", "--quiet"]) == 0
    assert stages(run_copy) == {"measure", "search", "derive"}


def test_the_same_settings_again_do_nothing(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stages(run_copy)
    assert main(["train", str(run_copy), "--train.epochs=2"]) == 0
    assert "train: done already" in capsys.readouterr().err
    assert stages(run_copy) == before


def test_a_derivation_that_is_done_says_no_test_accuracy(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The accuracy in its record is of the validation part."""
    assert main(["derive", str(run_copy)]) == 0
    out, err = capsys.readouterr()
    assert "derive: done already" in err and "accuracy" not in out + err


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--resume", "--train.epochs=3"],  # asks for no stage by its name
        ["train", "--search.epochs=7"],  # another stage's setting
        ["evaluate", "--train.epochs=3"],
    ],
)
def test_what_would_change_under_a_finished_stage_is_refused_with_the_way(
    run_copy: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = stages(run_copy)
    assert main([*words, f"--out={run_copy}"]) == 2
    said = capsys.readouterr().err
    stage = words[-1].removeprefix("--").partition(".")[0]
    assert f"do that stage again (proxylessnas {stage} {run_copy} --{stage}. ...)" in said
    assert stages(run_copy) == before


def test_checkpoints_go_with_their_stage_but_for_the_search_s_last(finished_run: Path) -> None:
    """`derive --latencies` goes on from the search's last one."""
    kept = sorted(path.name for path in (finished_run / "checkpoints").glob("*.safetensors"))
    record = json.loads((finished_run / "stages" / "search.json").read_text())
    assert [f"checkpoints/{name}" for name in kept] == list(record["files"])


def test_checkpoints_stay_where_that_is_asked(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["run", *TINY_RUN, "--train.epochs=1", "--keep-checkpoints", f"--out={out}"]) == 0
    assert list((out / "checkpoints").glob("train-*.safetensors"))


def test_a_run_of_an_earlier_version_goes_on_and_says_what_it_lacks(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_copy / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.strip().startswith("ridge:")))
    assert main(["run", "--resume", f"--out={run_copy}"]) == 0
    assert (
        "of an earlier version, without candidates.ridge: as that version"
        in capsys.readouterr().err
    )
