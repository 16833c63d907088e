"""Timing by rounds, with the standard library alone: a kit carries this file along.

A round visits networks in shuffled order; a visit is a few warm-up inferences and some timed
runs, of which the median is kept. Slow drift of the machine then falls on all networks alike,
and a burst of other load spoils single visits, which the median over visits ignores. A canary
network is visited again and again in between and shows drift.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import chain

from proxylessnas.hardware.host import OtherLoad, pinned, read_clocks, waited_s
from proxylessnas.io.process import keep_freed_memory, usable_cpus

SHORTEST_S = 100e-6  # a timed run lasts at least this long, so that the timer means something
MOST_LOOPS = 1000
CANARY_EVERY = 8  # visits
SAVE_EVERY_S = 5.0


class TimedNetwork:
    """A loaded network with its input in place; calling it is one inference.

    A call returns when the outputs are there (a GPU is synchronised).
    """

    def __call__(self) -> None:
        raise NotImplementedError

    def timed(self, repeat: int) -> float:
        """Seconds that `repeat` inferences take, one after the other.

        Less the time that the calling thread could have run and another program had its core,
        where the kernel tells: on a shared machine that is most of the noise.
        """
        waited, start = waited_s(), time.perf_counter()
        for _ in range(repeat):
            self()
        elapsed = time.perf_counter() - start
        return max(elapsed - (waited_s() - waited), 0.0) or elapsed


@dataclass
class Rounds:
    """Networks that are measured together, and their samples so far.

    visits: name -> visits in all, those of an earlier call included.
    runs, warmup: timed and untimed inferences a visit. seed: of the shuffles.
    threads: of the runtime; with 1 the calling thread is pinned to a core.
    canary: a network that is visited in between too.
    samples_ms: name -> the median of every visit's timed runs, in the order of the rounds.
    runs_ms: name -> single inferences, of networks that are not timed in groups.
    environment: date, other load, pinned core, canary drift, and what the system tells of clocks.
    clock: seconds, which tell when to save. running: the name of the network that ran last.
    """

    networks: Mapping[str, TimedNetwork]
    visits: Mapping[str, int]
    runs: int
    warmup: int
    seed: int
    threads: int = 1
    canary: str | None = None
    samples_ms: dict[str, list[float]] = field(default_factory=dict)
    runs_ms: dict[str, list[float]] = field(default_factory=dict)
    environment: dict[str, str | int | float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    running: str = ""

    def missing(self) -> dict[str, int]:
        """The visits that are still to be made, of the networks that lack some."""
        left = {k: n - len(self.samples_ms.get(k, ())) for k, n in self.visits.items()}
        return {key: n for key, n in left.items() if n > 0}

    def run(
        self,
        progress: Callable[[int, int], None] = lambda done, total: None,
        save: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the missing visits, on a quiet core.

        progress: called with (visits done, visits to make) after each.
        save: called every few seconds and at the end, with samples and environment up to date.
        """
        total, saved = sum(self.missing().values()), self.clock()
        load, throttled = OtherLoad(), read_clocks().throttled
        now = datetime.now(timezone.utc)  # noqa: UP017 - a kit may meet Python 3.10
        self.environment["date"] = now.isoformat(timespec="seconds")
        if words := crowded(self.threads):
            self.environment["crowded"] = words
        keep_freed_memory()
        with pinned(self.threads == 1) as core:
            self.environment["pinned_core"] = -1 if core is None else core
            for done, _ in enumerate(self._visits(), start=1):
                progress(done, total)
                if self.clock() - saved > SAVE_EVERY_S:
                    self._observe(load, throttled)
                    save()
                    saved = self.clock()
            self._observe(load, throttled)
        save()

    def _observe(self, load: OtherLoad, throttled: int | None) -> None:
        """Other load, the clock, and throttling events since there were `throttled` of them."""
        self.environment["other_load_cores"] = round(load.so_far(), 2)
        clocks = read_clocks()
        if clocks.mhz is not None:
            self.environment["clock_mhz"] = round(clocks.mhz)
        if clocks.throttled is not None and throttled is not None:
            self.environment["throttled"] = clocks.throttled - throttled

    def _visits(self) -> Iterator[None]:
        wanted = self.missing()
        loops = {key: loops_of(self._run(key), self.warmup) for key in wanted}
        canary_ms: list[float] = []
        names = chain.from_iterable(orders(wanted, self.seed))
        for done, key in enumerate(names, start=1):
            runs = visit(self._run(key), loops[key], self.runs, self.warmup)
            ms = statistics.median(runs)
            if loops[key] == 1:
                self.runs_ms.setdefault(key, []).extend(runs)
            # Rounded as in the file: a measurement that goes on has the same samples.
            self.samples_ms.setdefault(key, []).append(float(f"{ms:.6g}"))
            if self.canary is not None and done % CANARY_EVERY == 0:
                of_canary = visit(self._run(self.canary), 1, self.runs, self.warmup)
                canary_ms.append(statistics.median(of_canary))
            yield
        half = len(canary_ms) // 2
        if half >= 2:
            ratio = statistics.median(canary_ms[half:]) / statistics.median(canary_ms[:half])
            self.environment["canary_drift_pct"] = round(100 * (ratio - 1), 2)

    def _run(self, name: str) -> TimedNetwork:
        self.running = name
        return self.networks[name]


def orders(visits: Mapping[str, int], seed: int) -> list[list[str]]:
    """Every round's shuffled order; a network with n of N visits is in n rounds, spread evenly."""
    most = max(visits.values(), default=0)
    rounds = []
    for r in range(most):
        order = [k for k, n in visits.items() if (r + 1) * n // most > r * n // most]
        random.Random(f"measuring order {seed} {r}").shuffle(order)
        rounds.append(order)
    return rounds


def crowded(threads: int) -> str:
    """That threads outnumber the cores which the process may use, in words; else empty."""
    cores = usable_cpus()
    if threads <= cores:
        return ""
    return f"{threads} threads shared {cores} core{'s' * (cores > 1)} (take no more than those)"


def loops_of(network: TimedNetwork, warmup: int) -> int:
    """Warm the network up (memory, code) and find how many inferences a timed run takes."""
    for _ in range(max(warmup, 2)):
        network()
    fastest = min(network.timed(1) for _ in range(3))
    return max(1, min(MOST_LOOPS, math.ceil(SHORTEST_S / max(fastest, 1e-9))))


def visit(network: TimedNetwork, loops: int, runs: int, warmup: int) -> list[float]:
    """A visit's timed runs, in ms an inference."""
    for _ in range(warmup):
        network()
    return [network.timed(loops) / loops * 1e3 for _ in range(runs)]


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
