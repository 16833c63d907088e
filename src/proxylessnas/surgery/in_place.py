"""Many networks out of one: cut in place and put back, and passes that share their beginning.

A copy of a model takes longer than a pass of a few images. And where two networks differ in a
layer alone, all that runs before it computes the same in both.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from proxylessnas.errors import in_words
from proxylessnas.training.freezing import evaluating
from proxylessnas.training.task import call

MOST_BYTES = 1 << 30  # of outputs that a pass keeps
_TABLES = ("_parameters", "_buffers", "_modules")


@contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    """Afterwards every module holds the tensors, submodules and attributes that it held before.

    Within the block tensors may be replaced, not written to.
    """
    before = [
        (m, dict(vars(m)), [(vars(m)[t], dict(vars(m)[t])) for t in _TABLES])
        for m in model.modules()
    ]
    try:
        yield
    finally:
        for module, attributes, tables in before:
            vars(module).clear()
            vars(module).update(attributes)
            for table, held in tables:
                table.clear()
                table.update(held)


@dataclass(eq=False)
class _Call:
    """One call of a module: when it began and ended, and what it returned, if that is kept.

    versions: of the returned tensors, which tell whether one was written to since.
    """

    begin: int
    end: int = 0
    output: Any = None
    versions: list[tuple[Tensor, int]] = field(default_factory=list)

    @property
    def is_kept(self) -> bool:
        return bool(self.versions) and all(t._version == v for t, v in self.versions)


class Pass:
    """A network's pass over a batch, in evaluation mode, after which others take less time.

    network: one whose modules have their names in all passes; what they hold may be replaced.
    output: of this pass.
    """

    def __init__(self, network: nn.Module, inputs: Any) -> None:
        self.network, self.inputs = network, inputs
        self._calls: dict[str, _Call] = {}
        self._clock, self._repeated, self._storages = 0, set[str](), dict[int, int]()
        self.output = self._recorded()
        if self._calls and (reason := self._differs()):
            warnings.warn(
                f"passes of {type(network).__name__} share nothing, because {reason}: scores take "
                "longer",
                stacklevel=2,
            )
            self._calls.clear()

    def again(self, changed: Collection[str]) -> Any:
        """The output where these modules, by their paths, are no longer what they were.

        Modules that ended before the first of them began are not run again.
        """
        first = min(map(self._begin, changed), default=math.inf)
        done = {path: c for path, c in self._calls.items() if c.end < first and c.is_kept}
        modules = dict(self.network.named_modules())
        try:
            for path, known in done.items():
                modules[path].__dict__["forward"] = lambda *_, out=known.output, **__: out
            with evaluating(self.network):
                return call(self.network, self.inputs)
        finally:
            for path in done:
                del modules[path].__dict__["forward"]

    def _recorded(self) -> Any:
        modules = [(path, m) for path, m in self.network.named_modules() if path]
        # A hook may depend on being called, and a forward of an instance would be lost.
        plain = not any(
            m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)
            for m in self.network.modules()
        )
        handles = []
        if plain:
            for path, module in modules:
                handles.append(module.register_forward_pre_hook(self._begins(path)))
                handles.append(module.register_forward_hook(self._ends(path)))
        try:
            with evaluating(self.network):
                output = call(self.network, self.inputs)
        finally:
            for handle in handles:
                handle.remove()
        for path in self._repeated:  # which of its calls is meant, a path does not say
            self._calls[path].versions.clear()
        return output

    def _begins(self, path: str) -> Any:
        def hook(*_: Any) -> None:
            self._clock += 1
            if path in self._calls:
                self._repeated.add(path)
            else:
                self._calls[path] = _Call(self._clock)

        return hook

    def _ends(self, path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            self._clock += 1
            known = self._calls[path]
            known.end = self._clock
            leaves = list(output) if isinstance(output, tuple) else [output]
            if not all(isinstance(leaf, Tensor) for leaf in leaves):
                return
            for leaf in leaves:
                self._storages[leaf.untyped_storage().data_ptr()] = leaf.untyped_storage().nbytes()
            if sum(self._storages.values()) <= MOST_BYTES:
                known.output = output
                known.versions = [(leaf, leaf._version) for leaf in leaves]

        return hook

    def _begin(self, path: str) -> float:
        """When a module began; of one that is not called by itself, the module around it."""
        while path and path not in self._calls:
            path = path.rpartition(".")[0]
        return self._calls[path].begin if path else 0

    def _differs(self) -> str:
        """Why half a pass does not compute what the whole one did; empty where it does.

        It does not where a module keeps something for another one aside.
        """
        middle = sorted(self._calls, key=lambda path: self._calls[path].begin)
        try:
            output = self.again([middle[len(middle) // 2]])
        except Exception as error:  # whatever the model's own code raises
            return f"half a pass fails ({in_words(error)})"
        both = pytree.tree_leaves(output), pytree.tree_leaves(self.output)
        same = len(both[0]) == len(both[1]) and all(
            torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else True
            for a, b in zip(*both, strict=True)
        )
        return "" if same else "half a pass computes something else"
