"""Inputs of .tflite files by name. Only the standard library: a kit carries this file along."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any


def lite_name(tensor: Mapping[str, Any]) -> str:
    """An input's name; of a converted module's, serving_default_args_3:0, the part `args_3`."""
    name = str(tensor["name"])
    number = re.search(r"args_\d+", name)
    return number[0] if number else name


def lite_inputs(arrays: Sequence[Any]) -> dict[str, Any]:
    """The arrays of a module's inputs by their names in its file."""
    return {f"args_{i}": array for i, array in enumerate(arrays)}
