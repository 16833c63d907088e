"""The correction of sums of blocks to whole networks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylessnas.hardware.fit import fit

SUMS = np.linspace(2.0, 12.0, 12)
COUNTS = np.random.default_rng(0).integers(5, 21, 12).astype(float)


@given(st.floats(0.5, 2), st.floats(-0.5, 2), st.integers(3, 12))
def test_a_line_is_found_exactly_and_nothing_else(a: float, b: float, count: int) -> None:
    sums = SUMS[12 - count :]
    found = fit(a * sums + b, sums, COUNTS[:count])
    assert (found.a, found.b, found.d) == pytest.approx((a, b, 0), abs=1e-6)
    assert found.residual_pct < 1e-4 and not found.fallback


@pytest.mark.parametrize("d", [-0.05, 0.1])
def test_a_price_of_every_block_is_found(d: float) -> None:
    measured = 1.1 * SUMS + 0.5 + d * COUNTS
    found = fit(measured, SUMS, COUNTS, smallest=0.5)
    assert (found.a, found.b, found.d) == pytest.approx((1.1, 0.5, d), rel=0.2)
    assert found.residual_pct < 0.2 < fit(measured, SUMS).residual_pct


def test_no_block_may_become_free() -> None:
    measured = 1.1 * SUMS + 0.5 - 0.05 * COUNTS
    assert fit(measured, SUMS, COUNTS, smallest=0.1).d < -0.01
    assert fit(measured, SUMS, COUNTS, smallest=0.001).d > -0.001


def test_noise_is_not_fitted() -> None:
    errors = []
    for seed in range(20):
        noise = 1 + 0.03 * np.random.default_rng(seed).standard_normal(12)
        found = fit((SUMS + 1) * noise, SUMS, COUNTS, smallest=0.2)
        predicted = found.a * SUMS + found.b + found.d * COUNTS
        errors.append(np.abs(predicted / (SUMS + 1) - 1).mean())
    assert np.mean(errors) < 0.02


def test_few_networks_have_a_line_alone() -> None:
    found = fit(1.5 * SUMS[:5] + 1 + 0.1 * COUNTS[:5], SUMS[:5], COUNTS[:5], smallest=1.0)
    assert found.d == 0 and not found.fallback


def test_a_count_that_never_varies_is_left_out() -> None:
    found = fit(SUMS + 1, SUMS, np.full(12, 7.0), smallest=1.0)
    assert (found.a, found.b, found.d) == pytest.approx((1, 1, 0))


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
