"""Binary gates (paper section 3.2): one path computes, every candidate's gate gets a gradient.

A mixed operation's output is Σ_j g_j·o_j(x) with one-hot gates g (eq. 3). `run` evaluates the
sum for one of three kinds of gate:

    Path      one active candidate; nothing else exists. Weight steps and evaluation.
    Binary    one active candidate, and ∂L/∂g_j = ⟨∂L/∂y, o_j(x)⟩ for it and for some
              inactive ones. Architecture steps (two-path: one inactive; full: all).
    Mixture   Σ_j w_j·o_j(x) over all candidates, as DARTS does. For comparison only.

An inactive candidate runs forward inside the backward pass, where ∂L/∂y is known: its
output is reduced to one inner product at once, and no activation of it is stored. So the
memory of an architecture step is that of one path, however many candidates there are.

Positions that share a choice are given one row of gates: each adds its own inner products
to the row's gradient, as autograd sums over the uses of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

from proxylessnas.errors import SupernetError


@dataclass(frozen=True, eq=False)
class Path:
    """Only candidate `active` runs."""

    active: int


@dataclass(frozen=True, eq=False)
class Binary:
    """Candidate `active` runs; the gates of `active` and `inactive` receive ∂L/∂g.

    gates: [candidates], a tensor that requires grad. Its values are not read: the output is the
        active candidate's, so only the gradient matters.
    """

    active: int
    inactive: tuple[int, ...]
    gates: Tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """Every candidate runs and is weighted; all activations are kept. weights: [candidates]."""

    weights: Tensor


Gate = Path | Binary | Mixture


def run(
    gate: Gate, candidates: Sequence[nn.Module], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """The mixed operation's output under `gate`, of whatever structure the candidates return.

    Raises:
        SupernetError: candidates return different structures or shapes, return no
            floating-point tensor, or modify their input in place.
    """
    if isinstance(gate, Mixture):
        return _mixture(gate.weights, [c(*args, **kwargs) for c in candidates])
    # Without gradients a binary gate has nothing to learn: the active candidate is the output.
    if isinstance(gate, Path) or not torch.is_grad_enabled():
        return candidates[gate.active](*args, **kwargs)
    return _binary(gate, candidates, args, kwargs)


def _binary(
    gate: Binary, candidates: Sequence[nn.Module], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """The active candidate's output, with a backward pass that runs the inactive ones."""
    # The inactive candidates read the same inputs later, in the backward pass. Detached tensors
    # keep these alive without their graph: ∂L/∂x goes through the active candidate alone, for
    # the gates of the others are 0. They share memory and version counters with the originals.
    inputs, as_arguments = _flattened(args, kwargs)
    inputs = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in inputs]
    versions = _versions(inputs)
    output = candidates[gate.active](*args, **kwargs)
    leaves = _leaves(output)
    spec = None if isinstance(output, Tensor) else pytree.tree_structure(output)
    del output  # the leaves hold every tensor of it, and memory counts
    # An in-place activation would have changed what the inactive candidates are to be given.
    _check_unmodified(inputs, versions)
    floating = [i for i, leaf in enumerate(leaves) if _differentiable(leaf)]
    if not floating:
        raise SupernetError(
            f"a mixed operation's candidate {gate.active} returns no floating-point tensor, alone "
            "or in tuples, lists and dicts: its gate has no gradient"
        )
    autocast = _current_autocast(inputs)

    def outputs_of(candidate: int) -> list[Any]:
        """o_j(x) of an inactive candidate; called in the backward pass."""
        # Layers after the mixed operation may have worked on x in place since.
        _check_unmodified(inputs, versions)
        call_args, call_kwargs = as_arguments(inputs)
        with autocast():
            other = candidates[candidate](*call_args, **call_kwargs)
        _check_unmodified(inputs, versions)
        others = _leaves(other)
        alike = isinstance(other, Tensor) if spec is None else pytree.tree_structure(other) == spec
        if not alike or not all(_differentiable(others[i]) for i in floating):
            raise _structure_error(gate.active, candidate)
        return [others[i] for i in floating]

    # Integer outputs (lengths, masks) carry no gradient and pass by the gate.
    passed = _GateGradient.apply(
        gate.gates, outputs_of, gate.active, gate.inactive, *[leaves[i] for i in floating]
    )
    if spec is None:
        return passed[0]
    for i, leaf in zip(floating, passed, strict=True):
        leaves[i] = leaf
    return pytree.tree_unflatten(leaves, spec)


