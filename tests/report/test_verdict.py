"""Whether a search paid; what a verdict says otherwise is in tests/brought."""

from __future__ import annotations

import numpy as np
import pytest

from proxylessnas.report.verdict import Rival, paid


def test_whether_a_search_paid_is_told_from_the_noise_of_the_test_images() -> None:
    """Of the images on which one of two networks alone is right, as McNemar's test has it."""
    smaller = Rival(0.7, 600, 100)
    won = paid({"uniform": Rival(0.75, 450, 200), "smaller_input": smaller}, 5000)
    assert won.startswith("the search paid: +5.0 points (± 1.0) against uniform")
    lost = paid({"uniform": Rival(0.75, 200, 450)}, 5000)
    assert lost.startswith("the search did not pay: -5.0 points (± 1.0)")
    unclear = paid({"smaller_input": Rival(0.75, 24, 20)}, 400)
    assert "+1.0 points against smaller input" in unclear and "no difference under 3.3" in unclear


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (3, 1), (20, 20), (15, 40)])
def test_the_interval_of_matched_pairs_holds_the_truth(won: int, lost: int) -> None:
    """19 of 20 times, of 4,000 sets drawn with these rates; a few more at counts near 0."""
    n, generator = 200, np.random.default_rng(0)
    rates = [won / n, lost / n, 1 - (won + lost) / n]
    held = 0
    for one, other, _ in generator.multinomial(n, rates, 4000):
        points, half = Rival(0.5, one, other).points(n)
        held += abs(points - 100 * (won - lost) / n) <= half
    assert held / 4000 > 0.935
    assert held / 4000 < 0.97 or won + lost < 5
