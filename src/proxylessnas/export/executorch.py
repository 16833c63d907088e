"""A network as a .pte file for ExecuTorch, with the kernels of XNNPACK."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
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

INT8 = "int8"  # a constant method of our int8 files, by which they are known


def to_executorch(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    calibration: Iterable[tuple[Tensor, ...]] | None = None,
) -> bytes:
    """The network as one `.pte` file; what XNNPACK lacks runs on portable kernels.

    calibration: inputs of the same shapes, whose ranges the file in int8 has (quantised by
    XNNPACK's quantiser, weights with a scale for every output channel); without it, float32.

    Raises:
        MissingDependency: the extra `executorch` is not installed.
        ExportError: the network cannot be converted.
    """
    check_executorch()
    inputs = tuple(x.detach().cpu() for x in inputs)
    plain = fold(copied(module).cpu(), len(inputs))
    with exporting(module, "to ExecuTorch"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        plain, _ = with_tensors_alone(plain, inputs)
        marks = {}
        if calibration is not None:
            plain, marks = _quantised(plain.eval(), inputs, calibration), {INT8: 1}
        program = torch.export.export(plain if marks else plain.eval(), inputs)
        lowered = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods=marks or None
        )
        return bytes(lowered.to_executorch().buffer)


def _quantised(
    plain: nn.Module, inputs: tuple[Tensor, ...], calibration: Iterable[tuple[Tensor, ...]]
) -> nn.Module:
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    scheme = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    quantiser = xnnpack.XNNPACKQuantizer().set_global(scheme)
    prepared = prepare_pt2e(torch.export.export(plain, inputs).module(), quantiser)
    for example in calibration:
        prepared(*(x.detach().cpu() for x in example))
    converted: nn.Module = convert_pt2e(prepared)
    return converted


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
    program = _program(content)
    method = program.load_method("forward")
    method.program = program  # whose memory it reads without holding it
    return method


def is_int8(content: bytes) -> bool:
    """Whether a `.pte` says that it is in int8, as ours do."""
    return INT8 in _program(content).method_names


def _program(content: bytes) -> Any:
    with quietly():
        from executorch.runtime import Runtime

        return Runtime.get().load_program(content)


def check_executorch() -> None:
    """Raises MissingDependency where the package is not installed."""
    if importlib.util.find_spec("executorch") is None:
        raise MissingDependency("executorch", "executorch", "ExecuTorch's .pte")
