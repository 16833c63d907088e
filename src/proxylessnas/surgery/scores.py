"""What candidates are worth: how far the model's outputs move when one takes its place.

Where the loss is torch's own cross entropy, the outputs are logits and their distance is the
Kullback-Leibler divergence. With any other loss it is the squared difference, as a share of the
outputs' variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils import _pytree as pytree

from proxylessnas.errors import DataError
from proxylessnas.pretrained.distil import divergence
from proxylessnas.pretrained.scores import Scores
from proxylessnas.surgery.in_place import Pass
from proxylessnas.surgery.space import Space
from proxylessnas.training.freezing import evaluating
from proxylessnas.training.task import call

WORST = 1e6  # of outputs that are no numbers

Distance = Callable[[Any, Any], Tensor]  # (outputs, the model's outputs) -> scalar


def distance_for(loss: Any, temperature: float = 1.0) -> Distance:
    """How the distance of outputs is measured beside this loss; of logits at this temperature."""
    if loss is cross_entropy or isinstance(loss, nn.CrossEntropyLoss):
        return partial(logits_distance, temperature=temperature)
    return squared_distance


def logits_distance(output: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(wanted ‖ output), mean over the batch and its places; logits [batch, classes, ...]."""
    return divergence(output.float(), wanted.float(), temperature) / output[0, 0].numel()


def squared_distance(output: Any, wanted: Any) -> Tensor:
    """Squared difference over variance, mean over the tensors of floating point in the outputs."""
    pairs = list(zip(_tensors(output), _tensors(wanted), strict=True))
    if not pairs:
        raise DataError("the model returns no tensor of floating point: nothing could be compared")
    shares = [(a - b).square().mean() / b.var(correction=0).clamp_min(1e-12) for a, b in pairs]
    return torch.stack(shares).mean()


def _tensors(outputs: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(outputs)
    return [v.float() for v in leaves if isinstance(v, Tensor) and v.is_floating_point()]


@torch.no_grad()
def distances(
    network: nn.Module, batches: Sequence[Any], wanted: Sequence[Any], distance: Distance
) -> list[float]:
    """The distance of a network's outputs on each batch of inputs."""
    with evaluating(network):
        return [
            float(distance(call(network, batch), target))
            for batch, target in zip(batches, wanted, strict=True)
        ]


@torch.no_grad()
def replacement_scores(
    space: Space,
    batches: Sequence[Any],
    distance: Distance,
    *,
    around: Sequence[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """The distance for every candidate of every choice, in place of what `around` has there.

    batches: inputs, as the model takes them. around: the candidate of every choice in the network
    around the replaced one; default: the model itself, which scores 0.
    """
    names = around or [candidates[0] for candidates in space.candidates]
    base = [c.index(name) for c, name in zip(space.candidates, names, strict=True)]
    sums = [dict.fromkeys(candidates, 0.0) for candidates in space.candidates]
    total, done = len(batches) * sum(map(len, space.candidates)), 0
    for batch in batches:
        with evaluating(space.model):
            wanted = call(space.model, batch)
        with space.in_place(base) as network:
            first = Pass(network, batch)
        unchanged = float(distance(first.output, wanted))
        for m, candidates in enumerate(space.candidates):
            for j, name in enumerate(candidates):
                if j == base[m]:
                    moved = unchanged
                else:
                    with space.in_place([*base[:m], j, *base[m + 1 :]]):
                        output = first.again(space.modules_of(m))
                    moved = float(distance(output, wanted))
                sums[m][name] += (moved if math.isfinite(moved) else WORST) / len(batches)
                done += 1
                progress(done, total)
    return sums
