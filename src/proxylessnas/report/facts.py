"""What a run's records say, as one frozen value: the report is drawn from this and nothing else.

`records.facts_of` reads it from a run's files. A stage that is not finished leaves its part None,
and its name in `missing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxylessnas.architecture import Architecture
from proxylessnas.report.shapes import Layer

SEARCHES = ("search", "adapt")  # stages of metrics.jsonl in which α learns


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network beside others. accuracy: on the test part. ms: measured."""

    name: str
    accuracy: float | None
    ms: float | None
    parameters: int | None = None
    macs: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out. interval: 95 %, of the accuracy. rows: the network first, then baselines.

    limit_ms: the limit, where the rows were measured in the rounds that it was kept in; None where
    they are of rounds of their own.
    """

    accuracy: float | None
    interval: tuple[float, float]
    images: int
    training_accuracy: float | None
    rows: tuple[Row, ...]
    limit_ms: float | None = None
    classes: tuple[str, ...] = ()
    counts: tuple[tuple[int, ...], ...] = ()
    mistakes: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Latency:
    """In milliseconds; None where it is not known (yet). noise_pct: of the measurement.

    file: that was measured.
    """

    target: float | None = None
    predicted: float | None = None
    measured: float | None = None
    noise_pct: float | None = None
    drift_pct: float | None = None
    why_not: str = ""
    file: str = "model.onnx"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One searched position: its candidates with their costs and what became of them.

    probabilities: empty where the road that found the network has none. costs: by
    name, a number a candidate. history: [moment][candidate], probabilities.
    """

    name: str
    chosen: str
    candidates: tuple[str, ...]
    probabilities: tuple[float, ...]
    costs: Mapping[str, tuple[float, ...]]
    history: tuple[tuple[float, ...], ...] = ()

    def cost(self, name: str) -> float | None:
        """What the chosen candidate costs."""
        if name not in self.costs or self.chosen not in self.candidates:
            return None
        return self.costs[name][self.candidates.index(self.chosen)]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A network that was scored on the validation part when a network was derived."""

    of: str
    predicted_ms: float | None
    measured_ms: float | None
    score: float | None
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class Peer:
    """What a published network chose, in this run's space and at its prices.

    What it would score here is not known.
    """

    name: str
    predicted_ms: float


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A run. curves: stage -> name -> [(step, value)]. moments: steps of the choices' histories.

    missing: stages that are not finished. seconds: of those that are. fixed: costs that all
    networks share. device: what latencies are of. environments: of the measuring.
    """

    name: str
    directory: str
    settings: Mapping[str, Any]
    missing: tuple[str, ...]
    seconds: Mapping[str, float]
    outcome: Outcome | None
    latency: Latency
    architecture: Architecture | None
    layers: tuple[Layer, ...]
    choices: tuple[Choice, ...]
    moments: tuple[int, ...]
    fixed: Mapping[str, float]
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
    scored: tuple[Scored, ...]
    peers: tuple[Peer, ...]
    networks: Sequence[Mapping[str, Any]]
    validation: Mapping[str, Any] | None
    disturbance: str
    device: Mapping[str, Any]
    environments: Sequence[Mapping[str, Any]]
    entropy: float | None
    verdict: Mapping[str, Any] | None
    paid: str
    versions: Mapping[str, str]
