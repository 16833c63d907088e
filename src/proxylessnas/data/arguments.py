"""A user's batch as a pair (inputs, target), its inputs as the arguments of a forward pass.

What a batch holds says only half of how the model takes it: a list is several arguments where a
collate function made it of tuples, and one argument where the model takes a list of images. The
example inputs say the other half.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from proxylessnas.errors import DataError

TARGETS = ("labels", "label", "targets", "target", "y")  # what a dict's target is called


class Keywords(dict[str, Any]):
    """Keyword arguments, as the last of some example inputs."""


pytree.register_pytree_node(
    Keywords,
    lambda keywords: (list(keywords.values()), list(keywords)),
    lambda values, names: Keywords(zip(names, values, strict=True)),
)


def arguments_of(inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as positional and keyword arguments."""
    if inputs and isinstance(inputs[-1], Keywords):
        return inputs[:-1], dict(inputs[-1])
    return inputs, {}


def as_pair(batch: Any, example: tuple[Any, ...] | None = None) -> Any:
    """(inputs, target) of a batch; what is no pair is returned as it is.

    Inputs become a tuple (positional arguments), a dict (keywords), or stay one value.

    example: the model's example inputs, where they are known.

    Raises:
        DataError: the batch is a dict, and which of its values is the target is not clear.
    """
    if isinstance(batch, Mapping):
        batch = _of_mapping(batch)
    elif not isinstance(batch, tuple | list) or len(batch) != 2:
        return batch
    inputs, target = batch
    return _arguments(inputs, None if example is None else arguments_of(example)[0]), target


def _of_mapping(batch: Mapping[Any, Any]) -> tuple[dict[Any, Any], Any]:
    names = [name for name in TARGETS if name in batch]
    if len(names) != 1 or len(batch) == 1:
        raise DataError(
            f"a batch is a dict of {', '.join(map(str, batch)) or 'nothing'}: the target must be "
            f"one of its values, called {', '.join(TARGETS[:-1])} or {TARGETS[-1]}, and the others "
            "are the model's keywords; or let the loader give pairs (inputs, target)"
        )
    return {name: value for name, value in batch.items() if name != names[0]}, batch[names[0]]


def _arguments(inputs: Any, example: tuple[Any, ...] | None) -> Any:
    if example is not None and not _match(inputs, example):
        if len(example) == 1 and _alike(inputs, example[0]):
            return (inputs,)  # one argument, which is a container itself
        if isinstance(inputs, Mapping) and len(inputs) == len(example) == 1:
            return tuple(inputs.values())  # whatever the collate function calls it
    if isinstance(inputs, Mapping):
        return dict(inputs)
    if isinstance(inputs, tuple | list) and not isinstance(inputs, PackedSequence):
        return tuple(inputs)
    if isinstance(inputs, PackedSequence) or _is_dataclass(inputs):
        return (inputs,)
    return inputs


def _match(inputs: Any, example: tuple[Any, ...]) -> bool:
    """Whether inputs are a list of arguments of the same kinds as the example's."""
    plain = isinstance(inputs, tuple | list) and not isinstance(inputs, PackedSequence)
    return (
        plain
        and len(inputs) == len(example)
        and all(
            _alike(value, other) or not (_kind(value) or _kind(other))
            for value, other in zip(inputs, example, strict=True)
        )
    )


def _alike(value: Any, other: Any) -> bool:
    """Whether both are containers of one kind."""
    return _kind(value) is not None and _kind(value) == _kind(other)


def _kind(value: Any) -> type | None:
    """What kind of container a value is; a list and a tuple are of one kind."""
    if type(value) in (tuple, list):
        return list
    if isinstance(value, tuple) or _is_dataclass(value):  # a named tuple, a packed sequence
        return type(value)
    return Mapping if isinstance(value, Mapping) else None


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def describe(value: Any) -> str:
    """A value's tensors by shape and dtype, for messages; other values by their type.

    >>> import torch
    >>> describe((torch.zeros(8, 3), [torch.zeros(2, dtype=torch.int64), None]))
    '(float32[8, 3], [int64[2], None])'
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {describe(v)}' for k, v in list(value.items())[:8])}}}"
    if isinstance(value, tuple | list):
        words = [describe(v) for v in value[:4]] + ["..."] * (len(value) > 4)
        return f"[{', '.join(words)}]" if isinstance(value, list) else f"({', '.join(words)})"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    shape = getattr(value, "shape", None)  # a numpy array, say
    return type(value).__name__ + (f"{list(shape)}" if isinstance(shape, tuple) else "")


def in_words(batch: Any) -> str:
    """`inputs float32[8, 4], target int64[8]`; what is no pair by itself."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        return describe(batch)
    return f"inputs {describe(batch[0])}, target {describe(batch[1])}"


def register_dataclasses(value: Any) -> None:
    """Let torch see the tensors in dataclasses anywhere in a value: they are leaves otherwise.

    They would stay on the CPU, and enter a latency table's keys as they print.
    """
    for leaf in pytree.tree_leaves(value):
        if _is_dataclass(leaf):
            try:
                pytree.register_dataclass(type(leaf))
            except ValueError:  # not all of its fields are arguments of its `__init__`
                continue
            for field in dataclasses.fields(leaf):
                register_dataclasses(getattr(leaf, field.name))
