"""A network as a .tflite file for LiteRT."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from proxylessnas.errors import ExportError, MissingDependency, foreign
from proxylessnas.export.compare import (
    Difference,
    eager_outputs,
    with_tensors_alone,
)
from proxylessnas.export.compare import difference as compared
from proxylessnas.export.fold import fold
from proxylessnas.export.lite_names import computed, feed, lite_inputs
from proxylessnas.export.quiet import exporting, quietly
from proxylessnas.io.files import write_atomic
from proxylessnas.training.copying import copied


def to_tflite(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    calibration: Iterable[tuple[Tensor, ...]] | None = None,
) -> bytes:
    """The network as one `.tflite` file for LiteRT, in float32 or int8.

    Images, that is every input and output of four dimensions, are [batch, height, width,
    channels] there, as the runtime's kernels want them: `channels_last` of the inputs.

    calibration: inputs of the same shapes, whose ranges the int8 file has; see `quantised_tflite`.

    Raises:
        MissingDependency: the extra `litert` is not installed.
        ExportError: the network cannot be converted.
    """
    litert_torch = _litert_torch()
    inputs = tuple(x.detach().cpu() for x in inputs)
    plain = fold(copied(module).cpu(), len(inputs))  # the caller's may be on a GPU, and stays there
    with exporting(module, "to tflite"):
        plain, _ = with_tensors_alone(plain, inputs)
        outputs = pytree.tree_leaves(plain(*inputs))
        wrapped = litert_torch.to_channel_last_io(
            plain,
            args=[i for i, x in enumerate(inputs) if x.dim() == 4],
            outputs=[i for i, x in enumerate(outputs) if x.dim() == 4],
        ).eval()
        content = bytes(litert_torch.convert(wrapped, channels_last(inputs)).model_content())
    if calibration is None:
        return content
    return quantised_tflite(content, (lite_feed(x) for x in calibration))


def quantised_tflite(content: bytes, feeds: Iterable[Mapping[str, Any]]) -> bytes:
    """A float file in int8, inputs and outputs too, by Google's AI Edge quantiser.

    Activations have a range and a zero point each, weights a scale for every output channel.

    feeds: inputs by name, which the ranges are of.

    Raises:
        MissingDependency: the quantiser is not installed. ExportError: it cannot be quantised.
    """
    if importlib.util.find_spec("ai_edge_quantizer") is None:
        raise MissingDependency("ai-edge-quantizer", "litert", "int8 of LiteRT")
    with foreign(ExportError, "the network cannot be quantised for LiteRT"), quietly():
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_quantizer import quantizer, recipe

        job = quantizer.Quantizer(content, recipe.static_wi8_ai8())
        (signature,) = Interpreter(model_content=content).get_signature_list()
        ranges = job.calibrate({signature: list(feeds)}, num_threads=1)
        return bytes(job.quantize(ranges).quantized_model)


def lite_feed(inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """A module's inputs as arrays, by their names in its file."""
    return lite_inputs([x.detach().cpu().numpy() for x in channels_last(inputs)])


def export_tflite(module: nn.Module, inputs: tuple[Tensor, ...], path: str | Path) -> Difference:
    """Write a `.tflite`, and compare what it computes with eager.

    Raises:
        MissingDependency, ExportError: see `to_tflite`; or it computes something else.
    """
    content = to_tflite(module, inputs)
    with exporting(module, "to tflite"):
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=content)
        interpreter.allocate_tensors()
        feed(interpreter, lite_feed(inputs))
        interpreter.invoke()
        outputs = computed(interpreter)
    difference = compared(eager_outputs(module, inputs), outputs)
    write_atomic(Path(path), content)
    return difference


def channels_last(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """[batch, channels, height, width] to [batch, height, width, channels]; others as they are."""
    return tuple(x.permute(0, 2, 3, 1).contiguous() if x.dim() == 4 else x for x in inputs)


def _litert_torch() -> Any:
    if importlib.util.find_spec("litert_torch") is None:
        raise MissingDependency("litert-torch", "litert", "the conversion to tflite")
    with quietly():
        import litert_torch
        from litert_torch import progress

    progress.config.show_progress = False  # it draws on the terminal otherwise
    return litert_torch
