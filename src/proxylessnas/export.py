"""A network as a file for somewhere else: ONNX, torch.export, tflite; compared with eager."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental import optimization
from torch.utils import _pytree as pytree

from .errors import ExportError, MissingDependency
from .files import write_atomic

TOLERANCE = 1e-4  # of the largest output; float32 in another order of summation


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far an exported network's outputs are from eager's.

    absolute: the largest difference of one output value.
    relative: the same, as a share of the largest absolute output value.
    """

    absolute: float
    relative: float


def to_onnx(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: str | Path | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    names: Sequence[str] = (),
    dynamic_batch: bool = False,
) -> bytes:
    """The network as one ONNX file with its weights; BN is folded in.

    path: where the file is written too, atomically. metadata: plain JSON values, kept in the
    file's `metadata_props` (strings as they are, others as JSON). names: of the inputs.
    dynamic_batch: leave dimension 0 of every input and output open.

    The legacy exporter is used: it converts a block 30 times faster, with the same graph.

    Raises:
        ExportError: the network has an operation that ONNX lacks, or cannot be traced.
    """
    inputs = tuple(x.detach().cpu() for x in inputs)
    plain = copy.deepcopy(module).cpu().eval()
    input_names = list(names) or _names("input", len(inputs))
    buffer = io.BytesIO()
    with contextlib.suppress(AttributeError):  # where an export fails it prints the whole graph
        torch._C._jit_set_onnx_log_output_stream("stderr")
    try:
        with _quietly(), stderr_away(), torch.no_grad():
            outputs = pytree.tree_leaves(plain(*inputs))
            output_names = _names("output", len(outputs))
            axes = {name: {0: "batch"} for name in [*input_names, *output_names]}
            torch.onnx.export(
                plain,
                inputs,
                buffer,  # type: ignore[arg-type]  # the legacy exporter takes a file object
                dynamo=False,
                input_names=input_names,
                output_names=output_names,
                dynamic_axes=axes if dynamic_batch else None,
            )
    except Exception as error:  # the exporter, and the module's own code, raise anything
        raise ExportError(
            f"{type(module).__name__} cannot be exported to ONNX: {one_line(error)}"
        ) from error
    content = _with_metadata(buffer.getvalue(), metadata) if metadata else buffer.getvalue()
    if path is not None:
        write_atomic(Path(path), content)
    return content


def onnx_metadata(content: bytes) -> dict[str, str]:
    """The `metadata_props` of an ONNX file."""
    import onnx

    return {p.key: p.value for p in onnx.load_model_from_string(content).metadata_props}


def compare(
    module: nn.Module,
    content: bytes,
    inputs: tuple[Tensor, ...],
    *,
    tolerance: float = TOLERANCE,
) -> Difference:
    """Run the ONNX file and the module on `inputs`.

    Raises:
        ExportError: the outputs differ by more than `tolerance` of the largest output, in
            shape, or in being finite.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    arrays = [x.detach().cpu().numpy() for x in inputs]
    feed = dict(zip([i.name for i in session.get_inputs()], arrays, strict=False))
    return difference(eager_outputs(module, inputs), session.run(None, feed), tolerance=tolerance)


def eager_outputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[np.ndarray[Any, Any]]:
    """What the module computes in eval mode on the CPU, as arrays."""
    with torch.no_grad():
        leaves = pytree.tree_leaves(copy.deepcopy(module).cpu().eval()(*(x.cpu() for x in inputs)))
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


def to_torch_export(module: nn.Module, inputs: tuple[Tensor, ...], path: str | Path) -> Difference:
    """Write a `.pt2` of torch.export, and compare what it computes with eager.

    Raises:
        ExportError: it cannot be exported, or computes something else.
    """
    plain = copy.deepcopy(module).cpu().eval()
    inputs = tuple(x.detach().cpu() for x in inputs)
    try:
        with _quietly(), torch.no_grad():
            program = torch.export.export(plain, inputs)
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
            leaves = pytree.tree_leaves(program.module()(*inputs))
    except Exception as error:  # as above
        raise ExportError(
            f"{type(module).__name__} cannot be exported by torch.export: {one_line(error)}"
        ) from error
    write_atomic(Path(path), buffer.getvalue())
    return difference(eager_outputs(module, inputs), [v.numpy() for v in leaves])


def to_tflite(
    module: nn.Module, inputs: tuple[Tensor, ...], path: str | Path | None = None
) -> bytes:
    """The network as one `.tflite` file for LiteRT, in float32.

    Images, that is every input and output of four dimensions, are [batch, height, width,
    channels] there, as the runtime's kernels want them: `channels_last` of the inputs.

    Raises:
        MissingDependency: the extra `litert` is not installed.
        ExportError: the network cannot be converted.
    """
    litert_torch = _litert_torch()
    inputs = tuple(x.detach().cpu() for x in inputs)
    plain = fold(copy.deepcopy(module).cpu())  # the caller's may be on a GPU, and stays there
    try:
        with _quietly(), stderr_away(), torch.no_grad():
            outputs = pytree.tree_leaves(plain(*inputs))
            wrapped = litert_torch.to_channel_last_io(
                plain,
                args=[i for i, x in enumerate(inputs) if x.dim() == 4],
                outputs=[i for i, x in enumerate(outputs) if x.dim() == 4],
            ).eval()
            content = litert_torch.convert(wrapped, channels_last(inputs)).model_content()
    except Exception as error:  # the converter, and the module's own code, raise anything
        raise ExportError(
            f"{type(module).__name__} cannot be exported to tflite: {one_line(error)}"
        ) from error
    if path is not None:
        write_atomic(Path(path), bytes(content))
    return bytes(content)


def channels_last(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """[batch, channels, height, width] to [batch, height, width, channels]; others as they are."""
    return tuple(x.permute(0, 2, 3, 1).contiguous() if x.dim() == 4 else x for x in inputs)


def fold(module: nn.Module) -> nn.Module:
    """A copy in eval mode with BN folded, as far as torch.fx can follow the module."""
    plain = copy.deepcopy(module).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optimization.fuse(plain).eval()
    except Exception:  # control flow that cannot be traced: it stays unfolded, as it would run
        return plain


def one_line(error: BaseException) -> str:
    """The first lines of an error as one, in at most 200 characters."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def _names(base: str, count: int) -> list[str]:
    return [base] if count == 1 else [f"{base}_{i}" for i in range(count)]


def _with_metadata(content: bytes, metadata: Mapping[str, Any]) -> bytes:
    import onnx

    model = onnx.load_model_from_string(content)
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    return bytes(model.SerializeToString())


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """No deprecation notes and tracer warnings on the user's terminal."""
    before = logging.root.manager.disable
    with one_thread(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread, for much small work such as exports.

    Threads that wait for each other on a busy machine make it ten times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _litert_torch() -> Any:
    if importlib.util.find_spec("litert_torch") is None:
        raise MissingDependency("litert-torch", "litert", "the conversion to tflite")
    with _quietly(), stderr_away():
        import litert_torch
        from litert_torch import progress

    progress.config.show_progress = False  # it draws on the terminal otherwise
    return litert_torch


@contextlib.contextmanager
def stderr_away() -> Iterator[None]:
    """Native code's log lines, which Python's logging cannot stop, go nowhere meanwhile."""
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
