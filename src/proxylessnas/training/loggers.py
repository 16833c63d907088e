"""Trackers of experiments as callbacks: TensorBoard, MLflow, Weights & Biases.

    proxylessnas run ... --log tensorboard,mlflow
    proxylessnas.search(..., callbacks=[TensorBoard()])

Each gets the lines of `metrics.jsonl`, as `search/loss` over the steps of the stage, and at the
end the numbers of the summary. Files go into the run directory, and nothing is sent anywhere unless
the tracker's own variables say so (MLFLOW_TRACKING_URI, WANDB_MODE=online).
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proxylessnas.errors import ConfigError, did_you_mean
from proxylessnas.io.importing import optional
from proxylessnas.training.callbacks import Callback, EndMetrics, MetricsLog, RunMetrics

Scalars = Mapping[str, float]


class Tracker(MetricsLog):
    """A tracker is three methods: `begin`, `record` and `finish`."""

    def __init__(self) -> None:
        super().__init__(self._line)
        self.begun = False  # trials before the run's first stage are not told

    @abstractmethod
    def begin(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        """folder: of the run, where it has one. settings: by dotted name."""

    @abstractmethod
    def record(self, stage: str, step: int, values: Scalars) -> None: ...

    @abstractmethod
    def finish(self, facts: Scalars) -> None: ...

    def on_start(self, metrics: RunMetrics) -> None:
        folder = Path(metrics.directory or ".")
        self.begin(folder, folder.resolve().name, dict(_dotted(metrics.settings)))
        self.begun = True

    def on_end(self, metrics: EndMetrics) -> None:
        if self.begun:
            self.finish(dict(_numbers(metrics.facts)))

    def _line(self, *, stage: str, step: int, **fields: Any) -> None:
        if self.begun:
            self.record(stage, step, dict(_numbers(fields)))


class TensorBoard(Tracker):
    """Event files in `RUN/tensorboard`: tensorboard --logdir RUN."""

    def begin(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        optional("tensorboard", "tensorboard", "--log tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))
        table = "\n".join(f"    {key}: {value}" for key, value in settings.items())
        self.writer.add_text("settings", table)

    def record(self, stage: str, step: int, values: Scalars) -> None:
        for key, value in values.items():
            self.writer.add_scalar(f"{stage}/{key}", value, step)

    def finish(self, facts: Scalars) -> None:
        for key, value in facts.items():
            self.writer.add_scalar(f"summary/{key}", value, 0)
        self.writer.close()


class MLflow(Tracker):
    """A run of MLflow, in `RUN/mlflow.db` unless MLFLOW_TRACKING_URI names another place."""

    def begin(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        mlflow = optional("mlflow", "mlflow", "--log mlflow")
        own = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        self.client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", own))
        known = self.client.get_experiment_by_name("proxylessnas")
        number = self.client.create_experiment("proxylessnas") if known is None else None
        self.run = self.client.create_run(number or known.experiment_id, run_name=name).info.run_id
        for key, value in settings.items():
            self.client.log_param(self.run, key, value)

    def record(self, stage: str, step: int, values: Scalars) -> None:
        for key, value in values.items():
            self.client.log_metric(self.run, f"{stage}/{key}", value, step=step)

    def finish(self, facts: Scalars) -> None:
        self.record("summary", 0, facts)
        self.client.set_terminated(self.run)


class WandB(Tracker):
    """A run of Weights & Biases in `RUN/wandb`, offline unless WANDB_MODE says otherwise."""

    def begin(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        wandb = optional("wandb", "wandb", "--log wandb")
        mode = os.environ.get("WANDB_MODE", "offline")
        self.run = wandb.init(
            project="proxylessnas", name=name, dir=str(folder), config=dict(settings), mode=mode
        )
        self.stages: set[str] = set()

    def record(self, stage: str, step: int, values: Scalars) -> None:
        if stage not in self.stages:  # every stage counts its own steps
            self.stages.add(stage)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.run.log({f"{stage}/step": step, **{f"{stage}/{k}": v for k, v in values.items()}})

    def finish(self, facts: Scalars) -> None:
        self.run.summary.update(dict(facts))
        self.run.finish()


TRACKERS: Mapping[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def trackers(words: str) -> list[Callback]:
    """The trackers of `tensorboard,mlflow`, each of which is installed.

    Raises:
        ConfigError: there is none of a name. MissingDependency: its package is not installed.
    """
    names = list(dict.fromkeys(word.strip() for word in words.split(",")))
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"there is no tracker {name!r}; {did_you_mean(name, TRACKERS)}")
        optional(name, name, f"--log {name}")
    return [TRACKERS[name]() for name in names]


def _numbers(fields: Mapping[str, Any]) -> Any:
    """The numbers of a line, one of a list by its place; probabilities are too many."""
    for key, value in fields.items():
        rows: Sequence[Any] = value if isinstance(value, list) else [value]
        for place, number in enumerate(rows):
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield (key if rows is not value else f"{key}_{place}"), float(number)


def _dotted(settings: Mapping[str, Any], before: str = "") -> Any:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
