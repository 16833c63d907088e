"""Layer normalisation over some of the channels, as it is once the others are gone.

Its mean and variance are over the channels that remain, so that what is left of the others' weights
tells nothing: a narrowed network computes what the model does under `over_some`, where all layers
that read the channels leave out the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from proxylessnas.surgery.pairs import Pair


def over_some(model: nn.Module, kept: Iterable[tuple[Pair, Tensor]]) -> TorchFunctionMode:
    """A context in which the model's normalisations are over these channels of each pair alone."""
    masks: dict[int, Tensor] = {}
    for pair, channels in kept:
        for cut in pair.cuts:
            if cut.tensor in pair.norms:
                weight = model.get_parameter(cut.tensor)
                stays = torch.zeros(len(cut.channels), dtype=torch.bool)
                stays[cut.remaining(channels)] = True
                masks[id(weight)] = stays.to(weight.device)
    return _OverSome(masks)


class _OverSome(TorchFunctionMode):
    """masks: by the identity of a normalisation's weight."""

    def __init__(self, masks: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.masks = masks

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, axis = kwargs or {}, _AXES.get(func)
        several = [*args, *kwargs.values()] if axis is not None else []
        mask = next((self.masks[id(v)] for v in several if id(v) in self.masks), None)
        if axis is None or mask is None:
            return func(*args, **kwargs)
        remaining = mask.nonzero()[:, 0]

        def cut(value: Any) -> Any:
            if isinstance(value, Tensor):  # the input, or a number a channel
                return value.index_select(0 if value.dim() == 1 else axis, remaining)
            return (len(remaining),) if isinstance(value, tuple | list) else value

        some = func(*map(cut, args), **{name: cut(value) for name, value in kwargs.items()})
        x = next(v for v in several if isinstance(v, Tensor))
        return torch.zeros_like(x).index_copy(axis, remaining, some.to(x.dtype))


# Normalisations over the channels, and the axis that those are on.
_AXES: dict[Any, int] = {
    **{F.layer_norm: -1, torch.layer_norm: -1, F.rms_norm: -1, torch.rms_norm: -1},
    **{F.group_norm: 1, torch.group_norm: 1},
}
