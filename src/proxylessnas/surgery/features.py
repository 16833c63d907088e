"""Distances inside: what layers of a network make, beside what they make in its teacher.

What reads channels that are gone makes as many numbers as before, and a block that is left out
passes on as many as it made: there the network can be told more than by its outputs alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.pretrained.distil import TEMPERATURE
from proxylessnas.surgery.brought import Trained
from proxylessnas.surgery.proof import outputs
from proxylessnas.surgery.scores import Distance, distance_for, squared_distance
from proxylessnas.surgery.space import Space

FEATURES = 0.0  # the weight of distances inside, in fine-tuning; measured in docs/log.md


def features_of(space: Space) -> list[str]:
    """Paths of what makes as many numbers whatever is chosen, for most of the choices: layers that
    read channels of a pair, blocks that may be left out.
    """
    pairs = [pair for choice in space.choices for pair in choice.pairs]
    blocks = [choice.name for choice in space.choices if choice.can_leave_out]
    return [*dict.fromkeys(cut.module for pair in pairs for cut in pair.consumers), *blocks]


@contextmanager
def compared_inside(
    brought: Trained, network: nn.Module, paths: Iterable[str], weight: float
) -> Iterator[Distance]:
    """A distance to the model's outputs, and `weight` times the mean one of what modules make.

    paths: of the modules; those are compared that run once in a pass, both in the model and the
    network, and there make one tensor of one shape. The distance of each is the squared difference
    over the variance of the model's; of the latest pass of both, within the block.
    """
    distance, teacher = distance_for(brought.task.loss, TEMPERATURE), brought.model
    if not weight:
        yield distance
        return
    made: tuple[dict[str, _Made], ...] = ({}, {})
    handles = []
    for model, of in zip((network, teacher), made, strict=True):
        modules = dict(model.named_modules())  # of a block that is left out the layers are gone
        for path in (path for path in paths if path in modules):
            of[path] = _Made()
            handles.append(modules[path].register_forward_hook(of[path].keep))
    try:
        for model in (network, teacher):
            outputs(model, brought.inputs)
        pairs = [(a, made[1][path]) for path, a in made[0].items()]
        alike = [(a, b) for a, b in pairs if a.is_like(b)]

        def further(output: Any, wanted: Any) -> Tensor:
            inside = [squared_distance(a.output, b.output) for a, b in alike]
            return distance(output, wanted) + weight * torch.stack(inside).mean()

        yield further if alike else distance
    finally:
        for handle in handles:
            handle.remove()


class _Made:
    """What a module made last, and how often it ran."""

    def __init__(self) -> None:
        self.output: Any = None
        self.calls = 0

    def keep(self, _: nn.Module, __: Any, output: Any) -> None:
        self.output = output
        self.calls += 1

    def is_like(self, other: _Made) -> bool:
        a, b = self.output, other.output
        once = self.calls == other.calls == 1 and isinstance(a, Tensor) and isinstance(b, Tensor)
        return once and a.shape == b.shape and a.is_floating_point()
