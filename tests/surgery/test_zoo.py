"""Exactness over a zoo: whatever is cut of any model, what remains computes what it computed."""

from __future__ import annotations

import copy

import pytest
import torch
from amounts import THOROUGH
from torch import Tensor, nn
from trained_zoo import NAMES, trained

from proxylessnas.surgery.attention import opened
from proxylessnas.surgery.finding import find_pairs
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.narrow import Narrowed, narrowed, proven
from proxylessnas.surgery.norms import over_some
from proxylessnas.surgery.pairs import Pair

FEW = ("resnet18", "mobilenet_v3_small", "squeezenet1_1", "timm:convnext_atto", "mnasnet0_5")


@pytest.mark.parametrize("name", NAMES if THOROUGH else FEW)
def test_narrowed_networks_compute_what_zeroed_ones_do(name: str) -> None:
    """Of all pairs at once, in float64, by random channels."""
    model, x = trained(name)
    model = opened(model)
    every, unproven = proven(model, find_pairs(model, Graph(model, (x,)))[0], (x,))
    model, x = model.double(), x.double()
    cuts = [(pair, Narrowed(_some(pair), {})) for pair in every]
    zeroed = copy.deepcopy(model)
    for pair, kept in cuts:
        gone = [c for c in range(pair.width) if c not in set(kept.channels.tolist())]
        for cut in pair.consumers:
            weight = zeroed.get_parameter(cut.tensor).data
            weight.movedim(cut.axis, 0)[cut.places[gone].flatten()] = 0.0
    small = narrowed(model, cuts)
    actual, own = first(small, x), first(model, x)
    with over_some(zeroed, [(pair, kept.channels) for pair, kept in cuts]):
        expected = first(zeroed, x)
    scale = expected.abs().max()
    quarters = [(p, Narrowed(torch.arange(-(-p.width // 4)), {})) for p in every]
    left = count(narrowed(model, quarters)) / count(model)
    row = (name, len(every), f"{100 * share(model, every):.0f} %", f"{100 * left:.0f} %")
    print("|", *row, len(unproven), sep=" | ")
    assert (actual - expected).abs().max() <= 1e-5 * scale
    if every:
        assert count(small) < count(model)
        assert (own - expected).abs().max() > 1e-2 * scale  # the channels mattered
    for pair, kept in cuts:
        for cut in pair.consumers:
            lost = model.get_parameter(cut.tensor).shape[cut.axis]
            lost -= small.get_parameter(cut.tensor).shape[cut.axis]
            assert lost >= cut.places[0].numel() * (pair.width - len(kept.channels)) > 0


def _some(pair: Pair) -> Tensor:
    return torch.randperm(pair.width)[: max(1, 2 * pair.width // 3)].sort().values


def first(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(x)
    return out["out"] if isinstance(out, dict) else out


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def share(model: nn.Module, pairs: list[Pair]) -> float:
    """Of all weights those in tensors that can be cut."""
    names = {cut.tensor for pair in pairs for cut in (*pair.cuts, *pair.consumers)}
    return sum(p.numel() for n, p in model.named_parameters() if n in names) / count(model)
