"""Timing by rounds, and nothing but the standard library: a kit carries this file along.

A round visits sessions in shuffled order; a visit is a few warm-up inferences and some
timed runs, of which the median is kept. Slow drift of the machine then falls on all
sessions alike, and a burst of other load spoils single visits, which the median over
visits ignores. A canary session is visited again and again in between and shows drift.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

SHORTEST_S = 100e-6  # a timed run lasts at least this long, so that the timer means something
MOST_LOOPS = 1000
CANARY_EVERY = 8  # visits


class Timed(Protocol):
    """A loaded network."""

    def __call__(self) -> None:
        """One inference."""

    def timed(self, repeat: int) -> float:
        """Seconds that `repeat` inferences take."""
        ...


def run(
    sessions: Mapping[str, Timed],
    visits: Mapping[str, int],
    *,
    runs: int,
    warmup: int,
    seed: int,
    canary: str | None,
    note: Callable[[str, float], None],
) -> list[float]:
    """Visit every session so often; return the canary's extra visits, in ms.

    note: called after each visit with the session's name and the median of its runs in ms.
    """
    loops = {key: settle(sessions[key], warmup) for key, n in visits.items() if n}
    extra: list[float] = []
    done = 0
    for order in orders(visits, seed):
        for key in order:
            note(key, visit(sessions[key], loops[key], runs, warmup))
            done += 1
            if canary is not None and done % CANARY_EVERY == 0:
                extra.append(visit(sessions[canary], 1, runs, warmup))
    return extra


def orders(visits: Mapping[str, int], seed: int) -> list[list[str]]:
    """Every round's shuffled order; a session with n of N visits is in n rounds, spread evenly."""
    most = max(visits.values(), default=0)
    rounds = []
    for r in range(most):
        order = [k for k, n in visits.items() if (r + 1) * n // most > r * n // most]
        random.Random(f"measuring order {seed} {r}").shuffle(order)
        rounds.append(order)
    return rounds


def settle(session: Timed, warmup: int) -> int:
    """Warm the session up (memory, code) and find how many inferences one timed run takes."""
    for _ in range(max(warmup, 2)):
        session()
    fastest = min(session.timed(1) for _ in range(3))
    return max(1, min(MOST_LOOPS, math.ceil(SHORTEST_S / max(fastest, 1e-9))))


def visit(session: Timed, loops: int, runs: int, warmup: int) -> float:
    """The median of a visit's timed runs, in ms an inference."""
    for _ in range(warmup):
        session()
    return statistics.median(session.timed(loops) / loops for _ in range(runs)) * 1e3


def drift_pct(samples: Sequence[float]) -> float:
    """The last half's median against the first half's."""
    half = len(samples) // 2
    return 100 * (statistics.median(samples[half:]) / statistics.median(samples[:half]) - 1)
