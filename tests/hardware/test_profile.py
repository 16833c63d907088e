"""Tables from ONNX Runtime's own profile of every node."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from proxylessnas.config import MeasureSettings
from proxylessnas.core.supernet import MixedOp, Residual, Supernet, Zero
from proxylessnas.errors import MeasurementError
from proxylessnas.hardware.cost import latency_cost
from proxylessnas.hardware.profile import profile_table, scope_of
from proxylessnas.hardware.trace import trace
from proxylessnas.spaces import build_supernet
from proxylessnas.spaces.blocks import ConvBN

SETTINGS = MeasureSettings(rounds=2, network_rounds=2, networks=3, runs=2, warmup=1)


def test_every_candidate_is_found_in_the_profiles() -> None:
    supernet = build_supernet(
        "mobile",
        {"input_shape": [3, 32, 32], "widths": [8, 16], "depths": [2, 2], "stem": 8, "head": 32},
    )
    inputs = (torch.randn(1, 3, 32, 32),)
    table = profile_table(supernet, inputs, SETTINGS, seed=0)
    found = trace(supernet, inputs)
    assert table.complete and set(table.entries) == set(found.units)
    assert all(0 < m.median_ms < 1e3 for m in table.entries.values())
    assert latency_cost(supernet, found, table).fit is not None


class Listed(nn.Module):
    def __init__(self, pool: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                MixedOp([ConvBN(3, 3, 3), ConvBN(3, 3, 5)]),
                Residual(MixedOp([ConvBN(3, 3, 3), Zero()])),
            ]
        )
        self.pool = nn.AvgPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.layers[0](self.pool(x))
        return out


def test_lists_and_shared_operations() -> None:
    supernet = Supernet(Listed())
    inputs = (torch.randn(1, 3, 16, 16),)
    table = profile_table(supernet, inputs, SETTINGS, seed=0)
    assert set(table.entries) == set(trace(supernet, inputs).units)
    with pytest.raises(MeasurementError, match="inputs of different shapes"):
        profile_table(Supernet(Listed(pool=True)), inputs, SETTINGS, seed=0)


def test_scopes() -> None:
    model = Listed()
    assert scope_of(model, "layers.0") == "/layers.0/"
    assert scope_of(model, "layers.1.branch") == "/layers.1/"
    chain = nn.Sequential(nn.Sequential(MixedOp([nn.ReLU()])))
    assert scope_of(nn.ModuleDict({"body": chain}), "body.0.0") == "/body/body.0/body.0.0/"
