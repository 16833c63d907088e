"""How anything is timed: all sessions open, visited in rounds (`rounds.py`) on a quiet core."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import torch

from proxylessnas.errors import MeasurementError, UserError, one_line
from proxylessnas.hardware import rounds as rounds_of
from proxylessnas.hardware.host import OtherLoad, keep_memory, pinned
from proxylessnas.hardware.runtimes.base import Session

Progress = Callable[[int, int], None]
Environment = Mapping[str, str | int | float]

SAVE_EVERY_S = 5.0
BUSY_CORES, DRIFTED_PCT = 0.3, 5.0  # from here on a measurement was disturbed


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
    total, done, saved = sum(wanted.values()), 0, time.monotonic()
    other = OtherLoad()
    environment: dict[str, str | int | float] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds")
    }

    def so_far() -> dict[str, Measurement]:
        environment["other_load_cores"] = round(other.so_far(), 2)
        now = dict(environment)
        return {
            key: Measurement(samples_ms=tuple(seen), environment=now)
            for key, seen in samples.items()
            if seen
        }

    def note(key: str, ms: float) -> None:
        nonlocal done, saved
        samples[key].append(float(f"{ms:.6g}"))  # as in the file: a resumed run sees the same
        done += 1
        if progress is not None:
            progress(done, total)
        if save is not None and time.monotonic() - saved > SAVE_EVERY_S:
            save(so_far())
            saved = time.monotonic()

    with _quiet(threads=threads) as core:
        environment["pinned_core"] = -1 if core is None else core
        try:
            extra = rounds_of.run(
                sessions, wanted, runs=runs, warmup=warmup, seed=seed, canary=canary, note=note
            )
        except UserError:
            raise
        except Exception as error:  # whatever the runtime raises while it runs
            raise MeasurementError(
                f"a network fails while it is measured: {one_line(error)}"
            ) from error
    if len(extra) >= 4:
        environment["canary_drift_pct"] = round(rounds_of.drift_pct(extra), 2)
    result = so_far()
    if save is not None:
        save(result)
    return result


def disturbance(measurements: Iterable[Measurement]) -> str:
    """What else went on while these were measured, in words; empty on a machine at rest."""

    def most(name: str) -> float:
        seen = [m.environment.get(name) for m in measurements]
        return max((v for v in seen if isinstance(v, int | float)), key=abs, default=0.0)

    measurements = list(measurements)
    load, drift = most("other_load_cores"), most("canary_drift_pct")
    words = [f"other programs kept {load:.1f} cores busy"] if load >= BUSY_CORES else []
    if abs(drift) >= DRIFTED_PCT:
        words.append(f"the canary's latency changed by {drift:+.0f} %")
    return " and ".join(words)


@contextlib.contextmanager
def _quiet(*, threads: int) -> Iterator[int | None]:
    """Conditions for timing: pinned to a core if `threads` is 1; denormals flushed.

    Yields the core, or None where nothing was pinned. Everything is put back afterwards:
    the training that follows must not compute otherwise than one that is resumed.
    """
    keep_memory()
    with pinned(threads == 1) as core, _denormals_flushed():
        yield core


@contextlib.contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Activations of untrained networks can be denormal, which is slow: no fault of the device."""
    before = bool((torch.tensor([1e-40]) * 1.0 == 0).item())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
