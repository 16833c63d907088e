"""What may watch a run: a small protocol, and frozen records of what happened.

    class Loss(Callback):
        def on_step(self, metrics):
            print(metrics.step, float(metrics.loss))

    proxylessnas.search(..., callbacks=[Loss()])

Callbacks see what happens and change nothing, with one exception: whoever raises `StopStage`
in `on_step` or `on_architecture_step` ends the stage after this step, as if its steps had been
planned so. On several ranks every rank calls its callbacks with the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

EVERY = 20  # steps from one record of the log to the next
MOMENTS = 60  # of a stage, whose probabilities are kept: enough for a curve


@dataclass(frozen=True, kw_only=True)
class RunMetrics:
    """A run begins. settings: every setting as plain values. directory: empty in memory."""

    settings: Mapping[str, Any]
    directory: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepMetrics:
    """A weight step of a search, or a step of a training.

    stage: `search` or `train`. step: steps taken, of `total`. phase: `warm-up`, `search` or
    `training`. loss: a scalar tensor on the device; `float(loss)` waits for a GPU.
    rate_factor: what every learning rate is multiplied with; under 1 after a return to an
    earlier state, because numbers were not finite.
    """

    stage: str
    step: int
    total: int
    phase: str
    loss: Tensor | None
    rate_factor: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ArchitectureMetrics:
    """An architecture step.

    loss: on the validation batch. expected: the expected costs by name, over the full softmax.
    multipliers: the constraint's, one a cost. probabilities: [choices, candidates], 0 at pads.
    mask: the same shape, True where there is a candidate.
    """

    step: int
    total: int
    loss: float
    expected: Mapping[str, float]
    multipliers: tuple[float, ...]
    probabilities: Tensor
    mask: Tensor

    @property
    def entropy(self) -> float:
        """Mean over the choices of H(p) / log N: 1 where nothing was learned, 0 decided."""
        return mean_entropy(self.probabilities, self.mask)


@dataclass(frozen=True, kw_only=True)
class StageMetrics:
    """A stage ended: its name, what its record says, and the seconds it took."""

    stage: str
    facts: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class EndMetrics:
    """A run ended. facts: the summary, where it finished."""

    status: Literal["finished", "stopped", "failed"]
    facts: Mapping[str, Any] = field(default_factory=dict)


class StopStage(Exception):
    """Raised by a callback: this stage has taken steps enough."""


class Callback:
    """Does nothing at every event; override what matters."""

    def on_start(self, metrics: RunMetrics) -> None: ...

    def on_step(self, metrics: StepMetrics) -> None: ...

    def on_architecture_step(self, metrics: ArchitectureMetrics) -> None: ...

    def on_stage_end(self, metrics: StageMetrics) -> None: ...

    def on_end(self, metrics: EndMetrics) -> None: ...


class Callbacks(Callback):
    """Several callbacks as one, called in their order."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.callbacks = tuple(callbacks)

    def __bool__(self) -> bool:
        return bool(self.callbacks)

    def on_start(self, metrics: RunMetrics) -> None:
        for callback in self.callbacks:
            callback.on_start(metrics)

    def on_step(self, metrics: StepMetrics) -> None:
        for callback in self.callbacks:
            callback.on_step(metrics)

    def on_architecture_step(self, metrics: ArchitectureMetrics) -> None:
        for callback in self.callbacks:
            callback.on_architecture_step(metrics)

    def on_stage_end(self, metrics: StageMetrics) -> None:
        for callback in self.callbacks:
            callback.on_stage_end(metrics)

    def on_end(self, metrics: EndMetrics) -> None:
        for callback in self.callbacks:
            callback.on_end(metrics)


