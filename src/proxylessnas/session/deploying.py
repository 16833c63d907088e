"""The network as its device computes it: in float itself, in int8 the file that ships.

Every accuracy and every score of a run is taken of this, so that what quantises badly is not chosen
and not reported better than it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proxylessnas.errors import ConfigError, DataError
from proxylessnas.export.executorch import to_executorch
from proxylessnas.export.fake_int8 import FakeInt8
from proxylessnas.export.onnx import to_onnx
from proxylessnas.export.onnx_session import named_inputs
from proxylessnas.export.precision import costliest, quantised
from proxylessnas.export.tflite import to_tflite
from proxylessnas.hardware.host import needs_reduced_range
from proxylessnas.hardware.runtimes import Runtime
from proxylessnas.hardware.runtimes.base import Session as Loaded
from proxylessnas.session.problem import Part, Problem
from proxylessnas.session.session import Session
from proxylessnas.training.evaluate import Score, evaluate
from proxylessnas.training.task import split

SUFFIXES = {"litert": ".tflite", "executorch": ".pte"}  # of other runtimes it is .onnx
MOST_SEARCHED = 32  # images that tell which blocks quantise badly


def int8_name(runtime: str) -> str:
    """The int8 file that a runtime reads."""
    return f"model.int8{SUFFIXES.get(runtime.partition(':')[0], '.onnx')}"


@contextmanager
def as_deployed(
    session: Session,
    network: nn.Module,
    problem: Problem | None = None,
    file: Path | None = None,
) -> Iterator[nn.Module]:
    """The network itself, or its int8 file run by the session's runtime.

    problem: whose training images the file is calibrated on, where it is not the session's. file:
    in int8, where it is made already.

    Raises:
        ExportError, MeasurementError: see `int8_file`; or the runtime cannot run it.
    """
    if not session.is_int8:
        yield network
        return
    content = int8_file(session, network, problem) if file is None else file.read_bytes()
    with running(session.runtime, content, session.config.measure.batch) as module:
        yield module


@contextmanager
def as_scored(session: Session, network: nn.Module) -> Iterator[nn.Module]:
    """The network as it is deployed; where a conversion takes long, as `FakeInt8` computes it.

    Raises:
        ExportError, MeasurementError: see `as_deployed`.
    """
    if session.is_int8 and session.runtime.name in SUFFIXES:
        yield fake_int8(session, network)
        return
    with as_deployed(session, network) as module:
        yield module


@contextmanager
def as_measured(
    session: Session, networks: Mapping[str, nn.Module]
) -> Iterator[Mapping[str, nn.Module | Path]]:
    """The networks, which the runtime quantises by itself; where blocks stay in float, their files.

    Raises:
        ExportError: see `int8_file`.
    """
    if not (session.is_int8 and session.config.quantise.float_blocks):
        yield networks
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{name}.onnx") for name in networks}
        for name, network in networks.items():
            files[name].write_bytes(int8_file(session, network))
        yield files


def fake_int8(session: Session, network: nn.Module) -> FakeInt8:
    """The network in PyTorch as its int8 file computes, on the session's device."""
    examples = calibration(session)
    fake = FakeInt8(network, examples, reduce_range=reduces_range(session))
    session.machine.place(fake)
    return fake.eval()


