"""Networks whose output no longer depends on their input, because of a Zero on the trunk.

A runtime folds such a network to a constant: its latency says nothing of its blocks, and a cost
model that is fitted to it is wrong for all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from proxylessnas.core.mixed import MixedOp, Zero
from proxylessnas.core.supernet import Supernet
from proxylessnas.data.arguments import arguments_of
from proxylessnas.errors import SupernetError
from proxylessnas.training.freezing import evaluating


def check_zeros(supernet: Supernet, inputs: tuple[Any, ...]) -> None:
    """Refuse a Zero that leaves nothing of the network, wherever else it stands or not.

    Raises:
        SupernetError: there is one; it is named.
    """
    zeros = [_zero_of(positions) for positions in supernet.positions]
    # Some other candidate: the second where Zero is the first.
    alive = [
        min(1, len(names) - 1) if zero == 0 else 0
        for names, zero in zip(supernet.candidates, zeros, strict=True)
    ]
    dead = [m for m, zero in enumerate(zeros) if zero is not None]
    if not dead or not depends(supernet, inputs, alive):
        return
    for m in dead:
        zero = zeros[m]
        assert zero is not None
        if not depends(supernet, inputs, [*alive[:m], zero, *alive[m + 1 :]]):
            raise SupernetError(
                f"where {supernet.names[m]!r} chooses {supernet.candidates[m][zero]!r} (Zero), the "
                "output no longer depends on the input, and a runtime folds the whole network to a "
                "constant: put the mixed operation beside a shortcut (Residual), or use "
                "nn.Identity() in place of Zero"
            )


def living(
    supernet: Supernet, inputs: tuple[Any, ...], networks: Sequence[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """The networks whose output depends on their input; all, where none has a Zero."""
    if all(_zero_of(positions) is None for positions in supernet.positions):
        return list(networks)
    return [n for n in networks if depends(supernet, inputs, n)] or list(networks)


def depends(supernet: Supernet, inputs: tuple[Any, ...], indices: Sequence[int]) -> bool:
    """Whether autograd finds a way from the input, or from what it looks up, to the output."""
    with supernet.active(indices) as model, _followed(model, inputs) as leaves:
        args, kwargs = arguments_of(leaves)
        outputs = pytree.tree_leaves(model(*args, **kwargs))
    return any(isinstance(v, Tensor) and v.requires_grad for v in outputs)


def _zero_of(positions: Sequence[MixedOp]) -> int | None:
    """The index of a choice's Zero; None where it has none."""
    candidates = list(positions[0].candidates.values())
    return next((j for j, c in enumerate(candidates) if isinstance(c, Zero)), None)


@contextmanager
def _followed(model: nn.Module, inputs: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Gradients of nothing but the inputs and the embeddings; the inputs to run the model with."""
    learning = {p: p.requires_grad for p in model.parameters()}
    tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}

    def leaf(tensor: Tensor) -> Tensor:
        copy = tensor.detach().clone()
        return copy.requires_grad_(copy.is_floating_point())

    try:
        for parameter in learning:
            parameter.requires_grad_(parameter in tables)
        with evaluating(model), torch.enable_grad():
            yield pytree.tree_map_only(Tensor, leaf, tuple(inputs))
    finally:
        for parameter, before in learning.items():
            parameter.requires_grad_(before)
