"""How far the chosen network is from the best of all, of a space that is enumerated.

On the fake runtime, without noise. Every network deviates from the sum of its layers by a factor of
its own, which nothing but measuring that network tells.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from trained_model import latency, specialised, trained

import proxylessnas
from proxylessnas.core.decode import Indices
from proxylessnas.hardware.runtimes.base import Session
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.surgery.choosing import _score_of, unrecorded_choice


def shapes(network: nn.Module) -> str:
    return str([tuple(p.shape) for p in network.parameters()])


class Deviates(FakeRuntime):
    """Of every network but the model, by at most this share, either way."""

    def __init__(self, share: float, seed: int) -> None:
        super().__init__()
        self.share, self.stream = share, seed

    def factor(self, key: str) -> float:
        if key == shapes(trained()):
            return 1.0
        return 1 + self.share * random.Random(f"{self.stream} {key}").uniform(-1, 1)

    def load(self, module: nn.Module, inputs: Any) -> Session:
        session: Any = super().load(module, inputs)
        session.latency_ms *= self.factor(shapes(module))
        return session


@pytest.fixture(autouse=True)
def macs_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as the layers themselves."""
    monkeypatch.setattr("proxylessnas.hardware.runtimes.fake.MS_PER_MAC", 1e-6)


@cache
def enumerated() -> tuple[proxylessnas.Specialised, dict[Indices, tuple[float, str, float]]]:
    """Of every network (latency, shapes, score)."""
    result = specialised(blocks=["5", "6", "9"], target_latency="0.8x")
    space, score = result.around.space, _score_of(result.around)
    rows = [torch.nonzero(row)[:, 0].tolist() for row in space.mask]
    facts = {}
    for indices in itertools.product(*rows):
        network = space.network(indices)
        facts[indices] = latency(network), shapes(network), score(indices)[0]
    return result, facts


@pytest.mark.parametrize(
    ("share", "limit", "seed", "rank"),
    [(0.0, 0.7, 0, 0), (0.1, 0.5, 0, 0), (0.1, 0.7, 2, 0), (0.25, 0.5, 4, 1)],
)
def test_no_network_that_keeps_the_limit_is_better(
    share: float, limit: float, seed: int, rank: int
) -> None:
    """Of 144 networks at most `rank`, whose distance to the model is not a tenth less."""
    result, facts = enumerated()
    assert len(facts) == 144
    runtime, ms = Deviates(share, seed), limit * result.around.model_ms
    keeping = [i for i, (own, key, _) in facts.items() if own * runtime.factor(key) <= ms]
    keeping.sort(key=lambda i: -facts[i][2])
    records = result.around.brought.records.below(f"{share} {limit} {seed}")
    brought = replace(result.around.brought, runtime=runtime, records=records)
    chosen = unrecorded_choice(replace(result.around, brought=brought), ms).chosen.indices
    assert keeping.index(chosen) <= rank < len(keeping) // 4
    assert facts[chosen][2] >= 1.1 * facts[keeping[0]][2]
