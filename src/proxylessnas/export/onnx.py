"""A network as a file for somewhere else: ONNX, torch.export, tflite; compared with eager."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.export.compare import (
    TOLERANCE,
    Difference,
    difference,
    eager_outputs,
    with_tensors_alone,
)
from proxylessnas.export.onnx_session import feed_of, named_inputs, names_of, open_session
from proxylessnas.export.quiet import denormal_mode, exporting
from proxylessnas.io.files import write_atomic
from proxylessnas.training.copying import copied


def to_onnx(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: str | Path | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> bytes:
    """The network as one ONNX file with its weights; BN is folded in.

    path: where the file is written too, atomically. metadata: plain JSON values, kept in the
    file's `metadata_props` (strings as they are, others as JSON).

    The legacy exporter is used: it converts a block 30 times faster, with the same graph.

    Raises:
        ExportError: the network has an operation that ONNX lacks, or cannot be traced.
    """
    inputs = tuple(x.detach().cpu() for x in inputs)
    plain = copied(module).cpu().eval()
    buffer = io.BytesIO()
    with contextlib.suppress(AttributeError):  # where an export fails it prints the whole graph
        torch._C._jit_set_onnx_log_output_stream("stderr")
    with exporting(module, "to ONNX"):
        plain, count = with_tensors_alone(plain, inputs)
        if any(isinstance(m, torch.jit.ScriptModule) for m in plain.modules()):
            # The exporter cannot trace them, which `trace` can.
            plain = torch.jit.trace(plain, inputs, check_trace=False)  # type: ignore[no-untyped-call]
        torch.onnx.export(
            plain,
            inputs,
            buffer,  # type: ignore[arg-type]  # the legacy exporter takes a file object
            dynamo=False,
            input_names=names_of("input", len(inputs)),
            output_names=names_of("output", count),
        )
    content = _with_metadata(buffer.getvalue(), metadata) if metadata else buffer.getvalue()
    if path is not None:
        write_atomic(Path(path), content)
    return content


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
    with denormal_mode():
        session = open_session(content)
        feed = feed_of(session, named_inputs([x.detach().cpu().numpy() for x in inputs]))
        outputs = session.run(None, feed)
    return difference(eager_outputs(module, inputs), outputs, tolerance=tolerance)


def _with_metadata(content: bytes, metadata: Mapping[str, Any]) -> bytes:
    import onnx

    model = onnx.load_model_from_string(content)
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    return bytes(model.SerializeToString())
