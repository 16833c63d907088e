"""Lengths and rates of a run from trained weights, where they are not given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylessnas.config import RunConfig, parse_settings
from proxylessnas.runs.defaults import ARCHITECTURE_STEPS, LENGTH, RATE, suited, with_defaults

PRETRAINED = {"pretrained": "efficientnet_lite0"}


def config_for(images: int, **asked: object) -> RunConfig:
    settings = {**PRETRAINED, **asked}
    config = parse_settings(RunConfig, with_defaults(settings))
    return suited(config, settings, images, images)


def steps(epochs: float, images: int, batch_size: int = 32) -> float:
    return epochs * -(-images // batch_size)


@given(st.integers(1, 10**6))
def test_steps_are_within_their_bounds_however_many_images_there_are(images: int) -> None:
    config = config_for(images)
    for settings in (config.teach, config.train):
        taken = steps(settings.epochs, images)
        assert LENGTH.least - 0.5 <= taken <= LENGTH.most + 0.5
        assert settings.warmup_epochs == pytest.approx(settings.epochs / 10)
        assert 0 < settings.learning_rate <= RATE
    assert steps(config.search.epochs, images) == pytest.approx(ARCHITECTURE_STEPS)


def test_two_hundred_and_five_thousand_photos() -> None:
    few, many = config_for(216), config_for(4500)
    assert steps(few.teach.epochs, 216) == pytest.approx(240)
    assert few.teach.learning_rate == pytest.approx(0.0024)
    assert (many.teach.epochs, many.train.epochs) == pytest.approx((6, 6))
    assert many.train.learning_rate == RATE


def test_what_was_given_stays() -> None:
    config = config_for(216, teach={"epochs": 2, "learning_rate": 0.01}, search={"epochs": 3})
    assert (config.teach.epochs, config.teach.learning_rate) == (2, 0.01)
    assert config.teach.warmup_epochs == pytest.approx(0.2) and config.search.epochs == 3
    # Fewer steps than there would have been: the rate goes with them where it was not given.
    assert config_for(216, train={"epochs": 1}).train.learning_rate == pytest.approx(RATE * 7 / 300)
