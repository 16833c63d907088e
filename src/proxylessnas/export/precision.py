"""An ONNX network in less precision than float32: int8 with its scales (QDQ), or float16.

QDQ is the form that ONNX Runtime and OpenVINO both read: the operators stay, and pairs of
QuantizeLinear and DequantizeLinear around them say scales and zero points, from which a runtime
fuses integer kernels. Activations are unsigned, with the range from the least to the greatest value
on calibration inputs; weights are signed, with a scale for every output channel. The runtime's
default, signed activations, leaves a third of the convolutions of a MobileNet in float on x86.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxylessnas.errors import ExportError, foreign
from proxylessnas.export.onnx_blocks import nodes_by_block
from proxylessnas.export.onnx_session import open_session
from proxylessnas.export.quiet import denormal_mode, quietly

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]
QUANTISING = ("QuantizeLinear", "DequantizeLinear")


def in_precision(
    content: bytes, precision: str, feeds: Iterable[Feed], *, reduce_range: bool
) -> bytes:
    """An ONNX file of float32 in another precision: int8, fp16, or as it is.

    feeds: see `quantised`, for int8 alone.

    Raises:
        ExportError: it cannot be converted.
    """
    if precision == "int8":
        return quantised(content, feeds, reduce_range=reduce_range)
    return halved(content) if precision == "fp16" else content


def quantised(
    content: bytes,
    feeds: Iterable[Feed],
    *,
    reduce_range: bool,
    float_blocks: Collection[str] = (),
    symmetric: bool = False,
) -> bytes:
    """The file in int8, after post-training quantisation (static, QDQ, U8 and S8 a channel).

    feeds: inputs by name, of the shapes of the file, which the ranges of activations are of.
    reduce_range: take 7 bits of the weights, without which pairs of products overflow 16 bits on
    x86 processors that have no VNNI. float_blocks: blocks that stay as they are, see `costliest`.
    symmetric: activations signed and without zero points, biases in float, as TensorRT wants them.

    Raises:
        ExportError: the file is of int8 already, or cannot be quantised.
    """
    with _prepared(content) as plain:
        nodes = _names_by_block(plain)
        kept = [node for block in float_blocks for node in nodes[block]]
        return _quantised(plain, feeds, reduce_range, symmetric, nodes_to_exclude=kept)


def costliest(
    content: bytes, feeds: Sequence[Feed], count: int, *, reduce_range: bool
) -> list[str]:
    """The blocks whose quantisation changes the outputs most, the worst first.

    Every block is quantised alone; its cost is the squared difference of the outputs on `feeds`. A
    block is what stands in one module of the network's children, by the names of the graph's nodes.

    Raises:
        ExportError: see `quantised`.
    """
    errors: dict[str, float] = {}
    with _prepared(content) as plain:
        expected = _outputs(plain.read_bytes(), feeds)
        for block, nodes in _names_by_block(plain).items():
            alone = _quantised(plain, feeds, reduce_range, nodes_to_quantize=nodes)
            pairs = zip(expected, _outputs(alone, feeds), strict=True)
            errors[block] = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    return sorted(errors, key=lambda block: -errors[block])[:count]


@contextmanager
def _prepared(content: bytes) -> Iterator[Path]:
    """The file as quantising wants it, in a folder that goes away; errors are one line."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = _loaded(content)
    if is_quantised(model):
        raise ExportError("the network is quantised already")
    with (
        foreign(ExportError, "the network cannot be quantised"),
        tempfile.TemporaryDirectory() as folder,
        quietly(),
        denormal_mode(),
    ):
        plain = Path(folder, "plain.onnx")
        # Without it the exporter's Identity nodes keep convolutions in float.
        quant_pre_process(model, plain, skip_symbolic_shape=True)
        yield plain


def _quantised(
    plain: Path,
    feeds: Iterable[Feed],
    reduce_range: bool,
    symmetric: bool = False,
    **nodes: list[str],
) -> bytes:
    """nodes: `nodes_to_quantize` or `nodes_to_exclude`."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    path = plain.with_name("int8.onnx")
    try:
        quantize_static(
            plain,
            path,
            _reader(feeds),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=reduce_range,
            extra_options={"ActivationSymmetric": symmetric, "QuantizeBias": not symmetric},
            **nodes,
        )
    except AssertionError as error:
        if "scale" not in str(error):
            raise
        raise ExportError(
            "the network cannot be quantised: a weight, or a value that it computes of the inputs "
            "that ranges are taken from, is NaN or infinite"
        ) from error
    return path.read_bytes()


def _names_by_block(plain: Path) -> dict[str, list[str]]:
    import onnx

    blocks = nodes_by_block(onnx.load(plain).graph)
    return {block: [node.name for node in nodes] for block, nodes in blocks.items()}


def _outputs(content: bytes, feeds: Iterable[Feed]) -> list[Array]:
    session = open_session(content)
    return [np.concatenate([o.ravel() for o in session.run(None, dict(f))]) for f in feeds]


def halved(content: bytes) -> bytes:
    """The file in float16, its inputs and outputs in float32.

    Raises:
        ExportError: it cannot be converted.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with foreign(ExportError, "the network cannot be converted to float16"), quietly():
        return bytes(
            convert_float_to_float16(_loaded(content), keep_io_types=True).SerializeToString()
        )


def is_quantised(model: Any) -> bool:
    """Whether an ONNX model has scales of integers in it."""
    return any(node.op_type in QUANTISING for node in model.graph.node)


def noisy_inputs(inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """As `noisy_feeds`, of a module's inputs."""
    named = {str(i): x.detach().cpu().numpy() for i, x in enumerate(inputs)}
    return [tuple(map(torch.from_numpy, feed.values())) for feed in noisy_feeds(named)]


def noisy_feeds(arrays: Feed) -> Iterator[Feed]:
    """Two inputs to quantise with where the latency alone matters: these, and other noise.

    Integers are no measurements, and stay as they are.
    """
    yield arrays
    random = np.random.default_rng(1)

    def other(array: Array) -> Array:
        return np.asarray(random.standard_normal(array.shape), array.dtype)

    yield {name: other(a) if a.dtype.kind == "f" else a for name, a in arrays.items()}


def _loaded(content: bytes) -> Any:
    import onnx

    with foreign(ExportError, "this is no ONNX file"):
        return onnx.load_model_from_string(content)


def _reader(feeds: Iterable[Feed]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> dict[str, Array] | None:
            feed = next(self.feeds, None)
            return None if feed is None else dict(feed)

    return Reader()
