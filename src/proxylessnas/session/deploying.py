"""The network as its device computes it: in float itself, in int8 the file that ships.

Every accuracy and every score of a run is taken of this, so that what quantises badly is not chosen
and not reported better than it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proxylessnas.errors import DataError, MeasurementError, foreign
from proxylessnas.export.onnx import to_onnx
from proxylessnas.export.onnx_session import named_inputs
from proxylessnas.export.precision import Feed, costliest, quantised
from proxylessnas.hardware.host import needs_reduced_range
from proxylessnas.hardware.runtimes import Runtime
from proxylessnas.hardware.runtimes.base import Session as Loaded
from proxylessnas.session.problem import Problem
from proxylessnas.session.session import Session
from proxylessnas.training.task import split

INT8 = "model.int8.onnx"
MOST_SEARCHED = 32  # images that tell which blocks quantise badly


@contextmanager
def as_deployed(
    session: Session, network: nn.Module, problem: Problem | None = None
) -> Iterator[nn.Module]:
    """The network itself, or its int8 file run by the session's runtime.

    problem: whose training images the file is calibrated on, where it is not the session's.

    Raises:
        ExportError, MeasurementError: see `int8_file`; or the runtime cannot run it.
    """
    if not session.is_int8:
        yield network
        return
    with running(session.runtime, int8_file(session, network, problem)) as module:
        yield module


def int8_file(session: Session, network: nn.Module, problem: Problem | None = None) -> bytes:
    """The network in int8, calibrated on training images as the network sees them.

    Raises:
        DataError: its inputs are no tensors. ExportError: it cannot be quantised.
    """
    feeds = list(_feeds(session, problem or session.problem))
    inputs = tuple(torch.from_numpy(array) for array in feeds[0].values())
    content, reduced = to_onnx(network, inputs), reduces_range(session)
    return quantised(
        content,
        feeds,
        reduce_range=reduced,
        float_blocks=costliest(
            content,
            feeds[: -(-MOST_SEARCHED // len(inputs[0]))],
            session.config.quantise.float_blocks,
            reduce_range=reduced,
        )
        if session.config.quantise.float_blocks
        else (),
    )


def reduces_range(session: Session) -> bool:
    """Whether weights take 7 bits: on a device that is elsewhere, which may want them, they do."""
    return needs_reduced_range() or not session.is_local


def _feeds(session: Session, problem: Problem) -> Iterator[Feed]:
    """`quantise.images` training images, as many at a time as an inference takes."""
    batch, left = session.config.measure.batch, session.config.quantise.images
    for step in problem.batches("calibration", session.config).epoch(0):
        inputs = split(step)[0]
        tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise DataError("int8 is for networks whose inputs are tensors: use another precision")
        for arrays in _chunks([t.cpu().numpy() for t in tensors], batch):
            yield named_inputs(arrays)
            left -= batch
            if left <= 0:
                return


def _chunks(arrays: list[np.ndarray[Any, Any]], batch: int) -> Iterator[list[Any]]:
    """The arrays in parts of `batch` examples; the last part repeats its own to be as long."""
    for start in range(0, len(arrays[0]), batch):
        rows = np.minimum(np.arange(start, start + batch), len(arrays[0]) - 1)
        yield [np.ascontiguousarray(array[rows]) for array in arrays]


@contextmanager
def running(runtime: Runtime, content: bytes) -> Iterator[Deployed]:
    """An ONNX file's content as a module that the runtime computes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, INT8)
        path.write_bytes(content)
        module = deployed(runtime, path)
        try:
            yield module
        finally:
            module.loaded.close()


def deployed(runtime: Runtime, path: Path) -> Deployed:
    """An exported file as a module, with the batch that the file was exported for.

    Raises:
        MeasurementError: the runtime cannot run it.
    """
    import onnx

    with foreign(MeasurementError, f"{path} is not an ONNX file"):
        graph = onnx.load(path).graph
        batch = int(graph.input[0].type.tensor_type.shape.dim[0].dim_value)
    return Deployed(runtime.load_file(path, batch=batch), batch)


class Deployed(nn.Module):
    """A loaded file in a network's place: tensors in, tensors out, of any number of examples."""

    def __init__(self, loaded: Loaded, batch: int) -> None:
        super().__init__()
        self.loaded, self.batch = loaded, batch

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        examples = len(inputs[0])
        arrays = [x.detach().cpu().contiguous().numpy() for x in inputs]
        parts = [self.loaded.run(named_inputs(chunk)) for chunk in _chunks(arrays, self.batch)]
        outputs = tuple(
            torch.from_numpy(np.concatenate(of_part)[:examples]).to(inputs[0].device)
            for of_part in zip(*parts, strict=True)
        )
        return outputs[0] if len(outputs) == 1 else outputs


def loss_of(float_accuracy: float | None, accuracy: float | None) -> float | None:
    """Points of accuracy that the int8 file has less than the float network."""
    if float_accuracy is None or accuracy is None:
        return None
    return 100 * (float_accuracy - accuracy)


def facts_of(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """What a finished run says of int8 beside float; None of a run in float."""
    evaluation, export = records["evaluate"], records["export"]
    if "float_accuracy" not in evaluation:
        return None
    return {
        "file": INT8,
        "test_accuracy": evaluation["accuracy"],
        "float_test_accuracy": evaluation["float_accuracy"],
        "loss_points": loss_of(evaluation["float_accuracy"], evaluation["accuracy"]),
        "calibration_images": evaluation["calibration_images"],
        "float_blocks": evaluation["float_blocks"],
        "reduced_range": evaluation["reduced_range"],
        **(export.get("int8") or {}),
    }