class EarlyStopping(Callback):
    """Ends a stage whose value has not improved for `patience` looks in a row.

    monitor: `loss` (of weight or training steps), `valid_loss` (of architecture steps) or
        `entropy` (of the architecture parameters).
    patience: looks without an improvement by more than `min_delta`. every: steps a look; a
        look sees the mean of the values since the one before, because single batches are noise.
    below: ends the stage as soon as the mean is under this value, whatever the patience.
    """

    def __init__(
        self,
        monitor: Literal["loss", "valid_loss", "entropy"] = "valid_loss",
        *,
        patience: int = 10,
        every: int = 50,
        min_delta: float = 0.0,
        below: float = -math.inf,
    ) -> None:
        self.monitor, self.patience, self.every = monitor, patience, every
        self.min_delta, self.below = min_delta, below
        self._begin("")

    def _begin(self, stage: str) -> None:
        self.stage, self.best, self.looks_without_gain = stage, math.inf, 0
        self.values: list[float] = []

    def on_step(self, metrics: StepMetrics) -> None:
        if metrics.stage != self.stage:
            self._begin(metrics.stage)
        if self.monitor == "loss" and metrics.loss is not None:
            self._add(float(metrics.loss))

    def on_architecture_step(self, metrics: ArchitectureMetrics) -> None:
        if self.monitor != "loss":
            self._add(metrics.entropy if self.monitor == "entropy" else metrics.loss)

    def _add(self, value: float) -> None:
        self.values.append(value)
        if len(self.values) < self.every:
            return
        mean, self.values = sum(self.values) / len(self.values), []
        improved = mean < self.best - self.min_delta
        self.best = min(self.best, mean)
        self.looks_without_gain = 0 if improved else self.looks_without_gain + 1
        if mean < self.below or self.looks_without_gain >= self.patience:
            raise StopStage


class MetricsLog(Callback):
    """One record at least every `EVERY` steps, and at a stage's last, for `write(fields)`.

    About `MOMENTS` of them hold the probabilities of every choice's candidates.
    """

    def __init__(self, write: Callable[..., object]) -> None:
        self.write = write
        self.architecture: ArchitectureMetrics | None = None

    def on_architecture_step(self, metrics: ArchitectureMetrics) -> None:
        self.architecture = metrics

    def on_step(self, metrics: StepMetrics) -> None:
        every = max(1, min(EVERY, metrics.total // MOMENTS))  # of a short stage, more often
        if metrics.step % every and metrics.step != metrics.total:
            return
        fields: dict[str, Any] = {"stage": metrics.stage, "step": metrics.step}
        if metrics.loss is not None:
            fields["loss"] = float(metrics.loss)
        architecture = self.architecture
        if architecture is not None:
            fields["valid_loss"] = architecture.loss
            fields |= {f"expected_{name}": value for name, value in architecture.expected.items()}
            fields["multipliers"] = list(architecture.multipliers)
            fields["entropy"] = architecture.entropy
            moments = every * max(1, metrics.total // (every * MOMENTS))
            if not metrics.step % moments or metrics.step == metrics.total:
                fields["probabilities"] = _rounded(architecture)
        if metrics.rate_factor < 1:
            fields["rate_factor"] = metrics.rate_factor
        self.write(**fields)

    def on_stage_end(self, metrics: StageMetrics) -> None:
        self.architecture = None


def _rounded(metrics: ArchitectureMetrics) -> list[list[float]]:
    """The probabilities of each choice, without pads."""
    rows = zip(metrics.probabilities.tolist(), metrics.mask.tolist(), strict=True)
    return [[round(p, 4) for p, real in zip(*row, strict=True) if real] for row in rows]


class ProgressBar(Callback):
    """Steps as progress, for an `update(done, total, note)` as `Reporter.bar` gives it."""

    def __init__(self, update: Callable[..., object]) -> None:
        self.update = update

    def on_step(self, metrics: StepMetrics) -> None:
        self.update(metrics.step, metrics.total, metrics.phase)


def mean_entropy(probabilities: Tensor, mask: Tensor) -> float:
    """Mean over the choices with several candidates of H(p) / log N; both [choices, candidates]."""
    count = mask.sum(1)
    several = count > 1
    if not bool(several.any()):
        return 0.0
    p = probabilities[several]
    entropy = -(p * p.clamp_min(1e-300).log()).sum(1)
    return min(1.0, float((entropy / count[several].double().log()).mean()))  # but for rounding
