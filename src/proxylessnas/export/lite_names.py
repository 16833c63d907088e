"""Inputs and outputs of .tflite files. Only the standard library: a kit carries this file along."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}


def lite_name(tensor: Mapping[str, Any]) -> str:
    """An input's name; of a converted module's, serving_default_args_3:0, the part `args_3`."""
    name = str(tensor["name"])
    number = re.search(r"args_\d+", name)
    return number[0] if number else name


def lite_inputs(arrays: Sequence[Any]) -> dict[str, Any]:
    """The arrays of a module's inputs by their names in its file."""
    return {f"args_{i}": array for i, array in enumerate(arrays)}


def feed(interpreter: Any, arrays: Mapping[str, Any]) -> None:
    """Set the inputs by name, in the scale of the file where it takes integers for floats.

    arrays: also such as the file does not read.
    """
    for tensor in interpreter.get_input_details():
        array, (scale, zero) = arrays[lite_name(tensor)], tensor["quantization"]
        if scale and array.dtype.kind == "f":
            array = ((array / scale).round() + zero).clip(*RANGES[tensor["dtype"].__name__])
        interpreter.set_tensor(tensor["index"], array.astype(tensor["dtype"], copy=False))


def computed(interpreter: Any) -> list[Any]:
    """The outputs in the module's terms: integers with a scale as floats, channels second."""
    arrays = []
    for tensor in interpreter.get_output_details():
        array, (scale, zero) = interpreter.get_tensor(tensor["index"]), tensor["quantization"]
        if scale:
            array = ((array.astype("float64") - zero) * scale).astype("float32")
        arrays.append(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array)
    return arrays
