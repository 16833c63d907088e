"""Pairs: channels that can be taken out, the layers that make them, and the layers that read them.

Channels are the hidden ones of a block, what a stage of residual blocks adds up, the heads of an
attention. Each may be several numbers side by side or apart: a whole group, a head of queries, keys
and values, a map that is flattened. `finding.py` finds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Cut:
    """A tensor of the model that is cut with the channels.

    tensor: its name. axis: along which. channels: of every index along it the channel, [size]; -1
    where it is of none and stays.
    """

    tensor: str
    axis: int
    channels: Tensor

    @property
    def module(self) -> str:
        """The path of the module that holds the tensor."""
        return self.tensor.rpartition(".")[0]

    @cached_property
    def places(self) -> Tensor:
        """The indices of every channel, [channels, numbers of each]."""
        order = self.channels.argsort(stable=True)
        held = order[int((self.channels < 0).sum()) :]
        return held.view(int(self.channels.max()) + 1, -1)

    def remaining(self, channels: Tensor) -> Tensor:
        """The indices that remain with these channels, rising."""
        stays = torch.zeros(len(self.places) + 1, dtype=torch.bool)
        stays[channels] = True
        stays[-1] = True  # what -1 names
        return stays[self.channels].nonzero()[:, 0]


@dataclass(frozen=True)
class Size:
    """An attribute of a module that its code takes the number of channels from, as `num_heads`.

    Where it is in a tuple, `shape[0]`. times: numbers a channel.
    """

    module: str
    attribute: str
    times: int


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalisation over channels, or a mean of them.

    module: the path of the module that computes it. axis: of its input, from the last one on.
    channels: of every index along it the channel, [size]; -1 where it is of none and stays.
    """

    module: str
    axis: int
    channels: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Channels that can be taken out: layers that make them, and layers that read them.

    name: the path of the first layer that makes them. kind: its operation. shape: of its output.
    width: channels. unit: numbers of each in that output, as those of a head.
    producers: paths; several where one gates the other, or where they are added up. gates: those of
    them that only scale the channels that they look at, as squeeze-and-excitation does.
    consumers: of the layers that read them, the weights. cuts: every other tensor that is cut.
    sizes: attributes that change with them. norms: normalisations over the channels, which then are
    over those that remain: what they make changes, and readers are fitted to that.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    width: int
    unit: int
    producers: tuple[str, ...]
    gates: tuple[str, ...]
    consumers: tuple[Cut, ...]
    cuts: tuple[Cut, ...]
    sizes: tuple[Size, ...] = ()
    norms: tuple[Norm, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of all modules that hold what is cut."""
        return tuple(dict.fromkeys(cut.module for cut in (*self.cuts, *self.consumers)))


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A layer that keeps its width, and why."""

    name: str
    kind: str
    shape: tuple[int, ...]
    reason: str
