"""The structure of a module as a hash and as a readable label; weights are ignored.

Two candidates that are built alike share one latency, wherever they stand in the network
and whatever their weights are. Counted: classes, attributes, the shapes and dtypes of parameters
and buffers, children, the source of `forward` where the class is not torch's own, and of every
function that the module holds its source, defaults and closed-over values. Not counted: weights,
`training`, hooks, gradients.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.core.supernet import Residual

SCALARS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
Convolution = nn.modules.conv._ConvNd
PLAIN = (*SCALARS, Tensor, Mapping, list, tuple, set, frozenset)
_OF_TORCH = frozenset(nn.Module().__dict__)  # `training`, `_parameters`, `_forward_hooks`, ...


def fingerprint(module: nn.Module, replaced: Mapping[nn.Module, nn.Module] | None = None) -> str:
    """The structural hash of `module`, 16 hex digits.

    replaced: submodules to be taken for others, so that a mixed operation can be hashed
        with one of its candidates in its place without a copy being made.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in _Description(replaced or {}).of_module(module):
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


class _Description:
    """The words that are hashed. places: id of every object so far -> in which order it came."""

    def __init__(self, replaced: Mapping[nn.Module, nn.Module]) -> None:
        self.replaced = replaced
        self.places: dict[int, int] = {}

    def of_module(self, module: nn.Module) -> Iterator[str]:
        module = self.replaced.get(module, module)
        if id(module) in self.places:  # shared or cyclic: where it stood first
            yield f"again {self.places[id(module)]}"
            return
        self.places[id(module)] = len(self.places)
        cls = type(module)
        of_torch = cls.__module__.startswith("torch.")
        yield f"{cls.__module__}.{cls.__qualname__}"
        if not of_torch:
            yield _source(cls.forward)
        for name, value in sorted(module.__dict__.items()):
            # A leading underscore in torch's classes is torch's own business of this version.
            if name in _OF_TORCH or (of_torch and name.startswith("_")):
                continue
            yield name
            yield from self.of_value(value)
        for kind, tensors in (("parameter", module._parameters), ("buffer", module._buffers)):
            for name, tensor in tensors.items():
                yield f"{kind} {name} {'none' if tensor is None else tensor_label(tensor)}"
        for name, child in module._modules.items():
            yield f"child {name}"
            if child is not None:
                yield from self.of_module(child)
        yield "end"

    def of_value(self, value: object) -> Iterator[str]:
        if isinstance(value, nn.Module):
            yield from self.of_module(value)
        elif isinstance(value, Tensor):
            yield tensor_label(value)
        elif isinstance(value, SCALARS):
            yield f"{type(value).__name__} {value!r}"
        elif isinstance(value, Mapping):
            yield f"mapping {len(value)}"
            for key, item in value.items():
                yield repr(key) if isinstance(key, str | int) else type(key).__name__
                yield from self.of_value(item)
        elif isinstance(value, list | tuple):
            yield f"sequence {len(value)}"
            for item in value:
                yield from self.of_value(item)
        elif isinstance(value, set | frozenset):
            yield f"set {sorted(map(repr, value))}"
        elif isinstance(value, functools.partial):
            yield "partial"
            yield from self.of_value([value.func, value.args, value.keywords])
        elif inspect.isroutine(value):
            yield from self.of_function(value)
        else:
            yield from self.of_object(value)

    def of_function(self, function: Any) -> Iterator[str]:
        """The source, and the values that two functions of one source differ by."""
        yield f"{getattr(function, '__qualname__', '')} {_source(function)}"
        if id(function) in self.places or not inspect.isfunction(function):
            if inspect.ismethod(function):
                yield from self.of_value([function.__self__])
            return
        self.places[id(function)] = len(self.places)
        values = [function.__defaults__, function.__kwdefaults__]
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # a variable that has no value yet
                values.append(cell.cell_contents)
        for value in values:
            if value is not None:
                yield from self.of_value(value)

    def of_object(self, value: object) -> Iterator[str]:
        """An object of a user's: its class, and its repr or else, where that is an address, its
        plain attributes. Of the objects that it refers to, the classes."""
        text = repr(value)
        yield f"{type(value).__module__}.{type(value).__qualname__}"
        if not re.search(r" at 0x[0-9a-f]+", text):
            yield text
            return
        yield ""
        if id(value) in self.places:
            return
        self.places[id(value)] = len(self.places)
        for name, attribute in sorted(getattr(value, "__dict__", {}).items()):
            yield name
            if isinstance(attribute, PLAIN) or inspect.isroutine(attribute):
                yield from self.of_value(attribute)
            else:
                yield type(attribute).__qualname__


def _source(function: Callable[..., Any]) -> str:
    """The source text, or the name where there is none (built in, typed into a console)."""
    name = str(getattr(function, "__qualname__", ""))
    if (getattr(function, "__module__", None) or "").startswith("torch."):
        return f"{function.__module__}.{name}"
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        return name + (code.co_code.hex() if code else "")


def tensor_label(tensor: Tensor) -> str:
    """`1x24x56x56 f32`: the shape and a short name of the dtype."""
    short = {"bfloat": "bf", "float": "f", "uint": "u", "int": "i", "complex": "c"}
    name = str(tensor.dtype).removeprefix("torch.")
    name = re.sub(r"^(bfloat|float|uint|int|complex)(?=\d)", lambda m: short[m[1]], name)
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {name}"


# --- labels ---


def label(module: nn.Module) -> str:
    """What a person calls this module, as `x+MBConv k5 e6 40>40`.

    The class's name; the largest kernel, `expansion` where the module has one, channels in
    and out, and the product of strides, as far as its convolutions and linear layers tell.
    A module without weights is its class and its own `extra_repr`.
    """
    if isinstance(module, Residual):
        return f"x+{label(module.branch)}"
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | Convolution)]
    name = type(module).__name__
    if not layers:
        settings = re.sub(r"\s+", " ", module.extra_repr())
        return f"{name}({settings[:40]})" if settings else name
    words = [name]
    convolutions = [m for m in layers if isinstance(m, Convolution)]
    if convolutions:
        words.append(f"k{max(max(m.kernel_size) for m in convolutions)}")
    expansion = getattr(module, "expansion", None)
    if isinstance(expansion, int | float):
        words.append(f"e{expansion:g}")
    first, last = layers[0], layers[-1]
    width = first.in_features if isinstance(first, nn.Linear) else first.in_channels
    words.append(
        f"{width}>{last.out_features if isinstance(last, nn.Linear) else last.out_channels}"
    )
    stride = math.prod(max(m.stride) for m in convolutions)
    return " ".join([*words, *([f"s{stride}"] if stride > 1 else [])])
