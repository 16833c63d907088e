"""`run --pretrained --budget`: the budget takes away, and says what it cannot do."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from proxylessnas.cli.main import main
from proxylessnas.config import RunConfig, TeachSettings
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.runs.within_budget import LEAST_STEPS, _within, shares
from proxylessnas.session import finishing
from proxylessnas.training.ranks import ALONE
from tests.runs import test_specialised

trained = test_specialised.trained
WORDS = [word for word in test_specialised.WORDS if "epochs" not in word]


def test_a_budget_that_is_too_short_is_refused_before_anything_is_done(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["run", *WORDS, f"--pretrained={trained}", f"--out={out}", "--budget=20s"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "20s is too short" in error and "--image-size" in error
    assert not out.exists()


def test_what_fits_is_not_shortened_and_what_is_fitted_is_kept(
    trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert main(["run", *WORDS, f"--pretrained={trained}", f"--out={out}", "--budget=30m"]) == 0
    kept = json.loads((out / "budget.json").read_text())
    assert kept["fitted"] == ["teach", "candidates", "measure", "search", "train"]
    config = RunDirectory(out).read_config()
    images = 216  # of 240, without the validation part
    assert config.teach.epochs * -(-images // 32) == pytest.approx(240)
    assert json.loads((out / "summary.json").read_text())["baselines"]


def test_fewer_steps_take_a_lower_rate_and_keep_the_share_of_warming_up() -> None:
    settings = TeachSettings(epochs=6, learning_rate=0.003, warmup_epochs=0.6)
    shorter = _within(settings, 150, 100)
    assert (shorter.epochs, shorter.warmup_epochs) == pytest.approx((1.5, 0.15))
    assert shorter.learning_rate == pytest.approx(0.0015)
    assert _within(settings, 900, 100) == settings  # more time changes nothing
    assert _within(settings, -5, 100).epochs == LEAST_STEPS / 100


def test_the_baselines_have_a_share_where_they_are_wanted() -> None:
    pretrained = {"pretrained": "efficientnet_lite0"}
    assert "by-hand" in shares(RunConfig(**pretrained, baselines=True))
    assert "by-hand" not in shares(RunConfig(**pretrained, baselines=False))


@pytest.mark.parametrize(("spare", "has_time"), [(11.0, True), (9.0, False), (None, True)])
def test_baselines_that_would_break_the_budget_are_left_out(
    spare: float | None, has_time: bool
) -> None:
    """One takes about as long as the training of the network that was found."""
    session = SimpleNamespace(
        budget=None if spare is None else SimpleNamespace(spare=spare),
        ranks=ALONE,
    )
    assert finishing.has_time(session, 10.0) is has_time  # type: ignore[arg-type]