def int8_file(
    session: Session,
    network: nn.Module,
    problem: Problem | None = None,
    *,
    runtime: str | None = None,
) -> bytes:
    """The network in int8, calibrated on training images as the network sees them.

    runtime: whose format the file has; None is the session's.

    Raises:
        DataError: its inputs are no tensors. ExportError: it cannot be quantised.
    """
    examples = calibration(session, problem)
    suffix = SUFFIXES.get((runtime or session.runtime.name).partition(":")[0])
    if suffix is not None:
        convert = to_tflite if suffix == ".tflite" else to_executorch
        return convert(network, examples[0], examples)
    feeds = [named_inputs([x.numpy() for x in inputs]) for inputs in examples]
    content, reduced = to_onnx(network, examples[0]), reduces_range(session)
    count, searched = session.config.quantise.float_blocks, -(-MOST_SEARCHED // len(examples[0][0]))
    kept = costliest(content, feeds[:searched], count, reduce_range=reduced) if count else ()
    return quantised(content, feeds, reduce_range=reduced, float_blocks=kept)


def check_quantise(session: Session) -> None:
    """Refuse settings of int8 that would do nothing.

    Raises:
        ConfigError: the network ships in float, its runtime's quantiser does not take them, or a
            budget does not count them.
    """
    settings, name = session.config.quantise, session.runtime.name
    if settings.aware_epochs and not session.is_int8:
        raise ConfigError(
            f"quantise.aware_epochs is {settings.aware_epochs:g}, and the network is of "
            f"{session.runtime.describe()['precision']}: it is for --precision int8"
        )
    if settings.aware_epochs and session.budget is not None:
        raise ConfigError(
            f"quantise.aware_epochs is {settings.aware_epochs:g}, which a budget does not count: "
            "fine-tune after it, by proxylessnas evaluate RUN --quantise.aware-epochs"
        )
    if settings.float_blocks and session.is_int8 and name.partition(":")[0] in SUFFIXES:
        raise ConfigError(
            f"quantise.float_blocks is {settings.float_blocks}, which {name} does not take: leave "
            "it out, or use onnxruntime or openvino"
        )


def reduces_range(session: Session) -> bool:
    """Whether weights take 7 bits: on a device that is elsewhere, which may want them, they do."""
    widens = session.runtime.name.partition(":")[0] in SUFFIXES  # to 16 bits before it multiplies
    return not widens and (needs_reduced_range() or not session.is_local)


def calibration(session: Session, problem: Problem | None = None) -> list[tuple[Tensor, ...]]:
    """`quantise.images` training images, as many at a time as an inference takes.

    Every score and every file of a session takes the same ones, which it gathers once.

    problem: whose images they are, where it is not the session's; those are not kept.

    Raises:
        DataError: the network's inputs are no tensors, or are not finite.
    """
    if problem is not None and problem is not session.problem:
        return _gathered(session, problem)
    key = (session.config.measure.batch, session.config.quantise.images)
    if key not in session.calibrations:
        session.calibrations[key] = _gathered(session, session.problem)
    return session.calibrations[key]


def _gathered(session: Session, problem: Problem) -> list[tuple[Tensor, ...]]:
    batch, left = session.config.measure.batch, session.config.quantise.images
    examples: list[tuple[Tensor, ...]] = []
    for step in problem.batches("calibration", session.config).epoch(0):
        inputs = split(step)[0]
        tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise DataError("int8 is for networks whose inputs are tensors: use another precision")
        whole = len(tensors[0]) // batch * batch or len(tensors[0])
        for arrays in _chunks([t[:whole].cpu().numpy() for t in tensors], batch):
            if not all(np.isfinite(a).all() for a in arrays):
                raise DataError(
                    "a training example has values that are NaN or infinite, of which int8 has no "
                    "range: mend it, or leave it out"
                )
            examples.append(tuple(map(torch.from_numpy, arrays)))
            left -= batch
            if left <= 0:
                return examples
    return examples


def _chunks(arrays: Sequence[np.ndarray[Any, Any]], batch: int) -> Iterator[list[Any]]:
    """The arrays in parts of `batch` examples; the last part repeats its own to be as long."""
    for start in range(0, len(arrays[0]), batch):
        rows = np.minimum(np.arange(start, start + batch), len(arrays[0]) - 1)
        yield [np.ascontiguousarray(array[rows]) for array in arrays]


@contextmanager
def running(runtime: Runtime, content: bytes, batch: int = 1) -> Iterator[Deployed]:
    """An exported file's content as a module that the runtime computes; batch: of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, int8_name(runtime.name))
        path.write_bytes(content)
        module = Deployed(runtime.load_file(path, batch=batch), batch)
        try:
            yield module
        finally:
            module.loaded.close()


class Deployed(nn.Module):
    """A loaded file in a network's place: tensors in, tensors out, of any number of examples.

    batch: that the file was exported for.
    """

    def __init__(self, loaded: Loaded, batch: int) -> None:
        super().__init__()
        self.loaded, self.batch = loaded, batch

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        examples = len(inputs[0])
        arrays = [x.detach().cpu().contiguous().numpy() for x in inputs]
        parts = [self.loaded.run(chunk) for chunk in _chunks(arrays, self.batch)]
        outputs = tuple(
            torch.from_numpy(np.concatenate(of_part)[:examples]).to(inputs[0].device)
            for of_part in zip(*parts, strict=True)
        )
        return outputs[0] if len(outputs) == 1 else outputs


def scored(session: Session, network: nn.Module, part: Part, **options: Any) -> Score:
    """The score of a network, or of what is deployed of it, on a part of the data."""
    with session.reporter.bar(f"evaluating on the part {part}") as update:
        return evaluate(
            network,
            session.problem.task,
            session.problem.batches(part, session.config),
            session.machine,
            ranks=session.ranks,
            after_batch=update,
            **options,
        )


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
        "file": next(name for name in evaluation["files"] if name.startswith("model.int8")),
        "test_accuracy": evaluation["accuracy"],
        "float_test_accuracy": evaluation["float_accuracy"],
        "loss_points": loss_of(evaluation["float_accuracy"], evaluation["accuracy"]),
        "calibration_images": evaluation["calibration_images"],
        "all_images": evaluation.get("all_images", False),
        "float_blocks": evaluation["float_blocks"],
        "aware": evaluation.get("aware"),
        "reduced_range": evaluation["reduced_range"],
        **(export.get("int8") or {}),
    }
