"""What every benchmark of known answers compares with."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

RANDOM = 20  # networks, of which the best by its true accuracy is compared with


def best_of_random(accuracies: ArrayLike) -> float:
    """The expected best of `RANDOM` networks by their true accuracy, of all that may be drawn."""
    # P(the best is the i-th) by order statistics of draws with replacement.
    ordered = np.sort(np.asarray(accuracies, np.float64))
    cumulative = (np.arange(1, len(ordered) + 1) / len(ordered)) ** RANDOM
    return float((ordered * np.diff(cumulative, prepend=0.0)).sum())
