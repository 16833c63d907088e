"""What Python's objects hold, and whose they are."""

from __future__ import annotations

import enum
import re
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.hardware.sources import is_core, is_own

SCALARS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
LISTS = (list, tuple, deque, range)
HEAP_TYPE = 1 << 9  # of `type.__flags__`: a class that Python code made


def is_plain_object(value: object) -> bool:
    """Whether it is an object of attributes, of which a function reads those that it names."""
    known = (nn.Module, Tensor, enum.Enum, *SCALARS, Mapping, set, frozenset, *LISTS, type)
    return hasattr(value, "__dict__") and not isinstance(value, known) and not callable(value)


def cells(function: Any) -> list[object]:
    values = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a variable that has no value yet
            values.append(cell.cell_contents)
    return values


def keeps_state_elsewhere(value: object) -> bool:
    """Whether it is a library's object without attributes: of C, with its state in memory."""
    slots = any("__slots__" in vars(cls) for cls in type(value).__mro__)
    return not (hasattr(value, "__dict__") or slots or is_own(type(value).__module__))


def attributes_of(value: object) -> dict[str, object]:
    attributes = dict(getattr(value, "__dict__", {}))
    slots = [
        (cls, vars(cls)["__slots__"]) for cls in type(value).__mro__ if "__slots__" in vars(cls)
    ]
    for cls, names in slots:
        for name in [names] if isinstance(names, str) else names:
            private = name.startswith("__") and not name.endswith("__")
            name = f"_{cls.__name__.lstrip('_')}{name}" if private else name
            if hasattr(value, name):
                attributes[name] = getattr(value, name)
    return attributes


def is_core_class(cls: type) -> bool:
    """Whether a class is torch's or of the standard library; code of `exec` says builtins, too."""
    made = cls.__module__ == "builtins" and bool(cls.__flags__ & HEAP_TYPE)
    return is_core(cls.__module__) and not made


def printed(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # whatever the user's code raises
        return "0x000000"


def is_script_method(value: object) -> bool:
    return isinstance(value, torch._C.ScriptMethod)  # in the program already


def tensor_label(tensor: Tensor) -> str:
    """`1x24x56x56 f32`: the shape and a short name of the dtype."""
    short = {"bfloat": "bf", "float": "f", "uint": "u", "int": "i", "complex": "c"}
    name = str(tensor.dtype).removeprefix("torch.")
    name = re.sub(r"^(bfloat|float|uint|int|complex)(?=\d)", lambda m: short[m[1]], name)
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {name}"
