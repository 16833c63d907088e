"""Multiply-adds, parameters and peak memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture
from proxylessnas.hardware.count import count_macs, count_parameters, peak_memory
from proxylessnas.spaces import build
from proxylessnas.spaces.blocks import ConvBN
from proxylessnas.spaces.macro import from_code


# NAS-Bench-Macro's `flops` (docs/paper.md, "Golden figures").
@pytest.mark.parametrize(("code", "macs"), [("00000000", 7_713_280), ("22222222", 105_660_928)])
def test_golden_macs_of_nas_bench_macro(code: str, macs: int) -> None:
    network = build(Architecture(space="macro", choices=from_code(code)))
    assert count_macs(network, (torch.randn(1, 3, 32, 32),)) == macs


def test_the_convention() -> None:
    x = torch.randn(2, 4, 8, 8)
    assert count_macs(nn.Conv2d(4, 6, 3, padding=1), (x,)) == 2 * 6 * 64 * 4 * 9
    assert count_macs(nn.Conv2d(4, 8, 3, 2, 1, groups=4), (x,)) == 2 * 8 * 16 * 9
    assert count_macs(nn.Linear(8, 5), (torch.randn(3, 8),)) == 3 * 8 * 5
    for free in (nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Identity()):
        assert count_macs(free, (x,)) == 0


class Product(nn.Module):
    def forward(self, a: Tensor, *, b: Tensor) -> Tensor:
        return torch.bmm(a, b)


class ByValue(nn.Module):
    """Cannot run without values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum().item() > 0 else x


def test_keywords_products_and_control_flow_by_value() -> None:
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    assert count_macs(Product(), (a,), {"b": b}) == 2 * 3 * 4 * 5
    assert count_macs(ByValue(), (torch.ones(1, 4),)) == 16
    assert count_macs(ByValue(), (-torch.ones(1, 4),)) == 0


def test_counting_changes_nothing() -> None:
    module = ConvBN(3, 4, 3).train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    count_macs(module, (torch.randn(2, 3, 8, 8),))
    peak_memory(module, (torch.randn(2, 3, 8, 8),))
    assert module.training and all(m.training for m in module.modules())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(3, 4)
    assert count_parameters(nn.Sequential(layer, layer)) == 3 * 4 + 4
    assert count_parameters(nn.Identity()) == 0


def test_peak_memory_is_the_largest_input_and_output_of_a_layer() -> None:
    module = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 4, 1), nn.Flatten())
    x = torch.randn(1, 2, 5, 5)
    assert peak_memory(module, (x,)) == 4 * 25 * (8 + 4)
    assert peak_memory(nn.Identity(), (x,)) == 2 * 4 * 25 * 2
