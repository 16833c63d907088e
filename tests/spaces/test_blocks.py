"""Layers of the image spaces: candidates that begin alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from proxylessnas.core.supernet import MixedOp, Residual
from proxylessnas.spaces import build_supernet
from proxylessnas.spaces.blocks import ConvBN, MBConv, round_channels

SMALL = {
    "mobile": {"input_shape": [3, 32, 32], "classes": 4, "widths": [16, 24], "depths": [2, 2]},
    "macro": {"widths": [16, 24], "depths": [2, 2]},
}


def bottlenecks(mixed: MixedOp) -> list[nn.Module]:
    inner = [c.branch if isinstance(c, Residual) else c for c in mixed.candidates.values()]
    return [c for c in inner if isinstance(c, MBConv)]


@pytest.mark.parametrize("space", ["mobile", "macro"])
def test_candidates_begin_as_one_function(space: str) -> None:
    supernet = build_supernet(space, SMALL[space])
    for mixed in supernet.paths:
        blocks = bottlenecks(mixed)
        for block in blocks:
            nn.init.ones_(block[-1][1].weight)  # residual branches begin at zero
        channels = blocks[0][0][0].in_channels
        x = torch.randn(4, channels, 8, 8)
        outputs = [block(x) for block in blocks]
        for output in outputs[1:]:
            torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-4)


def test_a_bottleneck_begins_as_the_convolution_in_the_shortcuts_place() -> None:
    """As far as the batch's statistics of x and of −x agree."""
    supernet = build_supernet("macro", SMALL["macro"])
    stage_first = [m for m in supernet.paths if isinstance(m.candidates["identity"], ConvBN)]
    assert len(stage_first) == 2
    for mixed in stage_first:
        linear, *blocks = mixed.candidates.values()
        x = torch.randn(64, linear[0].in_channels, 8, 8)
        for block in blocks:
            outputs = torch.stack((linear(x).flatten(), block(x).flatten()))
            assert torch.corrcoef(outputs)[0, 1] > 0.99


def test_residual_branches_begin_at_zero() -> None:
    supernet = build_supernet("mobile", SMALL["mobile"])
    found = 0
    for module in supernet.model.modules():
        if isinstance(module, Residual) and isinstance(module.branch, MixedOp):
            for block in bottlenecks(module.branch):
                x = torch.randn(2, block[0][0].in_channels, 8, 8)
                assert not block(x).any()
                found += 1
    assert found == 18  # three blocks with a shortcut, six bottlenecks each


@pytest.mark.parametrize("space", ["mobile", "macro"])
def test_every_weight_learns_soon(space: str) -> None:
    """Nothing is stuck at its beginning: two steps on every path reach every kernel."""
    supernet = build_supernet(space, SMALL[space])
    optimizer = torch.optim.SGD(supernet.model.parameters(), lr=0.1)
    before = {n: p.detach().clone() for n, p in supernet.model.named_parameters()}
    x, y = torch.randn(8, 3, 32, 32), torch.randint(0, 4, (8,))
    for index in range(supernet.mask.shape[1]):
        choice = [min(index, len(names) - 1) for names in supernet.candidates]
        for _ in range(3):
            optimizer.zero_grad()
            with supernet.active(choice) as model:
                nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    kernels = [n for n, p in before.items() if p.dim() == 4]
    moved = dict(supernet.model.named_parameters())
    assert all((moved[n] != before[n]).any() for n in kernels)


def test_independent_beginnings_can_be_asked_for() -> None:
    supernet = build_supernet("mobile", {**SMALL["mobile"], "alike": False})
    first, second, *_ = bottlenecks(supernet.positions[0][0])
    x = torch.randn(2, first[0][0].in_channels, 8, 8)
    assert not torch.allclose(first(x), second(x), atol=1e-3)


def test_channels_are_multiples_of_8_and_never_under_90_percent() -> None:
    assert [round_channels(c) for c in (3, 16, 22.4, 33.6, 44.8, 91)] == [8, 16, 24, 32, 48, 88]
    assert all(round_channels(c) >= 0.9 * c for c in range(1, 500))
