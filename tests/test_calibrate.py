"""The correction of sums of blocks to whole networks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylessnas.hardware.calibrate import fit

RANDOM = np.random.default_rng(0)
SUMS = np.linspace(2.0, 12.0, 12)
PROPERTIES = {
    "block": RANDOM.uniform(5, 20, 12),
    "MB in and out": RANDOM.uniform(0.5, 4, 12),
    "MB of weights": RANDOM.uniform(1, 16, 12),
}


@given(st.floats(0.5, 2), st.floats(-0.5, 2), st.integers(3, 12))
def test_a_line_is_found_exactly_and_nothing_else(a: float, b: float, count: int) -> None:
    sums = SUMS[12 - count :]
    found = fit(a * sums + b, sums, {k: v[:count] for k, v in PROPERTIES.items()})
    assert (found.a, found.b) == pytest.approx((a, b), abs=1e-6)
    assert sum(abs(w) for w in found.weights.values()) < 1e-6
    assert found.residual_pct < 1e-4 and not found.fallback


def test_what_blocks_alone_hide_is_priced() -> None:
    weights, blocks = PROPERTIES["MB of weights"], PROPERTIES["block"]
    measured = 1.1 * SUMS + 0.5 + 0.1 * weights - 0.05 * blocks
    found = fit(measured, SUMS, PROPERTIES)
    assert found.weights["MB of weights"] == pytest.approx(0.1, rel=0.1)
    assert found.weights["block"] == pytest.approx(-0.05, rel=0.1)
    assert found.residual_pct < 0.2 < fit(measured, SUMS).residual_pct


def test_no_block_may_become_free() -> None:
    blocks = PROPERTIES["block"]
    measured = 1.1 * SUMS + 0.5 - 0.05 * blocks
    units = {name: np.ones(2) for name in PROPERTIES}
    dear, cheap = np.array([1.0, 2.0]), np.array([1.0, 0.04])
    assert fit(measured, SUMS, PROPERTIES, {**units, "ms": dear}).weights
    assert not fit(measured, SUMS, PROPERTIES, {**units, "ms": cheap}).weights


def test_noise_is_not_priced() -> None:
    errors = []
    for seed in range(20):
        noise = 1 + 0.03 * np.random.default_rng(seed).standard_normal(12)
        found = fit((SUMS + 1) * noise, SUMS, PROPERTIES)
        predicted = found.a * SUMS + found.b
        predicted = predicted + sum(w * PROPERTIES[k] for k, w in found.weights.items())
        errors.append(np.abs(predicted / (SUMS + 1) - 1).mean())
    assert np.mean(errors) < 0.02


def test_few_networks_have_a_line_alone() -> None:
    found = fit(1.5 * SUMS[:5] + 1, SUMS[:5], {k: v[:5] for k, v in PROPERTIES.items()})
    assert (found.a, found.b) == pytest.approx((1.5, 1))
    assert not found.weights


def test_a_property_that_never_varies_is_left_out() -> None:
    found = fit(SUMS + 1, SUMS, {"block": np.full(12, 7.0)})
    assert (found.a, found.b) == pytest.approx((1, 1)) and not found.weights


@pytest.mark.parametrize(
    ("measured", "sums", "why"),
    [
        ([2.0, 3.0], [1.0, 2.0], "only 2 whole networks"),
        ([1.0, 1.0, 1.0], [1.0, 1.001, 1.002], "cost almost the same"),
        ([3.0, 2.0, 1.0], [1.0, 2.0, 3.0], "slope is"),
    ],
)
def test_a_fit_that_cannot_be_is_the_raw_sum(
    measured: list[float], sums: list[float], why: str
) -> None:
    found = fit(np.array(measured), np.array(sums))
    assert why in found.fallback
    assert found.a == 1
    assert found.b == pytest.approx(float(np.mean(measured) - np.mean(sums)))
