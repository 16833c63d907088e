"""Example inputs: in words, run through a model once, and as tensors alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from proxylessnas.core.supernet import Supernet
from proxylessnas.data.arguments import arguments_of
from proxylessnas.errors import SupernetError, foreign
from proxylessnas.hardware.fingerprint import argument_label
from proxylessnas.hardware.objects import tensor_label
from proxylessnas.training.freezing import evaluating


def check_examples(inputs: tuple[Any, ...]) -> None:
    """Raises SupernetError where the example inputs hold no example."""
    tensors = (v for v in pytree.tree_leaves(tuple(inputs)) if isinstance(v, Tensor))
    if next((len(tensor) for tensor in tensors if tensor.dim()), 1) == 0:
        raise SupernetError(
            f"the example inputs hold no example ({shapes_of(tuple(inputs), {})}): their shapes "
            "are what is measured, as (x[:1],)"
        )


def run_once(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """One forward pass in eval mode; what it raises as one line."""
    args, kwargs = arguments_of(inputs)
    failure = f"the model fails on the example inputs ({shapes_of(inputs, {})})"
    with foreign(SupernetError, failure, 160, kind=True), evaluating(model):
        model(*args, **kwargs)


def initialise_lazy(supernet: Supernet, inputs: tuple[Any, ...]) -> None:
    """Let the example inputs tell lazy layers their shapes, those of every candidate.

    Raises:
        SupernetError: the model fails, or a lazy layer is never run.
    """

    def lazy() -> list[str]:
        model = supernet.model
        tensors = (*model.named_parameters(), *model.named_buffers())
        return [name for name, tensor in tensors if is_lazy(tensor)]

    if not lazy():
        return
    check_examples(inputs)
    for j in range(max(map(len, supernet.candidates))):
        with supernet.active([min(j, len(names) - 1) for names in supernet.candidates]) as model:
            run_once(model, inputs)
    if left := lazy():
        raise SupernetError(
            f"{left[0]!r} is of a lazy layer that the example inputs never reach, so that its "
            "shape is not known: give the layer its sizes, or take it out"
        )


def plain_call(
    module: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The module as a function of tensors alone, and those tensors.

    A module that takes other values, keywords or nested structures is wrapped.

    kwargs: None: those that the inputs end with, if any.
    """
    if kwargs is None:
        inputs, kwargs = arguments_of(inputs)
    if not kwargs and all(isinstance(value, Tensor) for value in inputs):
        return module, inputs
    call = _Call(module, inputs, kwargs)
    return call.eval(), call.tensors


class _Call(nn.Module):
    """A module with its arguments' structure: a function of the tensors among them alone."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        leaves, self.spec = pytree.tree_flatten((args, dict(kwargs)))
        self.tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        self.constants = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]

    def forward(self, *tensors: Tensor) -> Any:
        rest = iter(tensors)
        leaves = [next(rest) if c is None else c[0] for c in self.constants]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return self.module(*args, **kwargs)


def shapes_of(args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str = "") -> str:
    """All arguments in words: tensors as shape and dtype, others by what they are made of.

    where: see `fingerprint`.
    """
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    words = [_argument(leaf, where) for leaf in leaves]
    plain = not kwargs and len(args) == len(leaves)
    return ", ".join(words) if plain else f"{', '.join(words)} in {spec}"


def _argument(value: object, where: str) -> str:
    if not isinstance(value, Tensor):
        return argument_label(value, where)
    number = value.dim() == 0 and not (value.is_floating_point() or value.is_complex())
    return f"{tensor_label(value)} {value.item()}" if number else tensor_label(value)
