"""How far an exported network's outputs are from eager's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from proxylessnas.errors import ExportError
from proxylessnas.training.copying import copied

TOLERANCE = 1e-4  # of the largest output; float32 in another order of summation


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far an exported network's outputs are from eager's.

    absolute: the largest difference of one output value.
    relative: the same, as a share of the largest absolute output value.
    """

    absolute: float
    relative: float


def with_tensors_alone(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, int]:
    """The module with tensors alone as its outputs, and how many: None and numbers go nowhere.

    Nor do tuples with names, which some exporters construct from a list.

    Raises:
        ExportError: it returns no tensor.
    """
    output = module(*inputs)
    leaves = pytree.tree_leaves(output)
    count = sum(isinstance(leaf, Tensor) for leaf in leaves)
    if not count:
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
        raise ExportError(f"{type(module).__name__} returns no tensor, but {kinds}")
    plain = isinstance(output, Tensor) or type(output) in (tuple, list, dict)
    return (module if plain and count == len(leaves) else _Tensors(module).eval()), count


class _Tensors(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = pytree.tree_leaves(self.module(*inputs))
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))


def eager_outputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[np.ndarray[Any, Any]]:
    """What the module computes in eval mode on the CPU, as arrays."""
    with torch.no_grad():
        leaves = pytree.tree_leaves(copied(module).cpu().eval()(*(x.cpu() for x in inputs)))
    return [v.numpy() for v in leaves if isinstance(v, Tensor)]


def difference(
    expected: Sequence[np.ndarray[Any, Any]],
    got: Sequence[np.ndarray[Any, Any]],
    *,
    tolerance: float = TOLERANCE,
) -> Difference:
    """The largest difference between two lists of outputs.

    Raises:
        ExportError: see `compare`.
    """
    if [a.shape for a in expected] != [np.shape(b) for b in got]:
        raise ExportError(
            f"the exported network returns the shapes {[np.shape(b) for b in got]}, "
            f"eager {[a.shape for a in expected]}"
        )
    absolute = relative = 0.0
    for a, b in zip(expected, got, strict=True):
        wide, other = a.astype(np.float64), np.asarray(b).astype(np.float64)
        apart = float(np.nan_to_num(np.abs(wide - other), nan=np.inf).max(initial=0.0))
        scale = float(np.abs(wide).max(initial=0.0))
        absolute = max(absolute, apart)
        relative = max(relative, apart / scale if scale else apart)
    if relative > tolerance:
        raise ExportError(
            f"the exported network computes something else: it differs from eager by "
            f"{absolute:.3g}, which is {relative:.2g} of the largest output "
            f"(tolerance {tolerance:.0e})"
        )
    return Difference(absolute=absolute, relative=relative)
