"""A network as a .tflite file for LiteRT."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from proxylessnas.errors import MissingDependency
from proxylessnas.export.compare import (
    Difference,
    eager_outputs,
    with_tensors_alone,
)
from proxylessnas.export.compare import difference as compared
from proxylessnas.export.fold import fold
from proxylessnas.export.lite_names import lite_inputs, lite_name
from proxylessnas.export.quiet import exporting, quietly
from proxylessnas.io.files import write_atomic
from proxylessnas.training.copying import copied


def to_tflite(module: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """The network as one `.tflite` file for LiteRT, in float32.

    Images, that is every input and output of four dimensions, are [batch, height, width,
    channels] there, as the runtime's kernels want them: `channels_last` of the inputs.

    Raises:
        MissingDependency: the extra `litert` is not installed.
        ExportError: the network cannot be converted.
    """
    litert_torch = _litert_torch()
    inputs = tuple(x.detach().cpu() for x in inputs)
    plain = fold(copied(module).cpu())  # the caller's may be on a GPU, and stays there
    with exporting(module, "to tflite"):
        plain, _ = with_tensors_alone(plain, inputs)
        outputs = pytree.tree_leaves(plain(*inputs))
        wrapped = litert_torch.to_channel_last_io(
            plain,
            args=[i for i, x in enumerate(inputs) if x.dim() == 4],
            outputs=[i for i, x in enumerate(outputs) if x.dim() == 4],
        ).eval()
        return bytes(litert_torch.convert(wrapped, channels_last(inputs)).model_content())


def export_tflite(module: nn.Module, inputs: tuple[Tensor, ...], path: str | Path) -> Difference:
    """Write a `.tflite`, and compare what it computes with eager.

    Raises:
        MissingDependency, ExportError: see `to_tflite`; or it computes something else.
    """
    content = to_tflite(module, inputs)
    with exporting(module, "to tflite"):
        outputs = _computed(content, inputs)
    difference = compared(eager_outputs(module, inputs), outputs)
    write_atomic(Path(path), content)
    return difference


def _computed(content: bytes, inputs: tuple[Tensor, ...]) -> list[Any]:
    """What the file computes, images with their channels where the module has them."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    arrays = lite_inputs([x.detach().cpu().numpy() for x in channels_last(inputs)])
    for tensor in interpreter.get_input_details():
        interpreter.set_tensor(tensor["index"], arrays[lite_name(tensor)].astype(tensor["dtype"]))
    interpreter.invoke()
    outputs = [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]
    return [a.transpose(0, 3, 1, 2) if a.ndim == 4 else a for a in outputs]


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
