"""Layer normalisation over some of the channels, as it is once the others are gone.

Its mean and variance are over the channels that remain, so that what is left of the others' weights
tells nothing: a narrowed network computes what the model does under `over_some`, where all layers
that read the channels leave out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
        kwargs = kwargs or {}
        if func in _MASKED:
            masked = _MASKED[func](self.masks, *args, **kwargs)
            if masked is not None:
                return masked
        return func(*args, **kwargs)


def _layer_norm(
    masks: Mapping[int, Tensor],
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor | None:
    mask = masks.get(id(weight))
    if mask is None or weight is None:
        return None
    some = F.layer_norm(input[..., mask], (int(mask.sum()),), eps=eps)
    return _affine(input, -1, mask, some, weight, bias)


def _rms_norm(
    masks: Mapping[int, Tensor],
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
    *_: Any,
) -> Tensor | None:
    mask = masks.get(id(weight))
    if mask is None or weight is None:
        return None
    some = F.rms_norm(input[..., mask], (int(mask.sum()),), eps=eps)
    return _affine(input, -1, mask, some, weight, None)


def _group_norm(
    masks: Mapping[int, Tensor],
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor | None:
    mask = masks.get(id(weight))
    if mask is None or weight is None or num_groups > 1:
        return None
    return _affine(input, 1, mask, F.group_norm(input[:, mask], 1, eps=eps), weight, bias)


def _affine(
    x: Tensor, axis: int, mask: Tensor, some: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """[..., channels, ...] of which some are normalised and the others are zero."""
    ones = [1] * x.dim()
    ones[axis] = -1
    some = some * weight[mask].view(ones)
    if bias is not None:
        some = some + bias[mask].view(ones)
    return torch.zeros_like(x).index_copy(axis, mask.nonzero()[:, 0], some.to(x.dtype))


_MASKED: dict[Any, Callable[..., Tensor | None]] = {
    **{F.layer_norm: _layer_norm, torch.layer_norm: _layer_norm},
    **{F.rms_norm: _rms_norm, torch.rms_norm: _rms_norm},
    **{F.group_norm: _group_norm, torch.group_norm: _group_norm},
}
