"""How anything is timed: all sessions open, shuffled rounds, medians of visits' medians.

A round visits sessions in shuffled order; a visit is a few warm-up inferences and some
timed runs, of which the median is kept. Slow drift of the machine then falls on all
sessions alike, and a burst of other load spoils single visits, which the median over
visits ignores. A canary session is visited again and again in between and shows drift.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ..errors import MeasurementError
from ..seeds import derive_seed
from .machine import OtherLoad, quiet
from .runtimes.base import Session

Progress = Callable[[int, int], None]
Environment = Mapping[str, str | int | float]

SHORTEST_S = 100e-6  # a timed run lasts at least this long, so that the timer means something
MOST_LOOPS = 1000
CANARY_EVERY = 8  # visits
SAVE_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Latencies of one network on one device, as they were seen.

    samples_ms: the median of every visit's timed runs, in the order of the rounds.
    environment: date, other load, pinned core, canary drift; the device where it is known.
    """

    samples_ms: tuple[float, ...]
    environment: Environment = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.samples_ms:
            raise MeasurementError("a measurement without a sample")
        if not all(math.isfinite(s) and s > 0 for s in self.samples_ms):
            raise MeasurementError(f"a measurement has the sample {min(self.samples_ms)} ms")

    @property
    def median_ms(self) -> float:
        return statistics.median(self.samples_ms)

    @property
    def spread_pct(self) -> float:
        """Robust standard deviation of one visit: 1.4826 x median absolute deviation, in %."""
        middle = self.median_ms
        deviations = [abs(s - middle) for s in self.samples_ms]
        return 100 * 1.4826 * statistics.median(deviations) / middle

    @property
    def noise_pct(self) -> float:
        """Standard error of the median, in %: 1.2533 s/√n of a normal spread s."""
        return 1.2533 * self.spread_pct / math.sqrt(len(self.samples_ms))


def measure_all(
    sessions: Mapping[str, Session],
    *,
    rounds: int | Mapping[str, int],
    runs: int,
    warmup: int,
    seed: int,
    progress: Progress | None = None,
    canary: str | None = None,
    threads: int = 1,
    known: Mapping[str, Sequence[float]] | None = None,
    save: Callable[[Mapping[str, Measurement]], None] | None = None,
) -> dict[str, Measurement]:
    """Measure every session.

    rounds: visits to each, or to each by name; those with fewer are spread over all rounds.
    runs, warmup: timed and untimed inferences a visit. seed: of the shuffles.
    progress: called with (visits done, visits in all). canary: a session visited in between
    too. threads: of the runtime; with 1 the calling thread is pinned to a core.
    known: visits already done, in ms; they are not done again. save: called every few
    seconds and at the end with what there is.

    Raises:
        MeasurementError: a session fails while it runs.
    """
    visits = {key: rounds if isinstance(rounds, int) else rounds[key] for key in sessions}
    samples = {key: list((known or {}).get(key, ())) for key in sessions}
    wanted = {key: max(0, visits[key] - len(samples[key])) for key in sessions}
    total, done = sum(wanted.values()), 0
    other, extra = OtherLoad(), list[float]()
    environment: dict[str, str | int | float] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds")
    }

    def finished() -> dict[str, Measurement]:
        environment["other_load_cores"] = round(other.so_far(), 2)
        if len(extra) >= 4:
            environment["canary_drift_pct"] = round(_drift_pct(extra), 2)
        now = dict(environment)
        return {
            key: Measurement(samples_ms=tuple(seen), environment=now)
            for key, seen in samples.items()
            if seen
        }

    with quiet(threads=threads) as core:
        environment["pinned_core"] = -1 if core is None else core
        loops = {key: _settle(key, sessions[key], warmup) for key in sessions if wanted[key]}
        saved = time.monotonic()
        for order in _rounds(wanted, seed):
            for key in order:
                samples[key].append(_visit(key, sessions[key], loops[key], runs, warmup))
                done += 1
                if canary is not None and done % CANARY_EVERY == 0:
                    extra.append(_visit(canary, sessions[canary], 1, runs, warmup))
                if progress is not None:
                    progress(done, total)
                if save is not None and time.monotonic() - saved > SAVE_EVERY_S:
                    save(finished())
                    saved = time.monotonic()
    result = finished()
    if save is not None:
        save(result)
    return result


def _rounds(visits: Mapping[str, int], seed: int) -> list[list[str]]:
    """Every round's shuffled order; a session with n of N visits is in n rounds, spread evenly."""
    most = max(visits.values(), default=0)
    rounds = []
    for r in range(most):
        order = [k for k, n in visits.items() if (r + 1) * n // most > r * n // most]
        random.Random(derive_seed(seed, "measuring order", r)).shuffle(order)
        rounds.append(order)
    return rounds


def _settle(key: str, session: Session, warmup: int) -> int:
    """Warm the session up (memory, code) and find how many inferences one timed run takes."""
    try:
        for _ in range(max(warmup, 2)):
            session()
        fastest = min(session.timed(1) for _ in range(3))
    except MeasurementError:
        raise
    except Exception as error:  # whatever the runtime raises
        raise MeasurementError(f"{key!r} fails when it is run: {error}") from error
    return max(1, min(MOST_LOOPS, math.ceil(SHORTEST_S / max(fastest, 1e-9))))


def _visit(key: str, session: Session, loops: int, runs: int, warmup: int) -> float:
    """The median of the visit's timed runs, in ms an inference."""
    try:
        for _ in range(warmup):
            session()
        return statistics.median(session.timed(loops) / loops for _ in range(runs)) * 1e3
    except MeasurementError:
        raise
    except Exception as error:  # whatever the runtime raises
        raise MeasurementError(f"{key!r} fails when it is run: {error}") from error


def _drift_pct(samples: Sequence[float]) -> float:
    """The last half's median against the first half's."""
    half = len(samples) // 2
    return 100 * (statistics.median(samples[half:]) / statistics.median(samples[:half]) - 1)
