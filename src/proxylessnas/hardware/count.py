"""Multiply-adds, parameters and peak activation memory of a module.

The convention: one MAC is one multiply-add of a convolution, a linear layer or a matrix
product. Bias, BN, activation, pooling and addition count nothing (docs/paper.md, "Golden figures").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from proxylessnas.core.supernet import Supernet
from proxylessnas.data.arguments import arguments_of, register_dataclasses
from proxylessnas.errors import SupernetError, foreign
from proxylessnas.hardware.trace import Trace, Unit
from proxylessnas.training.freezing import evaluating


def count_macs(
    module: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> int:
    """Multiply-adds of one forward pass on `inputs`, of the whole batch.

    Counted on the meta device, where nothing is computed, unless the module needs real values.
    """
    arguments = arguments_of(tuple(inputs)) if kwargs is None else (tuple(inputs), dict(kwargs))
    try:
        return _counted(module, lambda: _on_meta(module, arguments))
    except Exception:  # whatever the module's code raises where it has no values
        failure = f"{type(module).__name__} ran before, and fails on the same inputs"
        with foreign(SupernetError, failure, kind=True):
            return _counted(module, lambda: module(*arguments[0], **arguments[1]))


def _on_meta(
    module: nn.Module, arguments: tuple[Any, Any], of: Callable[[Any], Any] = lambda _: None
) -> Any:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {name: tensor.to("meta") for name, tensor in tensors.items()}
    args, options = pytree.tree_map_only(Tensor, lambda t: t.to("meta"), arguments)
    with evaluating(module):
        return of(functional_call(module, state, args, options))


def _counted(module: nn.Module, forward: Callable[[], Any]) -> int:
    counter = FlopCounterMode(display=False)
    with evaluating(module), counter:
        forward()
    return int(counter.get_total_flops()) // 2


def check_shapes(supernet: Supernet, trace: Trace) -> None:
    """At every call all candidates return the same shapes; nothing is computed for it.

    Raises:
        SupernetError: they do not, or one of them fails on its input.
    """
    operations = {path: mixed for mixed, path in supernet.paths.items()}
    known: dict[str, Any] = {}  # key -> shapes
    for call in (call for calls in trace.calls for call in calls):
        keys = dict(zip(operations[call.path].candidates, call.keys, strict=True))
        for name, key in keys.items():
            if key is not None and key not in known:
                known[key] = _output_shapes(trace.units[key], f"{name!r} of {call.path!r}")
        shapes = {name: known[key] for name, key in keys.items() if key is not None}
        sibling = next((trace.units[key] for key in keys.values() if key is not None), None)
        for name, candidate in operations[call.path].candidates.items():
            if sibling and keys[name] is None and isinstance(candidate, nn.Identity):
                shapes[name] = _shapes(sibling.inputs)  # an identity returns what it is given
        _check_equal(call.path, {name: shapes[name] for name in keys if shapes.get(name)})


def _check_equal(path: str, shapes: Mapping[str, Any]) -> None:
    first = next(iter(shapes), None)
    for name, other in shapes.items():
        if first is not None and other != shapes[first]:
            raise SupernetError(
                f"the candidates {first!r} and {name!r} of the mixed operation {path!r} return the "
                f"shapes {shapes[first]} and {other}; all must return the same"
            )


def _output_shapes(unit: Unit, what: str) -> Any:
    try:
        return _on_meta(unit.module, (unit.inputs, dict(unit.kwargs)), _shapes)
    except Exception:  # as in `count_macs`
        failure = f"the candidate {what} fails on its input {_shapes(unit.inputs)}"
        with foreign(SupernetError, failure, 160), evaluating(unit.module):
            return _shapes(unit.module(*unit.inputs, **unit.kwargs))


def _shapes(values: Any) -> list[tuple[int, ...]]:
    register_dataclasses(values)  # what candidates return is seen here first
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

    with ExitStack() as hooks, evaluating(module):
        for leaf in (m for m in module.modules() if not any(True for _ in m.children())):
            hooks.enter_context(leaf.register_forward_hook(note, with_kwargs=True))
        if kwargs is None:
            inputs, kwargs = arguments_of(inputs)
        module(*inputs, **kwargs)
    return peak


def _bytes(values: Any) -> int:
    tensors = (v for v in pytree.tree_leaves(values) if isinstance(v, Tensor))
    return sum(t.numel() * t.element_size() for t in tensors)
