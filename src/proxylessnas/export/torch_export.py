"""A network as a .pt2 file of torch.export."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from proxylessnas.export.compare import Difference, difference, eager_outputs
from proxylessnas.export.quiet import exporting
from proxylessnas.io.files import write_atomic
from proxylessnas.training.copying import copied


def to_torch_export(module: nn.Module, inputs: tuple[Tensor, ...], path: str | Path) -> Difference:
    """Write a `.pt2` of torch.export, and compare what it computes with eager.

    Raises:
        ExportError: it cannot be exported, or computes something else.
    """
    plain = copied(module).cpu().eval()
    inputs = tuple(x.detach().cpu() for x in inputs)
    with exporting(module, "by torch.export"):
        program = torch.export.export(plain, inputs)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        leaves = pytree.tree_leaves(program.module()(*inputs))
    write_atomic(Path(path), buffer.getvalue())
    outputs = [v.numpy() for v in leaves if isinstance(v, Tensor)]
    return difference(eager_outputs(module, inputs), outputs)
