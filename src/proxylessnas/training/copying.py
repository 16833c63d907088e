"""Copies of modules that hold what Python cannot copy: locks, loggers, writers, computed weights.

A copy needs its own weights, but no lock or writer of its own: what cannot be copied and holds no
weights is shared with the original.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from proxylessnas.errors import SupernetError, one_line

T = TypeVar("T")
DEEPEST = 20  # objects in one another


def copied(value: T, memo: dict[int, Any] | None = None, *, within: nn.Module | None = None) -> T:
    """A deep copy of a module, or of a tuple of modules and other objects.

    memo: as of `copy.deepcopy`. within: the model that the module is part of, for messages.
    A tensor that a step computed (the weight of `weight_norm` or of pruning) is copied without
    its history.

    Raises:
        SupernetError: something that holds weights cannot be copied; module and attribute are
            named.
    """
    memo = {} if memo is None else memo
    _copy_scripted([m for m in (value, *_parts(value)) if isinstance(m, nn.Module)], memo)
    before = set(memo)
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # whatever the objects in it raise
        for key in memo.keys() - before:
            del memo[key]
    reached = [v for v in _reached(value) if isinstance(v, nn.Module | nn.Parameter)]
    kept = {id(v): v for v in reached}
    sharing = _Sharing(memo, kept)
    paths = {module: path for path, module in within.named_modules()} if within else {}
    for module in (v for v in reached if isinstance(v, nn.Module)):
        for name, attribute in {**vars(module), **module._buffers}.items():
            sharing.enter(attribute, 0)
            _check_copied(attribute, {**kept, **memo}, _words(module, paths), name)
    sharing.enter(value, 0)
    try:
        return copy.deepcopy(value, memo)
    except Exception as error:
        raise SupernetError(
            f"{type(value).__name__} cannot be copied: {type(error).__name__}: "
            f"{one_line(error)}; give its class a __deepcopy__ that does"
        ) from error


def _copy_scripted(roots: list[nn.Module], memo: dict[int, Any]) -> None:
    """Enter copies of scripted modules, whose own `__deepcopy__` keeps the weights' history."""
    for module in (m for root in roots for m in root.modules()):
        if isinstance(module, torch.jit.ScriptModule) and id(module) not in memo:
            with torch.no_grad():
                memo[id(module)] = scripted = copy.deepcopy(module)
            for mine, other in zip(module.parameters(), scripted.parameters(), strict=True):
                other.requires_grad_(mine.requires_grad)


class _Sharing:
    """Enters what cannot be copied in the memo of the copy to come, as its own copy.

    kept: the modules and parameters, by their ids, which trials of attributes do not copy.
    """

    def __init__(self, memo: dict[int, Any], kept: Mapping[int, object]) -> None:
        self.memo, self.kept = memo, kept

    def enter(self, value: Any, depth: int) -> None:
        if id(value) in self.kept or id(value) in self.memo or depth > DEEPEST:
            return
        if isinstance(value, Tensor):
            if not value.is_leaf:
                self.memo[id(value)] = value.detach().clone()
        elif not self.copies(value):
            parts = list(_parts(value))
            if parts and (isinstance(value, Mapping | list | tuple | set) or _holds_weights(value)):
                for part in parts:
                    self.enter(part, depth + 1)
            elif not _holds_weights(value):
                self.memo[id(value)] = value

    def copies(self, value: Any) -> bool:
        try:
            copy.deepcopy(value, {**self.kept, **self.memo})
        except Exception:
            return False
        return True


def _parts(value: Any) -> Iterator[Any]:
    """What a container, an object or a module holds."""
    if isinstance(value, Tensor | type):
        return
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif hasattr(value, "__self__"):
        yield value.__self__
    else:
        yield from getattr(value, "__dict__", {}).values()


def _reached(value: Any) -> Iterator[Any]:
    """Every object that can be reached from this one."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += list(_parts(one))


def _holds_weights(value: Any) -> bool:
    return any(isinstance(part, Tensor | nn.Module) for part in _reached(value))


def _words(module: nn.Module, paths: Mapping[nn.Module, str]) -> str:
    path = paths.get(module)
    return f"the module {path!r} ({type(module).__name__})" if path else type(module).__name__


def _check_copied(value: Any, memo: dict[int, Any], owner: str, name: str) -> None:
    try:
        copy.deepcopy(value, memo)
    except Exception as error:
        raise SupernetError(
            f"the attribute {name!r} of {owner} cannot be copied, and holds weights: "
            f"{type(error).__name__}: {one_line(error)}; keep it outside of the model, or give "
            "its class a __deepcopy__"
        ) from error
