"""Continuous inference for minutes: what a device does once it is warm.

A phone or a small board slows down within minutes, when it has heated up. Some networks slow down
more than others, so that the ranking of networks may change too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from proxylessnas.errors import MeasurementError, foreign
from proxylessnas.export.quiet import denormal_mode
from proxylessnas.hardware.host import Clocks, pinned, read_clocks
from proxylessnas.hardware.rounds import TimedNetwork, quantile
from proxylessnas.hardware.timing import ProgressCallback

TURN_S = 0.25  # of one network, before the next one's turn
LONGEST_STEP_S = 60.0
LEAST_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Step:
    """A minute: of every network the median and the 95th percentile, in ms; clocks at its end."""

    seconds: float
    median_ms: Mapping[str, float]
    p95_ms: Mapping[str, float]
    clocks: Clocks


@dataclass(frozen=True, kw_only=True)
class Sustained:
    """Steps of continuous inference."""

    steps: tuple[Step, ...]

    def drift_pct(self, name: str) -> float:
        """By how much a network is slower in the last step than in the first."""
        return 100 * (self.steps[-1].median_ms[name] / self.steps[0].median_ms[name] - 1)

    def ranking(self, step: int) -> list[str]:
        """The networks of a step, the fastest first."""
        medians = self.steps[step].median_ms
        return sorted(medians, key=lambda name: medians[name])

    @property
    def throttled(self) -> int | None:
        """Throttling events meanwhile; None where the system does not count them."""
        first, last = self.steps[0].clocks.throttled, self.steps[-1].clocks.throttled
        return None if first is None or last is None else last - first


def sustain(
    networks: Mapping[str, TimedNetwork],
    seconds: float,
    *,
    threads: int = 1,
    clock: Callable[[], float] = time.monotonic,
    clocks: Callable[[], Clocks] | None = None,
    progress: ProgressCallback = lambda done, total: None,
) -> Sustained:
    """Run networks in turns of a quarter of a second, without a pause.

    seconds: in all, in steps of a minute, or of a quarter where that is less.
    clock: seconds. clocks: the processor's. progress: called with (seconds done, in all).

    Raises:
        MeasurementError: a network fails while it runs.
    """
    length = min(LONGEST_STEP_S, seconds / LEAST_STEPS)
    steps: list[Step] = []
    failure = "a network fails while it is measured"
    with foreign(MeasurementError, failure), denormal_mode(flushed=True), pinned(threads == 1):
        start = clock()
        while clock() - start < seconds - 1e-9:
            end = start + (len(steps) + 1) * length
            samples = _step(networks, end, clock)
            done = clock() - start
            steps.append(
                Step(
                    seconds=done,
                    median_ms={name: statistics.median(ms) for name, ms in samples.items()},
                    p95_ms={name: quantile(ms, 0.95) for name, ms in samples.items()},
                    clocks=(clocks or read_clocks)(),
                )
            )
            progress(min(round(done), round(seconds)), round(seconds))
    return Sustained(steps=tuple(steps))


def _step(
    networks: Mapping[str, TimedNetwork], end: float, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Milliseconds of single inferences until the clock shows `end`; of each network some."""
    samples: dict[str, list[float]] = {name: [] for name in networks}
    while True:
        for name, network in networks.items():
            turn = clock() + TURN_S
            while True:
                samples[name].append(1e3 * network.timed(1))
                if clock() >= min(turn, end):
                    break
        if clock() >= end:
            return samples
