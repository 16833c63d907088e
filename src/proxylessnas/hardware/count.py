"""Multiply-adds, parameters and peak activation memory of a module.

The convention: one MAC is one multiply-add of a convolution, a linear layer or a matrix
product. Bias, BN, activation, pooling and addition count nothing (facts.md, section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from .trace import evaluating


def count_macs(
    module: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> int:
    """Multiply-adds of one forward pass on `inputs`, of the whole batch.

    Counted on the meta device, where nothing is computed, unless the module needs real values.
    """
    given = (tuple(inputs), dict(kwargs or {}))
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {name: tensor.to("meta") for name, tensor in tensors.items()}
    args, options = pytree.tree_map_only(Tensor, lambda t: t.to("meta"), given)
    try:
        return _counted(module, lambda: functional_call(module, state, args, options))
    except Exception:  # whatever the module's code raises where it has no values
        return _counted(module, lambda: module(*given[0], **given[1]))


def _counted(module: nn.Module, forward: Callable[[], Any]) -> int:
    counter = FlopCounterMode(display=False)
    with evaluating(module), counter:
        forward()
    return int(counter.get_total_flops()) // 2


def count_parameters(module: nn.Module) -> int:
    """Elements of all parameters; a shared one counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def peak_memory(
    module: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> int:
    """Bytes: the maximum over calls of leaf modules of their input and output activations.

    What a layer-by-layer runtime must hold at once. A shortcut's tensor that waits beside
    its branch is not counted, and neither are weights.
    """
    peak = 0

    def note(_: nn.Module, args: Any, options: Any, output: Any) -> None:
        nonlocal peak
        peak = max(peak, _bytes((args, options)) + _bytes(output))

    leaves = [m for m in module.modules() if not any(True for _ in m.children())]
    handles = [m.register_forward_hook(note, with_kwargs=True) for m in leaves]
    try:
        with evaluating(module):
            module(*inputs, **(kwargs or {}))
    finally:
        for handle in handles:
            handle.remove()
    return peak


def _bytes(values: Any) -> int:
    tensors = (v for v in pytree.tree_leaves(values) if isinstance(v, Tensor))
    return sum(t.numel() * t.element_size() for t in tensors)
