"""How anything is timed: all sessions open, visited in rounds (`rounds.py`) on a quiet core."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from proxylessnas.config import MeasureSettings
from proxylessnas.errors import MeasurementError, UserError, in_words
from proxylessnas.export.quiet import denormal_mode
from proxylessnas.hardware.rounds import Rounds, quantile
from proxylessnas.hardware.runtimes.base import Session

ProgressCallback = Callable[[int, int], None]
Environment = Mapping[str, str | int | float]

TAILS = {"p95": 0.95, "p99": 0.99}
MEND = "mend this module, or measure where PyTorch runs it as it is (the runtime torch)"
BUSY_CORES, DRIFTED_PCT = 0.3, 5.0  # from here on a measurement was disturbed


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Latencies of one network on one device, as they were measured.

    samples_ms: the median of every visit's timed runs, in the order of the rounds.
    runs_ms: single inferences, where they were timed one by one; tables do not keep them.
    environment: date, other load, pinned core, canary drift; the device where it is known.
    """

    samples_ms: tuple[float, ...]
    runs_ms: tuple[float, ...] = field(default=(), compare=False)
    environment: Environment = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.samples_ms:
            raise MeasurementError("a measurement without a sample")
        if not all(math.isfinite(s) and s > 0 for s in self.samples_ms):
            raise MeasurementError(f"a measurement has the sample {min(self.samples_ms)} ms")

    @property
    def median_ms(self) -> float:
        return statistics.median(self.samples_ms)

    def tail_ms(self, share: float) -> float | None:
        """The latency that this share of inferences does not exceed, 0.95 or 0.99.

        None where too few were timed to have one beyond it.
        """
        enough = len(self.runs_ms) * (1 - share) >= 1 - 1e-9
        return quantile(self.runs_ms, share) if enough else None

    @property
    def tail_words(self) -> str:
        """`p95 1.30, p99 1.52`, of those that are known."""
        tails = {name: self.tail_ms(share) for name, share in TAILS.items()}
        return ", ".join(f"{name} {ms:.3f}" for name, ms in tails.items() if ms is not None)

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


def measure_sessions(
    sessions: Mapping[str, Session],
    visits: Mapping[str, int],
    settings: MeasureSettings,
    *,
    seed: int,
    canary: str | None = None,
    earlier: Mapping[str, Sequence[float]] | None = None,
    progress: ProgressCallback | None = None,
    save: Callable[[Mapping[str, Measurement]], None] | None = None,
) -> dict[str, Measurement]:
    """Measure loaded networks together.

    visits: session -> visits in all. settings: runs and warmup of a visit, threads.
    seed: of the shuffles. canary: a session that is visited in between too.
    earlier: samples in ms of visits that are not made again.
    progress: called with (visits done, visits to make).
    save: called every few seconds and at the end with the measurements so far.

    Raises:
        MeasurementError: a session fails while it runs; it is named, with its error's own words.
    """
    rounds = Rounds(
        sessions,
        visits,
        runs=settings.runs,
        warmup=settings.warmup,
        seed=seed,
        threads=settings.threads,
        canary=canary,
        samples_ms={key: list(samples) for key, samples in (earlier or {}).items()},
    )
    # The training that follows must not compute otherwise than a training that is resumed.
    with denormal_mode(flushed=True):
        try:
            rounds.run(
                progress or (lambda done, total: None),
                (lambda: save(_measurements(rounds))) if save else (lambda: None),
            )
        except UserError:
            raise
        except Exception as error:  # whatever the runtime and the module raise
            failing = sessions[rounds.running].label if rounds.running else "a network"
            raise MeasurementError(
                f"{failing} ran when it was loaded, and fails while it is measured: "
                f"{in_words(error)}; {MEND}"
            ) from error
    return _measurements(rounds)


def _measurements(rounds: Rounds) -> dict[str, Measurement]:
    environment = dict(rounds.environment)
    return {
        name: Measurement(
            samples_ms=tuple(samples),
            runs_ms=tuple(rounds.runs_ms.get(name, ())),
            environment=environment,
        )
        for name, samples in rounds.samples_ms.items()
        if samples
    }


def disturbance(measurements: Iterable[Measurement]) -> str:
    """What disturbed these while they were measured, in words; empty on a machine at rest."""
    environments = [m.environment for m in measurements]

    def most(name: str) -> float:
        values = [environment.get(name) for environment in environments]
        return max((v for v in values if isinstance(v, int | float)), key=abs, default=0.0)

    load, drift = most("other_load_cores"), most("canary_drift_pct")
    words = list(dict.fromkeys(str(e["crowded"]) for e in environments if "crowded" in e))
    if load >= BUSY_CORES:
        words.append(f"other programs kept {load:.1f} cores busy")
    if abs(drift) >= DRIFTED_PCT:
        words.append(f"the canary's latency changed by {drift:+.0f} %")
    if throttled := most("throttled"):
        words.append(f"the processor throttled {throttled:.0f} times")
    return " and ".join(words)
