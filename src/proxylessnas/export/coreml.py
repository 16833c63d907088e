"""A network as an .mlpackage of Core ML, for Apple's devices; untested on a device."""

from __future__ import annotations

import importlib.util
import io
import shutil
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from proxylessnas.errors import ConfigError, MissingDependency
from proxylessnas.export.compare import with_tensors_alone
from proxylessnas.export.fold import fold
from proxylessnas.export.onnx_session import names_of
from proxylessnas.export.quiet import exporting
from proxylessnas.training.copying import copied

UNTESTED = "untested on a device: Core ML runs on Apple's systems alone, compare it there"


def zipped_coreml(module: nn.Module, inputs: tuple[Tensor, ...], precision: str = "f32") -> bytes:
    """The `.mlpackage` of a network as a zip, see `export_coreml`."""
    with tempfile.TemporaryDirectory() as folder:
        export_coreml(module, inputs, Path(folder, "network.mlpackage"), precision)
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for file in sorted(Path(folder).rglob("*")):
                archive.write(file, file.relative_to(folder))
    return content.getvalue()


def export_coreml(
    module: nn.Module, inputs: tuple[Tensor, ...], path: str | Path, precision: str = "f32"
) -> None:
    """Write an `.mlpackage` (an ML program), a folder, in place of one that is there.

    What it computes cannot be compared with eager except on a Mac.

    precision: f32, or fp16, without which Apple's neural engine does not run it.

    Raises:
        MissingDependency: the extra `coreml` is not installed.
        ExportError: the network cannot be converted. ConfigError: the path is another folder.
    """
    if importlib.util.find_spec("coremltools") is None:
        raise MissingDependency("coremltools", "coreml", "Core ML's .mlpackage")
    path = Path(path)
    if path.exists() and not (path / "Manifest.json").is_file():
        raise ConfigError(f"{path} exists and is no .mlpackage: choose another name")
    inputs = tuple(x.detach().cpu() for x in inputs)
    plain = fold(copied(module).cpu(), len(inputs))
    with exporting(module, "to Core ML"):
        import coremltools

        plain, count = with_tensors_alone(plain, inputs)
        traced = torch.jit.trace(plain.eval(), inputs, check_trace=False)  # type: ignore[no-untyped-call]
        names = names_of("input", len(inputs))
        model = coremltools.convert(
            traced,
            convert_to="mlprogram",
            inputs=[
                coremltools.TensorType(name=name, shape=tuple(x.shape))
                for name, x in zip(names, inputs, strict=True)
            ],
            outputs=[coremltools.TensorType(name=name) for name in names_of("output", count)],
            compute_precision=getattr(
                coremltools.precision, {"f32": "FLOAT32", "fp16": "FLOAT16"}[precision]
            ),
            skip_model_load=True,
        )
        part = path.with_suffix(".part.mlpackage")
        shutil.rmtree(part, ignore_errors=True)
        model.save(str(part))
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
