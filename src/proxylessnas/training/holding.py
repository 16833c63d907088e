"""What the functions hold that a user gives: modules, and values that no checkpoint knows of."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any

from torch import Tensor, nn

_COUNTED = (int, float, Tensor, list, dict, deque)
_OF_MODULES = frozenset(vars(nn.Module()))  # attributes that every module has


def held_modules(function: Any) -> Iterator[nn.Module]:
    """The modules that a function is, is bound to, closes over or calls by a global name."""
    return (value for value in _held(function) if isinstance(value, nn.Module))


def _held(function: Any) -> Iterator[Any]:
    """What a function is and holds, each once; not what is in a module."""
    values, visited = [function], set()
    while values:
        value = values.pop(0)
        if id(value) in visited:
            continue
        visited.add(id(value))
        yield value
        if isinstance(value, nn.Module):
            continue
        if isinstance(value, partial):
            values += [value.func, *value.args, *value.keywords.values()]
        elif inspect.ismethod(value):
            values += [value.__self__, value.__func__]
        elif inspect.isfunction(value):
            names = inspect.getclosurevars(value)
            values += [*(value.__defaults__ or ()), *names.nonlocals.values()]
            # Of what is global, only what was written beside the function: not all of torch.
            values += [
                v
                for v in names.globals.values()
                if isinstance(v, nn.Module) or getattr(v, "__module__", None) == value.__module__
            ]
        elif isinstance(value, tuple | list):
            values += value
        elif isinstance(value, dict):
            values += value.values()
        elif _is_object(value):
            values += vars(value).values()


def _is_object(value: Any) -> bool:
    return callable(value) and not isinstance(value, type) and hasattr(value, "__dict__")


@contextmanager
def plain_values_kept(functions: Iterable[Any]) -> Iterator[list[str]]:
    """Within, functions may be called: what they count or gather beside buffers is then undone.

    That is numbers, tensors and collections as attributes of the objects and modules that they
    hold. Gives a list that takes the names of those that had changed.
    """
    before: list[tuple[Any, str, Any]] = []
    for holder in {id(h): h for f in functions for v in _held(f) for h in _holders(v)}.values():
        for name, value in vars(holder).items():
            if name not in _OF_MODULES and isinstance(value, _COUNTED):
                kept = value.clone() if isinstance(value, Tensor) else copy(value)
                before.append((holder, name, kept))
    changed: list[str] = []
    try:
        yield changed
    finally:
        for holder, name, value in before:
            if not _same(value, vars(holder).get(name)):
                changed.append(f"{name} of {type(holder).__name__}")
                setattr(holder, name, value)


def _holders(value: Any) -> Iterator[Any]:
    if isinstance(value, nn.Module):
        yield from value.modules()
    elif _is_object(value) and not inspect.isroutine(value):
        yield value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, list | dict | deque):
        return type(one) is type(other) and list(map(id, one)) == list(map(id, other))
    return bool(one == other)
