"""What must not change in a step: weights without gradients, buffers that stay.

Batch normalisation uses batch statistics in an architecture step, as published, but its
running statistics stay: with `track_running_stats` off a module in training mode computes the
same output and touches nothing. Buffers of any other module are copied before and restored
afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from proxylessnas.seeds import undisturbed_generators


@dataclass(frozen=True, eq=False)
class ModuleTensors:
    """The parameters of some modules and the modules among them with buffers, found once.

    batch_norms: the library's own batch normalisations. with_buffers: all others that have
        buffers.
    """

    parameters: tuple[nn.Parameter, ...]
    batch_norms: tuple[_BatchNorm, ...]
    with_buffers: tuple[nn.Module, ...]

    @staticmethod
    def of(modules: Iterable[nn.Module]) -> ModuleTensors:
        """Of these modules, without their submodules; what is shared counts once."""
        parameters: dict[int, nn.Parameter] = {}
        batch_norms, with_buffers = [], []
        for module in dict.fromkeys(modules):
            parameters |= {id(p): p for p in module.parameters(recurse=False)}
            # A subclass may do anything in its forward; only the library's own is known.
            if isinstance(module, _BatchNorm) and type(module).__module__.startswith("torch."):
                batch_norms.append(module)
            elif module._buffers:
                with_buffers.append(module)
        return ModuleTensors(tuple(parameters.values()), tuple(batch_norms), tuple(with_buffers))


@contextmanager
def frozen(tensors: Iterable[ModuleTensors]) -> Iterator[None]:
    """Within the block the modules compute as usual, but nothing in them changes."""
    tensors = list(tensors)
    learning = {id(p): p for t in tensors for p in t.parameters if p.requires_grad}
    norms = {id(n): n for t in tensors for n in t.batch_norms if n.track_running_stats}
    snapshots = [BufferSnapshot(m._buffers) for t in tensors for m in t.with_buffers]
    try:
        for parameter in learning.values():
            parameter.requires_grad_(False)
        for norm in norms.values():
            # In evaluation mode the running statistics are used, and do not move anyway.
            norm.track_running_stats = not norm.training
        yield
    finally:
        for parameter in learning.values():
            parameter.requires_grad_(True)
        for norm in norms.values():
            norm.track_running_stats = True
        for snapshot in snapshots:
            snapshot.restore()


class BufferSnapshot:
    """A module's buffers at one moment, whether the module writes into them or replaces them.

    buffers: the module's own dict of buffers, which `restore` writes to.
    """

    def __init__(self, buffers: dict[str, Tensor | None]) -> None:
        self.buffers, self.tensors = buffers, dict(buffers)
        self.values = [(b, b.clone()) for b in buffers.values() if b is not None]

    @torch.no_grad()
    def restore(self, unless: Tensor | None = None) -> None:
        """unless: a bool on the buffers' device; where True the buffers stay as they are now.

        The device itself decides, so that the host need not wait for it.
        """
        if unless is not None and any(self.buffers[n] is not t for n, t in self.tensors.items()):
            if bool(unless):  # between tensors that were replaced the device cannot choose
                return
            unless = None
        for name, tensor in self.tensors.items():
            self.buffers[name] = tensor  # which a scripted module's dict can do, and no `update`
        for buffer, value in self.values:
            buffer.copy_(value if unless is None else torch.where(unless, buffer, value))


@contextmanager
def undisturbed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Afterwards these modules' buffers, gradients and modes, and global generators, are as before.

    Within the block no optimiser takes a step: parameters are not copied.
    """
    modules = list(dict.fromkeys(modules))
    parameters = [p for module in modules for p in module.parameters(recurse=False)]
    gradients, modes = [p.grad for p in parameters], [module.training for module in modules]
    for parameter in parameters:
        parameter.grad = None  # or a backward pass would add to it
    try:
        with undisturbed_generators(), frozen_buffers(modules):
            yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for module, training in zip(modules, modes, strict=True):
            module.training = training


@contextmanager
def frozen_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Afterwards these modules' own buffers are as before."""
    snapshots = [BufferSnapshot(module._buffers) for module in modules if module._buffers]
    try:
        yield
    finally:
        for snapshot in snapshots:
            snapshot.restore()


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every submodule has its mode again."""
    before = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in before:
            module.training = training
