"""`specialise(out=...)` that was killed goes on to the same bits."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import killed_before_record
from trained_model import MEASURE, batches, latency, specialised, trained

from proxylessnas.errors import RunError
from proxylessnas.hardware.runtimes.fake import FakeRuntime

STAGES = ("measure", "candidates", "scores", "search", "derive")
FILES = ("weights.safetensors", "summary.json", "layers.txt", "choice.json", "scores_within.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    specialised(out=out)
    return out


def test_killed_again_and_again_before_a_stage_is_recorded(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies when all that the stage leaves is there but for its record."""
    out = tmp_path / "run"
    for count, stage in enumerate(STAGES):
        with killed_before_record(monkeypatch, stage), pytest.raises(KeyboardInterrupt):
            specialised(out=out)
        assert {path.stem for path in (out / "stages").glob("*.json")} == set(STAGES[:count])
    found = specialised(out=out)
    for name in FILES:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert latency(found.derive()) <= 1.02 * found.limit_ms


def test_a_finished_call_measures_and_fits_nothing_again(whole: Path) -> None:
    class Broken(FakeRuntime):
        def load(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("nothing is left to measure")

    runtime = Broken()
    found = specialised(out=whole, runtime=runtime)
    assert found.summary == json.loads((whole / "summary.json").read_text())
    assert found.measured_ms == pytest.approx(latency(found.derive()), rel=1e-4)


def test_a_stage_whose_file_was_changed_is_done_again(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    specialised(out=out)
    (out / "choice.json").write_text("{}")
    specialised(out=out)
    assert (out / "choice.json").read_bytes() == (whole / "choice.json").read_bytes()


def test_another_call_is_refused(whole: Path) -> None:
    for options, name in (
        ({"target_latency": "0.7x"}, "target_latency"),
        ({"seed": 1}, "seed"),
        ({"blocks": "5"}, "blocks"),
        ({"valid": batches(1, count=3)}, "batches"),
        ({"measure": replace(MEASURE, network_rounds=3)}, "measure"),
    ):
        with pytest.raises(RunError, match=f"another call: its {name} differs"):
            specialised(out=whole, **options)
    model = copy.deepcopy(trained())
    with torch.no_grad():
        model.get_parameter("0.weight")[0, 0, 0, 0] += 0.01
    with pytest.raises(RunError, match="another call: its weights differs"):
        specialised(model, out=whole)
