"""`specialise(out=...)` that was killed goes on to the same bits."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import killed_before_record
from trained_model import MEASURE, batches, latency, specialised, trained

import proxylessnas
from proxylessnas.errors import RunError
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.surgery.saved import restored
from proxylessnas.training.train import Training

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


class Dies(Exception):
    pass


@contextmanager
def dying_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block the process dies in a training, which saves its state at every step."""
    take, left = Training.take_step, [steps]

    def step(self: Training) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Dies
        take(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "take_step", step)
        patch.setattr("proxylessnas.session.checkpoints.CHECKPOINT_SECONDS", -1.0)
        with pytest.raises(Dies):
            yield


def test_a_fine_tuning_goes_on_to_the_same_bits(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plain, killed) = (specialised(out=shutil.copytree(whole, tmp_path / n)) for n in "ab")
    plain.finetune(epochs=2)
    for steps in (3, 2):
        with dying_after(steps, monkeypatch):
            killed.finetune(epochs=2)
        killed = specialised(out=tmp_path / "b")
        assert killed.after is None
    with killed_before_record(monkeypatch, "finetune"), pytest.raises(KeyboardInterrupt):
        killed.finetune(epochs=2)
    killed.finetune(epochs=2)
    for name in ("finetuned.safetensors", "summary.json", *FILES):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    record = json.loads((tmp_path / "b" / "stages" / "finetune.json").read_text())
    assert record["accuracy"] == killed.summary["score"]


def test_a_finished_fine_tuning_is_read_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = specialised(out=shutil.copytree(whole, tmp_path / "run"))
    score = found.finetune(epochs=1)
    again = specialised(out=tmp_path / "run")
    assert again.after is not None and again.after.value == score.value
    assert again.summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    (images, _), *_ = batches(2)
    learned = found.derive()(images)
    assert torch.equal(again.derive()(images), learned)
    assert torch.equal(restored(trained(), tmp_path / "run")(images), learned)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "take_step", lambda self: 1 / 0)
        again.finetune(epochs=1)  # it is done
        with pytest.raises(ZeroDivisionError):
            again.finetune(epochs=2)  # of other settings: from the beginning
    anew = specialised(out=tmp_path / "run")
    assert anew.after is None and not torch.equal(anew.derive()(images), learned)
    anew.finetune(epochs=1)
    assert torch.equal(anew.derive()(images), learned)
    with pytest.raises(RunError, match=r"same call of specialise\(out=...\) returns its result"):
        proxylessnas.load(tmp_path / "run", model=trained())


def test_other_limits_have_directories_of_their_own(whole: Path, tmp_path: Path) -> None:
    found = specialised(out=shutil.copytree(whole, tmp_path / "run"))
    wider = found.within("0.8x")
    wider.finetune(epochs=1)
    (place,) = (tmp_path / "run" / "within").iterdir()
    assert torch.equal(
        restored(trained(), place)(batches(2)[0][0]), wider.derive()(batches(2)[0][0])
    )
    again = specialised(out=tmp_path / "run")
    assert again.after is None and again.summary == found.summary
    assert again.within("0.8x").summary == wider.summary


def test_other_data_are_said(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specialised(out=whole, quiet=False)
    assert "other data" not in capsys.readouterr().err
    specialised(out=whole, train=batches(5), quiet=False)
    said = " ".join(capsys.readouterr().err.split())
    assert "was begun with other data (the first batches differ)" in said


def test_another_call_is_refused(whole: Path) -> None:
    for options, name in (
        ({"target_latency": "0.7x"}, "target_latency"),
        ({"seed": 1}, "seed"),
        ({"blocks": "5"}, "blocks"),
        ({"candidates": "narrower"}, "candidates"),
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
