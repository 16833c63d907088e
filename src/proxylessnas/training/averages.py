"""Weights beside those that learn: their moving average, and the best of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of a model's parameters.

    decay: of a step; at step t at most (1 + t) / (10 + t), so that the first weights do not stay
        in the average of a short training.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.parameters, self.decay = dict(model.named_parameters()), decay
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After a step, of which `step` came before."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        parameters: list[Tensor] = list(self.parameters.values())
        torch._foreach_lerp_(list(self.average.values()), parameters, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model compute with the average."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def finish(self) -> None:
        """Let the model have the average."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.average[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            learned = parameter.clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(learned)

    def tensors(self) -> dict[str, Tensor]:
        return {f"average.{name}": tensor for name, tensor in self.average.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.average.items():
            tensor.copy_(tensors[f"average.{name}"])


class BestWeights:
    """The state of a model at the step after which its score was the highest.

    score: compared entry by entry. first: the first score that was offered.
    step: steps taken before the best; None: nothing was scored yet. since: scores since then.
    latest: steps taken before the latest score.
    """

    def __init__(self) -> None:
        self.score: tuple[float, ...] = ()
        self.first: tuple[float, ...] = ()
        self.step: int | None = None
        self.latest: int | None = None
        self.since = 0
        self.state: dict[str, Tensor] = {}

    def offer(self, score: tuple[float, ...], step: int, model: nn.Module) -> None:
        self.first, self.latest = self.first or score, step
        if self.step is None or score > self.score:
            self.score, self.step, self.since = score, step, 0
            self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}
        else:
            self.since += 1

    def tensors(self) -> dict[str, Tensor]:
        return {f"best.{name}": tensor for name, tensor in self.state.items()}

    def values(self) -> dict[str, Any]:
        return {
            "score": list(self.score),
            "first": list(self.first),
            "step": self.step,
            "latest": self.latest,
            "since": self.since,
        }

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.score, self.step = tuple(values["score"]), values["step"]
        self.latest = values["latest"]
        self.first, self.since = tuple(values["first"]), int(values["since"])
        self.state = {k[5:]: v.clone() for k, v in tensors.items() if k.startswith("best.")}
