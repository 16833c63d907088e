"""Whether a search paid; what a verdict says otherwise is in tests/brought."""

from __future__ import annotations

from proxylessnas.report.verdict import paid


def test_whether_a_search_paid_is_told_from_the_noise_of_the_test_images() -> None:
    by_hand = {"uniform": 0.75, "smaller_input": 0.7}
    assert paid(0.80, by_hand, 5000).startswith("the search paid: +5.0 points (± 1.6) against unif")
    assert paid(0.70, by_hand, 5000).startswith("the search did not pay: -5.0 points")
    unclear = paid(0.76, {"smaller_input": 0.75}, 400)
    assert "+1.0 points against smaller input" in unclear and "no difference under 6.0" in unclear
