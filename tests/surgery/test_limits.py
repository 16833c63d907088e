"""The limit is kept by what is measured afterwards, whatever was predicted or measured before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from trained_model import latency, specialised

from proxylessnas.errors import LimitError
from proxylessnas.hardware.runtimes.base import Session
from proxylessnas.hardware.runtimes.fake import FakeRuntime


class Lucky(FakeRuntime):
    """Every network is a tenth too fast when it is measured for the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[tuple[Any, ...], int] = {}

    def load(self, module: nn.Module, inputs: Any) -> Session:
        session: Any = super().load(module, inputs)
        key = tuple(p.shape for p in module.parameters())
        self.known[key] = self.known.get(key, 0) + 1
        if self.known[key] == 1 and len(key) > 6:
            session.latency_ms *= 0.9
        return session


def test_what_was_measured_too_fast_is_measured_again() -> None:
    result = specialised(runtime=Lucky(), target_latency="0.7x")
    assert result.measured_ms == pytest.approx(latency(result.derive()), rel=1e-4)
    assert 0.7 * result.limit_ms < result.measured_ms <= 1.02 * result.limit_ms


def test_sums_that_deny_what_was_measured_are_not_believed(monkeypatch: Any) -> None:
    """By the sum of its layers even the smallest network would be far above the limit."""
    monkeypatch.setattr("proxylessnas.surgery.latency._line", lambda *_: (1.0, 10.0))
    result = specialised(target_latency="0.5x")
    assert result.around.costs.range(result.around.space.mask)[0][0] > 10 > result.limit_ms
    assert result.measured_ms == pytest.approx(latency(result.derive()), rel=1e-4)
    assert result.measured_ms <= 1.02 * result.limit_ms


def test_the_smallest_network_is_the_last_that_is_tried() -> None:
    result = specialised(target_latency="0.5x")
    space = result.around.space
    least = latency(space.network(space.smallest)) / result.around.model_ms
    smallest = specialised(target_latency=f"{1.001 * least:.5f}x")
    assert latency(smallest.derive()) <= 1.02 * smallest.limit_ms
    with pytest.raises(LimitError, match="the reachable range is"):
        specialised(target_latency=f"{0.9 * least:.5f}x")


def test_weights_that_are_computed_are_plain_in_what_is_made() -> None:
    model = nn.Sequential(
        *(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 24, 3)), nn.ReLU()),
        *(nn.utils.parametrizations.spectral_norm(nn.Conv2d(24, 32, 3)), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2)),
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = specialised(model, target_latency="0.85x")
    assert set(result.architecture) == {"0", "2"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    network = result.derive()
    names = {name for name, _ in network.named_parameters()}
    assert names == {f"{k}.{name}" for k in (0, 2, 6) for name in ("weight", "bias")}
    x = torch.randn(2, 1, 10, 10)
    whole = result.around.space.network(result.around.space.own)
    torch.testing.assert_close(whole(x), model.eval()(x))
