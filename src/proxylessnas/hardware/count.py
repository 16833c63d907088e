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

from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import SupernetError
from proxylessnas.hardware.trace import Trace, Unit
from proxylessnas.training.freezing import evaluating


def count_macs(
    module: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> int:
    """Multiply-adds of one forward pass on `inputs`, of the whole batch.

    Counted on the meta device, where nothing is computed, unless the module needs real values.
    """
    given = (tuple(inputs), dict(kwargs or {}))
    try:
        return _counted(module, lambda: _on_meta(module, given))
    except Exception:  # whatever the module's code raises where it has no values
        return _counted(module, lambda: module(*given[0], **given[1]))


def _on_meta(
    module: nn.Module, given: tuple[Any, Any], of: Callable[[Any], Any] = lambda _: None
) -> Any:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {name: tensor.to("meta") for name, tensor in tensors.items()}
    args, options = pytree.tree_map_only(Tensor, lambda t: t.to("meta"), given)
    with evaluating(module):
        return of(functional_call(module, state, args, options))


def _counted(module: nn.Module, forward: Callable[[], Any]) -> int:
    counter = FlopCounterMode(display=False)
    with evaluating(module), counter:
        forward()
    return int(counter.get_total_flops()) // 2


def check_shapes(supernet: Supernet, trace: Trace) -> None:
    """All candidates of a mixed operation return the same shapes; nothing is computed for it.

    Raises:
        SupernetError: they do not, or one of them fails on its input.
    """
    shapes: dict[str, Any] = {}
    for m, (operation, names) in enumerate(zip(supernet.names, supernet.candidates, strict=True)):
        found: dict[str, Any] = {}  # candidate -> shapes at each call
        for name, keys in zip(names, trace.keys[m], strict=True):
            for key in keys:
                if key not in shapes:
                    shapes[key] = _output_shapes(trace.units[key], f"{name!r} of {operation!r}")
            if keys:
                found[name] = [shapes[key] for key in keys]
            elif isinstance(supernet.mixed[m].candidates[name], nn.Identity):
                sibling = next((k for k in trace.keys[m] if k), ())
                found[name] = [_shapes(trace.units[key].inputs) for key in sibling]
        first, *others = found.items() or [("", None)]
        for name, other in others:
            if first[1] and other and other != first[1]:
                raise SupernetError(
                    f"the candidates {first[0]!r} and {name!r} of the mixed operation "
                    f"{operation!r} return the shapes {first[1]} and {other}; all must return "
                    "the same"
                )


def _output_shapes(unit: Unit, what: str) -> Any:
    try:
        return _on_meta(unit.module, (unit.inputs, dict(unit.kwargs)), _shapes)
    except Exception:  # as in `count_macs`
        try:
            with evaluating(unit.module):
                return _shapes(unit.module(*unit.inputs, **unit.kwargs))
        except Exception as error:
            raise SupernetError(
                f"the candidate {what} fails on its input {_shapes(unit.inputs)}: "
                f"{' '.join(str(error).split())[:160]}"
            ) from error


def _shapes(values: Any) -> list[tuple[int, ...]]:
    return [tuple(v.shape) for v in pytree.tree_leaves(values) if isinstance(v, Tensor)]


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
