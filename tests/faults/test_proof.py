"""A run_copy stage is proven by its files: what was changed is done again, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import assert_same_run

from proxylessnas.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def resumed(out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["run", "--resume", f"--out={out}", "--quiet"])
    return code, capsys.readouterr().err.strip()


@pytest.mark.parametrize("damage", ["deleted", "changed"])
@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("latency_table.json", "measure"),
        ("checkpoints/search-*.safetensors", "search"),
        ("architecture.json", "derive"),
        ("inherited.safetensors", "derive"),
        ("weights.safetensors", "train"),
    ],
)
def test_a_file_that_later_stages_used(
    run_copy: Path, capsys: pytest.CaptureFixture[str], name: str, stage: str, damage: str
) -> None:
    (*_, path) = sorted(run_copy.glob(name))
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b" ")
    before = {p: p.stat().st_mtime_ns for p in run_copy.glob("stages/*.json")}
    code, line = resumed(run_copy, capsys)
    assert code == 2 and "\n" not in line
    assert str(path) in line and f"stages/{stage}.json" in line
    assert {p: p.stat().st_mtime_ns for p in run_copy.glob("stages/*.json")} == before


@pytest.mark.parametrize("stage", ["search", "train"])
def test_doing_a_stage_again_does_what_follows_again(
    run_copy: Path, finished_run: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    """As the message says: its record removed."""
    (run_copy / "weights.safetensors").unlink()
    (run_copy / "stages" / f"{stage}.json").unlink()
    code, line = resumed(run_copy, capsys)
    assert code == 0, line
    assert_same_run(run_copy, finished_run)


def test_the_last_file_is_done_again(
    run_copy: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_copy / "model.onnx").write_bytes(b"damaged")
    code, line = resumed(run_copy, capsys)
    assert code == 0, line
    assert_same_run(run_copy, finished_run)


RECORDS = [
    {"files": {}},
    {"files": {}, "seconds": "long"},
    {"files": {"../../etc/hostname": "0" * 64}},
    {"files": {"/etc/hostname": "0" * 64}},
    {"files": {"missing": None}},
    {"files": {"x\0y": "0"}},
    {"files": 3},
    [],
    7,
]


@pytest.mark.parametrize("stage", ["derive", "export"])
@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_a_record_that_was_edited(
    run_copy: Path, capsys: pytest.CaptureFixture[str], stage: str, record: object
) -> None:
    """Refused in one line, or (the last stage) done again."""
    (run_copy / "stages" / f"{stage}.json").write_text(json.dumps(record))
    code, line = resumed(run_copy, capsys)
    assert "Traceback" not in line and "\n" not in line
    assert code == 2 or (code == 0 and stage == "export")
