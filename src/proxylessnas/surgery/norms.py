"""Normalisation over some of the channels, as it is once the others are gone.

Statistics are over the channels that remain, so that what is left of the others' weights tells
nothing: a narrowed network computes what the model does under `over_some`, where all layers that
read the channels leave out the same. Hand-written norms take their statistics by `mean` or `var`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from proxylessnas.surgery.pairs import Pair

Masks = dict[int, Tensor]  # by the axis, from the last one on: which channels remain


@contextmanager
def over_some(model: nn.Module, kept: Iterable[tuple[Pair, Tensor]]) -> Iterator[None]:
    """Within it the model's normalisations are over these channels of each pair alone."""
    by_module: dict[str, Masks] = {}
    for pair, channels in kept:
        stays = torch.zeros(pair.width + 1, dtype=torch.bool)
        stays[channels] = True
        stays[-1] = True  # what is of no channel
        for norm in pair.norms:
            masks = by_module.setdefault(norm.module, {})
            mask = stays[norm.channels]
            before = masks.get(norm.axis)
            # One that is over several pairs' channels, as of a concatenation.
            joint = before is not None and len(before) == len(mask)
            masks[norm.axis] = before & mask if joint and before is not None else mask
    mode = _OverSome()
    with ExitStack() as stack:
        for path, module in model.named_modules() if by_module else ():
            stack.callback(module.register_forward_pre_hook(mode.begin(by_module.get(path))).remove)
            stack.callback(module.register_forward_hook(mode.end, always_call=True).remove)
        stack.enter_context(mode)
        yield


class _OverSome(TorchFunctionMode):
    """running: the masks of the modules that are running, those of the innermost last."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[Masks] = []

    def begin(self, masks: Masks | None) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self.running.append(masks or {})

        return hook

    def end(self, *_: Any) -> None:
        self.running.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        masks = self.running[-1] if self.running else {}
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        axis = _axis_of(func, x, args, kwargs) if masks and x is not None else None
        mask = None if axis is None else masks.get(axis)
        if x is None or axis is None or mask is None or x.shape[axis] != len(mask):
            return func(*args, **kwargs)
        remaining = mask.nonzero()[:, 0].to(x.device)

        def cut(value: Any) -> Any:
            if isinstance(value, Tensor):  # the input, or a number a channel
                return value.index_select(axis if value is x else 0, remaining)
            is_shape = isinstance(value, tuple | list) and tuple(value) == (len(mask),)
            return (len(remaining),) if is_shape else value

        some = func(*map(cut, args), **{name: cut(value) for name, value in kwargs.items()})
        if func in _STATISTICS:
            return some
        return torch.zeros_like(x).index_copy(axis, remaining, some.to(x.dtype))


# Normalisations over the channels, and the axis that those are on.
_NORMS: dict[Any, int] = {
    **{F.layer_norm: -1, torch.layer_norm: -1, F.rms_norm: -1, torch.rms_norm: -1},
    **{F.group_norm: 1, torch.group_norm: 1},
}
# Functions over one axis, and which argument that is.
_STATISTICS: dict[Any, int] = {
    **{torch.mean: 1, Tensor.mean: 1, torch.var: 1, Tensor.var: 1, torch.std: 1, Tensor.std: 1},
    **{torch.var_mean: 1, torch.std_mean: 1, torch.amax: 1, Tensor.amax: 1, torch.max: 1},
    **{Tensor.max: 1, torch.norm: 2, Tensor.norm: 2, torch.linalg.vector_norm: 2},
    **{torch.linalg.norm: 2},
}


def _axis_of(func: Any, x: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """The one axis of x, from the last one on, that a function is over."""
    if func is F.normalize:
        axis: Any = kwargs.get("dim", args[2] if len(args) > 2 else 1)
    elif func in _STATISTICS:
        place = _STATISTICS[func]
        axis = kwargs.get("dim", args[place] if len(args) > place else None)
    else:
        axis = _NORMS.get(func)
    if isinstance(axis, tuple | list) and len(axis) == 1:
        (axis,) = axis
    if type(axis) is not int or not -x.dim() <= axis < x.dim():
        return None
    return axis % x.dim() - x.dim()
