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
PLAIN = (*SCALARS, Tensor, Mapping, list, tuple, set, frozenset)
_OF_TORCH = frozenset(nn.Module().__dict__)  # `training`, `_parameters`, `_forward_hooks`, ...


def fingerprint(module: nn.Module, replaced: Mapping[nn.Module, nn.Module] | None = None) -> str:
    """The structural hash of `module`, 16 hex digits.

    replaced: submodules to be taken for others, so that a mixed operation can be hashed
        with one of its candidates in its place without a copy being made.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in _describe(module, replaced or {}, {}):
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


def _describe(
    module: nn.Module, replaced: Mapping[nn.Module, nn.Module], seen: dict[int, int]
) -> Iterator[str]:
    module = replaced.get(module, module)
    if id(module) in seen:  # shared or cyclic: where it stood first
        yield f"again {seen[id(module)]}"
        return
    seen[id(module)] = len(seen)
    cls = type(module)
    yield f"{cls.__module__}.{cls.__qualname__}"
    if not cls.__module__.startswith("torch."):
        yield _source(cls.forward)
    for name, value in sorted(module.__dict__.items()):
        # A leading underscore in torch's classes is torch's own business of this version.
        if name in _OF_TORCH or (name.startswith("_") and cls.__module__.startswith("torch.")):
            continue
        yield name
        yield from _value(value, replaced, seen)
    for kind, tensors in (("parameter", module._parameters), ("buffer", module._buffers)):
        for name, tensor in tensors.items():
            yield f"{kind} {name} {'none' if tensor is None else tensor_label(tensor)}"
    for name, child in module._modules.items():
        yield f"child {name}"
        if child is not None:
            yield from _describe(child, replaced, seen)
    yield "end"


def _value(
    value: object, replaced: Mapping[nn.Module, nn.Module], seen: dict[int, int]
) -> Iterator[str]:
    if isinstance(value, nn.Module):
        yield from _describe(value, replaced, seen)
    elif isinstance(value, Tensor):
        yield tensor_label(value)
    elif isinstance(value, SCALARS):
        yield f"{type(value).__name__} {value!r}"
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}"
        for key, item in value.items():
            yield repr(key) if isinstance(key, str | int) else type(key).__name__
            yield from _value(item, replaced, seen)
    elif isinstance(value, list | tuple):
        yield f"sequence {len(value)}"
        for item in value:
            yield from _value(item, replaced, seen)
    elif isinstance(value, set | frozenset):
        yield f"set {sorted(map(repr, value))}"
    elif isinstance(value, functools.partial):
        yield "partial"
        yield from _value([value.func, value.args, value.keywords], replaced, seen)
    elif inspect.isroutine(value):
        yield from _function(value, replaced, seen)
    else:
        yield from _object(value, replaced, seen)


def _function(
    function: Any, replaced: Mapping[nn.Module, nn.Module], seen: dict[int, int]
) -> Iterator[str]:
    """The source, and the values that two functions of one source differ by."""
    yield f"{getattr(function, '__qualname__', '')} {_source(function)}"
    if id(function) in seen or not inspect.isfunction(function):
        if inspect.ismethod(function):
            yield from _value([function.__self__], replaced, seen)
        return
    seen[id(function)] = len(seen)
    values = [function.__defaults__, function.__kwdefaults__]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a variable that has no value yet
            values.append(cell.cell_contents)
    for value in values:
        if value is not None:
            yield from _value(value, replaced, seen)


def _object(
    value: object, replaced: Mapping[nn.Module, nn.Module], seen: dict[int, int]
) -> Iterator[str]:
    """An object of a user's: its class, and its repr or else, where that is an address, its plain
    attributes. Of the objects that it refers to, the classes."""
    text = repr(value)
    yield f"{type(value).__module__}.{type(value).__qualname__}"
    if not re.search(r" at 0x[0-9a-f]+", text):
        yield text
        return
    yield ""
    if id(value) in seen:
        return
    seen[id(value)] = len(seen)
    for name, attribute in sorted(getattr(value, "__dict__", {}).items()):
        yield name
        if isinstance(attribute, PLAIN) or inspect.isroutine(attribute):
            yield from _value(attribute, replaced, seen)
        else:
            yield type(attribute).__qualname__


def _source(function: Callable[..., Any]) -> str:
    """The source text, or the name where there is none (built in, typed into a console)."""
    if (getattr(function, "__module__", None) or "").startswith("torch."):
        return f"{function.__module__}.{getattr(function, '__qualname__', '')}"
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        return str(getattr(function, "__qualname__", "")) + (code.co_code.hex() if code else "")


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
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    name = type(module).__name__
    if not layers:
        settings = re.sub(r"\s+", " ", module.extra_repr())
        return f"{name}({settings[:40]})" if settings else name
    words = [name]
    convolutions = [m for m in layers if isinstance(m, nn.modules.conv._ConvNd)]
    if convolutions:
        words.append(f"k{max(max(m.kernel_size) for m in convolutions)}")
    expansion = getattr(module, "expansion", None)
    if isinstance(expansion, int | float):
        words.append(f"e{expansion:g}")
    words.append(f"{_width(layers[0])[0]}>{_width(layers[-1])[1]}")
    stride = math.prod(max(m.stride) for m in convolutions)
    return " ".join([*words, *([f"s{stride}"] if stride > 1 else [])])


def _width(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer, nn.modules.conv._ConvNd)
    return layer.in_channels, layer.out_channels
