"""A network as whatever file a path's name asks for, compared with eager."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from proxylessnas.architecture import Architecture
from proxylessnas.errors import ConfigError
from proxylessnas.export.compare import Difference
from proxylessnas.export.executorch import export_executorch
from proxylessnas.export.onnx import compare, to_onnx
from proxylessnas.export.python import to_python
from proxylessnas.export.tflite import export_tflite
from proxylessnas.export.torch_export import to_torch_export


def export_network(
    architecture: Architecture, network: nn.Module, inputs: tuple[Tensor, ...], path: str | Path
) -> Difference:
    """Write `.onnx`, `.pt2` of torch.export, `.tflite`, `.pte`, or a folder of plain Python.

    Raises:
        ConfigError: the name ends otherwise. MissingDependency: see `to_tflite`.
        ExportError: the network cannot be exported, or the export computes something else.
    """
    suffix = Path(path).suffix
    if suffix == ".onnx":
        return compare(network, to_onnx(network, inputs, path), inputs)
    if suffix == ".pt2":
        return to_torch_export(network, inputs, path)
    if suffix == ".tflite":
        return export_tflite(network, inputs, path)
    if suffix == ".pte":
        return export_executorch(network, inputs, path)
    if suffix in ("", ".py"):
        return to_python(architecture, network, path)
    raise ConfigError(
        f"--export {path}: the name must end in .onnx, .pt2, .tflite, .pte, or be a folder"
    )
