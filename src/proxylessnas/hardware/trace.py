"""One forward pass on example inputs finds every distinct candidate and its inputs.

The measured unit of a mixed operation is the operation itself, or the `Residual` that owns
it as its branch: a candidate's cost includes the shortcut's addition. Identity and Zero
cost exactly 0 and are not measured. The batch dimension is part of a key's shape: a key
is one amount of work.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from proxylessnas.core.mixed import MixedOp, Residual, Zero, derive
from proxylessnas.core.supernet import Supernet
from proxylessnas.data.arguments import register_dataclasses
from proxylessnas.errors import SupernetError
from proxylessnas.hardware.examples import (
    check_examples,
    initialise_lazy,
    plain_call,
    run_once,
    shapes_of,
)
from proxylessnas.hardware.fingerprint import fingerprint, label
from proxylessnas.seeds import derive_seed
from proxylessnas.training.freezing import BufferSnapshot


@dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    """A plain module in eval mode that can be exported and measured alone.

    key: label, input shapes and structural hash; what the latency table is indexed by.
    inputs, kwargs: what the network passes it; floating tensors are replaced by normal
        noise, because activations of an untrained network can be denormal and slow.
    """

    key: str
    label: str
    module: nn.Module
    inputs: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def plain(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """See `plain_call`."""
        return plain_call(self.module, self.inputs, self.kwargs)


@dataclass(frozen=True, kw_only=True)
class PositionCall:
    """One call of a mixed operation in the forward pass.

    path: its module path. keys: one per candidate; None where the candidate costs nothing.
    """

    path: str
    keys: tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """The units of a model, and its calls of them in one forward pass.

    units: key -> unit, every distinct one once, in the order of the first call.
    calls: calls[m] are the calls of choice m, in order, at all its positions.
    keys: keys[m][j] are the keys of candidate j at each of these calls, whose costs add up;
        empty where the candidate costs nothing.
    inputs: the example inputs of the whole model.
    """

    units: Mapping[str, Unit]
    calls: tuple[tuple[PositionCall, ...], ...]
    keys: tuple[tuple[tuple[str, ...], ...], ...]
    inputs: tuple[Any, ...]


def trace(supernet: Supernet, example_inputs: tuple[Any, ...]) -> Trace:
    """Run the model once in eval mode and record the inputs of every mixed operation.

    Buffers stay as they were. Also sets the shape of every `Zero` without a shortcut whose siblings
    change the shape. A mixed operation that is called several times costs each of its calls, and a
    choice those of all its positions; a position that is never called costs nothing, with a
    warning.

    Raises:
        SupernetError: the model fails, or a Zero would need different shapes at different calls.
    """
    check_examples(example_inputs)
    initialise_lazy(supernet, example_inputs)
    recorder = _Recorder(supernet)
    buffers = [BufferSnapshot(m._buffers) for m in supernet.model.modules()]
    with recorder.hooked():
        try:
            run_once(supernet.model, example_inputs)
        finally:
            for snapshot in buffers:
                snapshot.restore()
    calls = recorder.position_calls()  # only now: a copy made in between would have our hooks
    _warn_of_idle_positions(supernet, calls)
    keys = tuple(
        tuple(
            tuple(key for call in row if (key := call.keys[j]) is not None)
            for j in range(len(candidates))
        )
        for candidates, row in zip(supernet.candidates, calls, strict=True)
    )
    return Trace(units=recorder.units, calls=calls, keys=keys, inputs=tuple(example_inputs))


def _warn_of_idle_positions(
    supernet: Supernet, calls: tuple[tuple[PositionCall, ...], ...]
) -> None:
    called = {call.path for row in calls for call in row}
    for path in supernet.paths.values():
        if path not in called:
            warnings.warn(
                f"the forward pass on the example inputs never runs the mixed operation "
                f"{path!r}: all its candidates cost 0",
                stacklevel=3,
            )


# Input shapes and structural hash: what two calls of equal candidates have in common.
_Identity = tuple[str, str]


class _Recorder:
    """Hooks on every unit; at each call, the identities of all candidates."""

    def __init__(self, supernet: Supernet) -> None:
        self.supernet = supernet
        self.units: dict[str, Unit] = {}
        self.calls: list[tuple[MixedOp, list[_Identity]]] = []
        self.key_makers: dict[_Identity, Callable[[], str | None]] = {}  # of its first call
        self.zero_shapes: dict[Zero, torch.Size] = {}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        inside: set[nn.Module] = set()  # an owner is running: its branch's call is the same call

        def before(unit: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            mixed = unit if isinstance(unit, MixedOp) else unit.branch
            assert isinstance(mixed, MixedOp)
            if unit not in inside:
                self.record(mixed, unit, args, kwargs)
            if unit is not mixed:
                inside.add(mixed)

        def after(owner: Residual, *_: Any) -> None:
            inside.discard(owner.branch)

        with ExitStack() as hooks:
            for module in self.supernet.model.modules():
                owner = isinstance(module, Residual) and isinstance(module.branch, MixedOp)
                if owner or isinstance(module, MixedOp):
                    hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
                if owner:
                    hooks.enter_context(module.register_forward_hook(after))
            yield

    def record(
        self, mixed: MixedOp, unit: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        register_dataclasses((args, kwargs))
        if unit is mixed:
            self.shape_zeros(mixed, args, kwargs)
        shapes = shapes_of(args, kwargs, self.supernet.paths[mixed])
        identities: list[_Identity] = []
        for j, (name, candidate) in enumerate(mixed.candidates.items()):
            where = f"{self.supernet.paths[mixed]}.{name}"
            identity = (shapes, fingerprint(unit, {mixed: candidate}, where=where))
            identities.append(identity)
            make_key = partial(self.add_unit, unit, {mixed: j}, shapes, args, kwargs, where)
            self.key_makers.setdefault(identity, make_key)
        self.calls.append((mixed, identities))

    def position_calls(self) -> tuple[tuple[PositionCall, ...], ...]:
        """The calls of every choice; makes the units."""
        keys = {identity: make_key() for identity, make_key in self.key_makers.items()}
        rows: list[list[PositionCall]] = [[] for _ in self.supernet.names]
        row_of = {
            mixed: row
            for positions, row in zip(self.supernet.positions, rows, strict=True)
            for mixed in positions
        }
        for mixed, identities in self.calls:
            path = self.supernet.paths[mixed]
            row_of[mixed].append(PositionCall(path=path, keys=tuple(map(keys.get, identities))))
        return tuple(map(tuple, rows))

    def add_unit(
        self,
        unit: nn.Module,
        chosen: Mapping[MixedOp, int],
        shapes: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        where: str,
    ) -> str | None:
        """The key of a distinct candidate; None where it costs nothing."""
        module = derive(unit, chosen)
        if isinstance(module, nn.Identity | Zero):
            return None
        name = label(module)
        key = f"{name} [{shapes}] {fingerprint(module, where=where)[:10]}"
        if key not in self.units:
            module.eval()
            for parameter in module.parameters():  # scripted modules have no `requires_grad_`
                parameter.requires_grad_(False)
            noise = torch.Generator().manual_seed(derive_seed(0, "unit", key))
            inputs, options = pytree.tree_map_only(
                Tensor, lambda t: _stand_in(t, noise), (args, dict(kwargs))
            )
            self.units[key] = Unit(
                key=key, label=name, module=module, inputs=inputs, kwargs=options
            )
        return key

    def shape_zeros(self, mixed: MixedOp, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Give this operation's Zeros the shape that a sibling returns."""
        candidates = list(mixed.candidates.values())
        zeros = [c for c in candidates if isinstance(c, Zero)]
        sibling = next((c for c in candidates if not isinstance(c, Zero)), None)
        if not zeros or sibling is None:
            return
        output = sibling(*args, **kwargs)
        first = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(output, Tensor) or not isinstance(first, Tensor):
            return
        for zero in zeros:
            shape = output.shape[1:]
            if self.zero_shapes.setdefault(zero, shape) != shape:
                raise SupernetError(
                    f"the mixed operation {self.supernet.paths[mixed]!r} is called with different "
                    f"shapes, so its Zero would have to return {tuple(self.zero_shapes[zero])} and "
                    f"{tuple(shape)}: use one mixed operation for each shape"
                )
            if zero.shape is None and shape != first.shape[1:]:
                zero.shape = tuple(shape)


def _stand_in(tensor: Tensor, noise: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.detach().clone()
    fresh = torch.randn(tensor.shape, generator=noise)
    like = fresh.to(device=tensor.device, dtype=tensor.dtype)
    if tensor.dim() == 4 and not tensor.is_contiguous():
        like = like.contiguous(memory_format=torch.channels_last)
    return like
