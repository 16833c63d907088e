"""A network narrowed by random channels, beside a model whose readers leave them out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from proxylessnas.surgery.attention import opened
from proxylessnas.surgery.finding import find_pairs
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.narrow import Narrowed, narrowed
from proxylessnas.surgery.norms import over_some
from proxylessnas.surgery.pairs import Pair, Refused
from proxylessnas.surgery.proof import proven


def pairs_of(
    model: nn.Module, inputs: tuple[Any, ...]
) -> tuple[nn.Module, list[Pair], list[Refused]]:
    """The model as it is cut, its pairs, and what stays."""
    model = opened(copy.deepcopy(model))
    pairs, refused = find_pairs(model, Graph(model, inputs))
    pairs, unproven = proven(model, pairs, inputs)
    return model, pairs, [*refused, *unproven]


def check_exact(model: nn.Module, pairs: Sequence[Pair], inputs: tuple[Any, ...]) -> nn.Module:
    """Of all pairs at once, in float64, by random channels. Returns the narrow network."""
    model = copy.deepcopy(model).double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    cuts = [(pair, Narrowed(_some(pair), {})) for pair in pairs]
    zeroed = copy.deepcopy(model)
    for pair, kept in cuts:
        gone = [c for c in range(pair.width) if c not in set(kept.channels.tolist())]
        for cut in pair.consumers:
            weight = zeroed.get_parameter(cut.tensor).data
            weight.movedim(cut.axis, 0)[cut.places[gone].flatten()] = 0.0
    small = narrowed(model, cuts)
    with over_some(zeroed, [(pair, kept.channels) for pair, kept in cuts]):
        expected = computed(zeroed, inputs)
    mattered = False
    for actual, wanted, own in zip(
        computed(small, inputs), expected, computed(model, inputs), strict=True
    ):
        scale = wanted.abs().max()
        assert (actual - wanted).abs().max() <= 1e-5 * scale
        mattered |= bool((own - wanted).abs().max() > 1e-2 * scale)
    if pairs:
        assert count(small) < count(model)
        assert mattered
    for pair, kept in cuts:
        for cut in pair.consumers:
            lost = model.get_parameter(cut.tensor).shape[cut.axis]
            lost -= small.get_parameter(cut.tensor).shape[cut.axis]
            assert lost >= cut.places[0].numel() * (pair.width - len(kept.channels)) > 0
    return small


def _some(pair: Pair) -> Tensor:
    return torch.randperm(pair.width)[: max(1, 2 * pair.width // 3)].sort().values


def computed(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(model(*inputs))
    return [v for v in leaves if isinstance(v, Tensor) and v.is_floating_point()]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def share(model: nn.Module, pairs: Sequence[Pair]) -> float:
    """Of all weights those in tensors that can be cut."""
    names = {cut.tensor for pair in pairs for cut in (*pair.cuts, *pair.consumers)}
    return sum(p.numel() for n, p in model.named_parameters() if n in names) / count(model)
