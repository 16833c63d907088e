"""The weights' optimiser: one pass over memory, the active parameters alone, any layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from proxylessnas.training.optimizers import load_optimizer, optimizer_tensors, sgd, step

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def stepped(
    layout: torch.memory_format, gradient: torch.memory_format, *, fused: bool
) -> nn.Conv2d:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3).to(memory_format=layout)
    groups = [{"params": list(layer.parameters()), "weight_decay": 0.01}]
    if fused:
        optimizer = sgd(groups, rate=0.1, momentum=0.9)
    else:
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    for i in range(3):
        for p in layer.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        assert layer.weight.grad is not None
        layer.weight.grad = layer.weight.grad.contiguous(memory_format=gradient)
        if fused:
            step(optimizer, layer.parameters())
        else:
            optimizer.step()
        if i == 1:  # through a file, where every tensor is contiguous
            named = dict(layer.named_parameters())
            saved = optimizer_tensors("o", optimizer, named)
            saved = {k: v.contiguous() for k, v in saved.items()}
            load_optimizer("o", optimizer, named, saved)
    return layer


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gradient", LAYOUTS)
def test_layouts_of_weights_and_gradients_may_differ(
    layout: torch.memory_format, gradient: torch.memory_format
) -> None:
    """The fused kernel alone would take one for the other, without a word."""
    ours, theirs = (stepped(layout, gradient, fused=f).weight for f in (True, False))
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_only_active_parameters_move() -> None:
    a, b, c = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = sgd([{"params": [a, b, c], "weight_decay": 0.1}], rate=0.1, momentum=0.9)
    for p in (a, b):
        p.grad = torch.ones(2)
    step(optimizer, [a, c])
    assert (a != 1).all() and (b == 1).all() and (c == 1).all()
    assert set(optimizer.state) == {a}
    assert optimizer.param_groups[0]["params"] == [a, b, c]


def test_sparse_gradients() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = sgd([{"params": [table.weight], "weight_decay": 0.0}], rate=0.1, momentum=0.0)
    before = table.weight.detach().clone()
    table(torch.tensor([1])).sum().backward()  # type: ignore[no-untyped-call]
    step(optimizer, table.parameters())
    moved = (table.weight != before).any(1)
    assert moved.tolist() == [False, True, False, False, False]
