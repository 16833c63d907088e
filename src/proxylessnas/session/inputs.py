"""Example inputs of any structure as plain values and tensors, and back; no pickle."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import Tensor

from proxylessnas.data.arguments import Keywords
from proxylessnas.errors import RunError
from proxylessnas.session.store import Store

INPUTS = "example_inputs.safetensors"


def flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Nested tuples, lists and dicts as JSON; tensors go to `tensors` under the name it keeps.

    Raises:
        TypeError: a value is of another kind.
    """
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [flatten(v, tensors) for v in value]}
    if isinstance(value, Keywords):
        return {"keywords": {k: flatten(v, tensors) for k, v in value.items()}}
    if type(value) is dict and all(isinstance(k, str) for k in value):
        return {"dict": {k: flatten(v, tensors) for k, v in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"{type(value).__name__} is no tensor, number, text, tuple, list or dict")


def unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse.

    Raises:
        RunError: the value is not what `flatten` makes.
    """
    try:
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind in ("dict", "keywords"):
            items = {k: unflatten(v, tensors) for k, v in content.items()}
            return items if kind == "dict" else Keywords(items)
        if kind in ("tuple", "list"):
            values = [unflatten(v, tensors) for v in content]
            return tuple(values) if kind == "tuple" else values
        if kind == "value":
            return content
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise RunError("the example inputs in the run directory are damaged")


def save_inputs(store: Store, inputs: tuple[Any, ...]) -> None:
    """Kept for `load`, where they are of plain kinds."""
    tensors: dict[str, Tensor] = {}
    with contextlib.suppress(TypeError):
        structure = flatten(tuple(inputs), tensors)
        store.save_tensors(INPUTS, tensors, {"structure": structure})


def load_inputs(store: Store) -> Any:
    """Raises RunError where none are kept."""
    if not store.has(INPUTS):
        raise RunError("the run directory has no example inputs: load(path, example_inputs=(x,))")
    tensors, values = store.load_tensors(INPUTS)
    return unflatten(values.get("structure"), tensors)
