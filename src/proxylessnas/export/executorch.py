"""A network as a .pte file for ExecuTorch, with the kernels of XNNPACK."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.errors import ExportError, MissingDependency, foreign
from proxylessnas.export.compare import (
    Difference,
    difference,
    eager_outputs,
    with_tensors_alone,
)
from proxylessnas.export.fold import fold
from proxylessnas.export.quiet import exporting, quietly
from proxylessnas.io.files import write_atomic
from proxylessnas.training.copying import copied


def to_executorch(module: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """The network as one `.pte` file in float32; what XNNPACK lacks runs on portable kernels.

    Raises:
        MissingDependency: the extra `executorch` is not installed.
        ExportError: the network cannot be converted.
    """
    check_executorch()
    inputs = tuple(x.detach().cpu() for x in inputs)
    plain = fold(copied(module).cpu())
    with exporting(module, "to ExecuTorch"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        plain, _ = with_tensors_alone(plain, inputs)
        program = torch.export.export(plain.eval(), inputs)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        return bytes(lowered.to_executorch().buffer)


def export_executorch(
    module: nn.Module, inputs: tuple[Tensor, ...], path: str | Path
) -> Difference:
    """Write a `.pte`, and compare what it computes with eager.

    Raises:
        MissingDependency, ExportError: see `to_executorch`; or it computes something else.
    """
    content = to_executorch(module, inputs)
    with foreign(ExportError, "ExecuTorch cannot run what it exported"):
        outputs = loaded(content).execute([x.detach().cpu().contiguous() for x in inputs])
    found = difference(eager_outputs(module, inputs), [value.numpy() for value in outputs])
    write_atomic(Path(path), content)
    return found


def loaded(content: bytes) -> Any:
    """The method `forward` of a `.pte`'s content."""
    with quietly():
        from executorch.runtime import Runtime

        return Runtime.get().load_program(content).load_method("forward")


def check_executorch() -> None:
    """Raises MissingDependency where the package is not installed."""
    if importlib.util.find_spec("executorch") is None:
        raise MissingDependency("executorch", "executorch", "ExecuTorch's .pte")