def _flattened(
    args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The leaves of a call's arguments, and a function from such leaves to arguments."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return [args[0]], lambda leaves: (leaves, {})  # most calls, in a tenth of the time
    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    return leaves, lambda leaves: pytree.tree_unflatten(leaves, spec)


def _leaves(output: Any) -> list[Any]:
    return [output] if isinstance(output, Tensor) else pytree.tree_leaves(output)


def _structure_error(first: int, second: int) -> SupernetError:
    return SupernetError(
        f"candidates {first} and {second} of a mixed operation return different structures; all "
        "must return tensors at the same places, and dicts with the same keys in the same order"
    )


def _shape_error(first: object, second: object) -> SupernetError:
    return SupernetError(
        f"candidates of a mixed operation return the shapes {first} and {second}; all must return "
        "the same"
    )


def _versions(leaves: Sequence[Any]) -> list[int]:
    return [leaf._version if isinstance(leaf, Tensor) else 0 for leaf in leaves]


def _check_unmodified(inputs: Sequence[Any], versions: Sequence[int]) -> None:
    current = _versions(inputs)
    if current == versions:
        return
    for leaf, before, now in zip(inputs, versions, current, strict=True):
        if now != before:
            raise SupernetError(
                f"a mixed operation's input {tuple(leaf.shape)} was modified in place (an "
                "in-place activation at the start of a candidate, or after it?): the candidates "
                "share it, so set inplace=False there"
            )


class _GateGradient(torch.autograd.Function):
    """The identity on the active outputs, whose backward also yields ∂L/∂g.

    y = Σ_j g_j·o_j(x) at a one-hot g is o_active(x), and ∂y/∂g_j = o_j(x): the forward pass is
    the identity, and the backward pass adds an inner product for each gate. Eq. 4 of the paper
    then turns ∂L/∂g into ∂L/∂α (`gradients.eq4`).

    The outputs are copies: later layers may work on them in place (`y += x`), while
    ⟨∂L/∂y, y⟩ needs y as it was.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gates: Tensor,
        outputs_of: Callable[[int], list[Tensor]],
        active: int,
        inactive: tuple[int, ...],
        *outputs: Tensor,
    ) -> tuple[Tensor, ...]:
        # An output that the loss does not use has no ∂L/∂y: no zeros are made for it.
        ctx.set_materialize_grads(False)
        ctx.outputs_of, ctx.active, ctx.inactive = outputs_of, active, inactive
        ctx.gates = gates.detach()
        ctx.save_for_backward(*outputs)
        return tuple(output.clone() for output in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        # y = Σ_j g_j·o_j(x), so ∂L/∂g_j = ⟨∂L/∂y, o_j(x)⟩, for the active candidate (g = 1) and
        # for the inactive ones (g = 0) alike. Candidates outside the support keep 0, and eq. 4
        # gives them no weight.
        row = torch.zeros_like(ctx.gates)
        row[ctx.active] = _inner(grads, ctx.saved_tensors)
        # One after the other, so that one candidate's activations exist at a time. A backward
        # pass records no graph, so these forward passes keep nothing.
        for candidate in ctx.inactive:
            row[candidate] = _inner(grads, ctx.outputs_of(candidate))
        ctx.outputs_of = None  # lets go of the inputs
        # ∂L/∂y goes on unchanged: for the layers before, the gate is the identity.
        return row, None, None, None, *grads


def _inner(grads: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> Tensor:
    """Σ over the outputs of ⟨∂L/∂y, y⟩, in float32 at least."""
    # Half precision would overflow here: an activation has up to millions of elements.
    products = []
    for grad, output in zip(grads, outputs, strict=True):
        if grad is None:
            continue
        if grad.shape != output.shape:
            raise _shape_error(tuple(grad.shape), tuple(output.shape))
        products.append(torch.dot(*_flat(grad, output)))
    return products[0] if len(products) == 1 else sum(products, torch.zeros(()))


def _flat(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both as vectors in one common order, without a copy where their memory is laid out alike."""
    # Any order of the elements gives the same sum; the order in memory needs no copy.
    if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    a, b = a.reshape(-1), b.reshape(-1)
    if a.dtype == b.dtype == torch.float32:
        return a, b
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(wide), b.to(wide)


def _mixture(weights: Tensor, outputs: Sequence[Any]) -> Any:
    """Σ_j w_j·o_j(x) (eq. 1, as DARTS has it), leaf by leaf; integer leaves are the first's."""
    flat = [pytree.tree_flatten(output) for output in outputs]
    leaves, spec = flat[0]
    for index, (others, structure) in enumerate(flat[1:]):
        if structure != spec or list(map(_differentiable, others)) != [
            _differentiable(leaf) for leaf in leaves
        ]:
            raise _structure_error(0, index + 1)
        # Torch would broadcast different shapes, and sum them without a word.
        if list(map(_shape, others)) != list(map(_shape, leaves)):
            raise _shape_error(list(map(_shape, leaves)), list(map(_shape, others)))
    mixed = [
        sum(w.to(leaf.dtype) * leaf for w, leaf in zip(weights, leaves, strict=False))
        if _differentiable(leaves[0])
        else leaves[0]
        for leaves in zip(*(leaves for leaves, _ in flat), strict=True)
    ]
    return pytree.tree_unflatten(mixed, spec)


def _shape(leaf: object) -> tuple[int, ...] | None:
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else None


def _differentiable(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _current_autocast(inputs: Sequence[Any]) -> Callable[[], AbstractContextManager[object]]:
    """A context with the forward pass's autocast, for the backward pass, which runs outside.

    Otherwise an inactive candidate would compute in another precision than the active one.
    """
    device = next((leaf.device.type for leaf in inputs if isinstance(leaf, Tensor)), "cpu")
    enabled = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device)

    def context() -> AbstractContextManager[object]:
        if not enabled and not torch.is_autocast_enabled(device):
            return nullcontext()
        # No cache: cast weights would live until the outermost autocast block ends.
        return torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False)

    return context
