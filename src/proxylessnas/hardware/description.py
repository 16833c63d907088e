"""A module in words: everything that its forward pass may depend on, except its weights.

Of every object that the module holds or reads: classes with their methods, attributes, the source
of functions with their defaults, closed-over values and the globals that they read, hooks, and
the shapes and dtypes of tensors. Integers, masks and a few numbers outside of the parameters can
decide what is computed, and are described by value. Of torch and the standard library names
suffice; of other installed packages the globals are not followed.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from types import MemberDescriptorType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proxylessnas.hardware.objects import (
    LISTS,
    SCALARS,
    attributes_of,
    cells,
    is_core_class,
    is_plain_object,
    is_script_method,
    keeps_state_elsewhere,
    printed,
    tensor_label,
)
from proxylessnas.hardware.sources import globals_read, is_core, is_own, names_read, source

LOCKS = (type(threading.Lock()), type(threading.RLock()))  # they compute nothing
FEW = 16  # numbers of a tensor that are described by value
MOST, DEEPEST = 200_000, 60  # values of one description, one in another
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of a subclass of torch's
_OF_TORCH = frozenset(nn.Module().__dict__)  # `training`, `_parameters`, `_forward_hooks`, ...
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
# Attributes of a class that take no part in what its instances compute.
_IDLE = {"__init__", "__new__", "__repr__", "__str__", "__eq__", "__hash__", "__setattr__"}
_IDLE |= {"__annotate__", "__annotate_func__", "__replace__", "__delattr__", "__init_subclass__"}


class Description:
    """The words of one module.

    replaced: submodules to be taken for others. where: stands in the place of what cannot be
    described, so that such objects at different places are not taken for one another.
    """

    def __init__(self, replaced: Mapping[nn.Module, nn.Module], where: str = "") -> None:
        self.replaced, self.where = replaced, where
        # id -> in which order the object came; and the object, so that its id stays its own.
        self.places: dict[int, tuple[int, object]] = {}
        self.values = self.depth = 0

    def came(self, value: object) -> bool:
        """Whether this object has come before; it has from now on."""
        before = id(value) in self.places
        self.places.setdefault(id(value), (len(self.places), value))
        return before

    def apart(self) -> Description:
        """The description as it is now, to go on with where the order is not known."""
        other = Description(self.replaced, self.where)
        other.places, other.depth, other.values = dict(self.places), self.depth, self.values
        return other

    def unknown(self, value: object) -> Iterator[str]:
        yield f"unknown {type(value).__qualname__} {self.where}"

    # --- modules and tensors ---

    def of_module(self, module: nn.Module) -> Iterator[str]:
        module = self.replaced.get(module, module)
        if self.came(module):  # shared or cyclic: where it stood first
            yield f"again {self.places[id(module)][0]}"
            return
        yield from self.of_class(type(module))
        of_torch = is_core_class(type(module))
        if isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule):
            yield from self.of_program(module)
        for name, value in sorted(module.__dict__.items()):
            # A leading underscore in torch's classes is torch's own business of this version.
            if name in _OF_TORCH or (of_torch and name.startswith("_")) or is_script_method(value):
                continue
            yield name
            if of_torch and isinstance(value, Tensor):  # made of parameters, by a hook
                yield tensor_label(value)
            else:
                yield from self.of_value(value)
        for hook in (hook for kind in _HOOKS for hook in getattr(module, kind).values()):
            if not (getattr(hook, "__module__", None) or "").startswith("proxylessnas."):
                yield "hook"
                yield from self.of_value(hook)
        for name, parameter in module._parameters.items():
            yield f"parameter {name}"
            yield from self.of_value(parameter)
        for name, tensor in module._buffers.items():
            yield f"buffer {name}"
            if tensor is not None and (of_torch or name in STATISTICS):
                yield tensor_label(tensor)
            else:
                yield from self.of_value(tensor)
        for name, child in module._modules.items():
            yield f"child {name}"
            if child is not None:
                yield from self.of_module(child)
        yield "end"

    def of_tensor(self, tensor: Tensor) -> Iterator[str]:
        """Shape and dtype; where it is not learned, integers, a few numbers, or a mask's zeros."""
        yield tensor_label(tensor)
        real = tensor.is_floating_point() or tensor.is_complex()
        learned = real and (tensor.requires_grad or isinstance(tensor, nn.Parameter))
        if tensor.is_meta or not tensor.numel() or learned:
            return
        if tensor.layout != torch.strided or tensor.is_quantized:
            yield from self.unknown(tensor)
            return
        values = tensor.detach().cpu().contiguous()
        if real and values.numel() > FEW:
            values = values == 0
            if values.all() or not values.any():
                return
        yield hashlib.blake2b(values.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()

    def of_program(self, program: Any) -> Iterator[str]:
        """What a scripted, traced or rewritten module computes, without places in source files."""
        if isinstance(program, torch.fx.GraphModule):
            yield str(program.code)
            return
        graph = re.sub(r"#.*|___torch_mangle_\d+\.", "", str(program.inlined_graph))
        yield graph
        for name in re.findall(r'GetAttr\[name="(\w+)"\]', graph):
            value = getattr(program, name, None)
            if isinstance(value, (*SCALARS, *LISTS, dict)):  # modules and tensors come later
                yield name
                yield from self.of_value(value)

    # --- values ---

    def of_value(self, value: object) -> Iterator[str]:
        self.values += 1
        self.depth += 1
        if self.values > MOST or self.depth > DEEPEST:
            yield from self.unknown(value)
        else:
            yield from self._of_value(value)
        self.depth -= 1

    def _of_value(self, value: object) -> Iterator[str]:
        if isinstance(value, nn.Module):
            yield from self.of_module(value)
        elif isinstance(value, Tensor):
            yield from self.of_tensor(value)
        elif isinstance(value, enum.Enum):
            yield from self.of_class(type(value))
            yield from self.of_value([value.name, value.value])
        elif isinstance(value, SCALARS):
            yield f"{type(value).__name__} {value!r}"
            yield from self.of_attributes(value)
        elif isinstance(value, np.ndarray):
            yield f"{value.dtype} {value.shape}"
            yield from self.of_array(value)
        elif isinstance(value, (Mapping, set, frozenset, *LISTS)):
            yield from self.of_container(value)
        elif isinstance(value, type):
            yield from self.of_class(value)
        elif isinstance(value, functools.partial | functools.partialmethod):
            yield "partial"
            yield from self.of_value([value.func, value.args, value.keywords])
        elif isinstance(value, torch.jit.ScriptFunction):
            yield from self.of_program(value)
        elif inspect.isroutine(value):
            yield from self.of_function(value)
        else:
            yield from self.of_object(value)

    def of_array(self, array: np.ndarray[Any, Any]) -> Iterator[str]:
        if array.dtype.hasobject:
            yield from self.of_value(array.tolist())
        else:
            yield hashlib.blake2b(np.ascontiguousarray(array).tobytes()).hexdigest()

    def of_container(self, value: Any) -> Iterator[str]:
        if type(value) not in (dict, OrderedDict, set, frozenset, *LISTS):
            yield from self.of_class(type(value))
            yield from self.of_value(getattr(value, "default_factory", None))
            yield from self.of_attributes(value)
        # Equal tuples may be one object or two: only a container in itself is told by its place.
        before = self.places.get(id(value))
        if before is not None:
            yield f"again {before[0]}"
            return
        self.places[id(value)] = (len(self.places), value)
        yield f"{len(value)}"
        if isinstance(value, set | frozenset):
            yield str(sorted(" ".join(self.apart().of_value(item)) for item in value))
        elif isinstance(value, Mapping):
            for key, item in value.items():
                yield from self.of_value(key)
                yield from self.of_value(item)
        else:
            for item in value:
                yield from self.of_value(item)
        del self.places[id(value)]

    def of_object(self, value: object) -> Iterator[str]:
        """Any other object: its class and its attributes; of libraries' objects what they print."""
        yield from self.of_class(type(value))
        if isinstance(value, LOCKS) or self.came(value):
            return
        text = printed(value)
        if is_core_class(type(value)) or not is_own(type(value).__module__):
            yield ADDRESS.sub("", text)
            if not ADDRESS.search(text):
                return
        if isinstance(value, weakref.ref):
            yield from self.of_value(value())
        elif keeps_state_elsewhere(value):
            yield from self.unknown(value)
        else:
            yield from self.of_attributes(value)

    def of_attributes(self, value: object) -> Iterator[str]:
        """Those of the instance, sorted: of an object, a function, or what a subclass adds."""
        for name, attribute in sorted(attributes_of(value).items()):
            yield name
            yield from self.of_value(attribute)

    # --- code ---

    def of_class(self, cls: type) -> Iterator[str]:
        """The name and, of classes that are not torch's, everything that their instances use."""
        yield f"{cls.__module__}.{cls.__qualname__}"
        if is_core_class(cls) or self.came(cls):
            return
        for base in cls.__mro__:
            if is_core_class(base):
                continue
            for name, value in sorted(vars(base).items()):
                dunder = name.startswith("__") and name.endswith("__")
                if name not in _IDLE and not (dunder and not inspect.isroutine(value)):
                    yield name
                    yield from self.of_member(value)

    def of_member(self, value: Any) -> Iterator[str]:
        if isinstance(value, property):
            yield from self.of_value([value.fget])
        elif isinstance(value, classmethod | staticmethod):
            yield from self.of_value(value.__func__)
        elif not isinstance(value, MemberDescriptorType) and type(value).__name__ != "_abc_data":
            yield from self.of_value(value)

    def of_function(self, function: Any) -> Iterator[str]:
        """The source, and what two functions of one source differ by."""
        name = f"{getattr(function, '__qualname__', '')}"
        compiled = getattr(function, "_torchdynamo_orig_callable", None)
        if compiled is not None:
            yield from self.of_value(["torch.compile", compiled])
        elif inspect.ismethod(function):
            yield from self.of_value([function.__func__, function.__self__])
        elif not inspect.isfunction(function):  # of C, which may be bound or wrap another
            yield f"{getattr(function, '__module__', '')}.{name}"
            bound, wrapped = (getattr(function, n, None) for n in ("__self__", "__wrapped__"))
            if not isinstance(bound, ModuleType):
                yield from self.of_value([bound, wrapped])
        elif is_core(function.__module__) and is_core(function.__globals__.get("__name__")):
            yield f"{function.__module__}.{name}"
            yield from self.of_value(cells(function))
        else:
            yield f"{name} {source(function.__code__)}"
            if not self.came(function):
                yield from self.of_value([function.__defaults__, function.__kwdefaults__])
                yield from self.of_attributes(function)
                yield from self.of_value(cells(function))
                yield from self.of_globals(function)

    def of_globals(self, function: Any) -> Iterator[str]:
        """The globals that a function of the user's own code reads."""
        everything, code = function.__globals__, function.__code__
        if not is_own(everything.get("__name__")):
            return
        for name in globals_read(code):
            value = everything.get(name)
            if name not in everything or name.startswith("__"):
                continue
            yield name
            if isinstance(value, ModuleType):
                yield value.__name__
                if is_own(value.__name__):
                    yield from self.of_named(value, names_read(code))
            elif is_plain_object(value) and not any(
                callable(getattr(type(value), n, None)) for n in names_read(code)
            ):
                yield from self.of_class(type(value))
                yield from self.of_named(value, names_read(code))
            else:
                yield from self.of_value(value)

    def of_named(self, value: object, names: tuple[str, ...]) -> Iterator[str]:
        """The attributes that code names, of a module or of an object with settings."""
        for name in names:
            if name in getattr(value, "__dict__", {}):
                yield name
                yield from self.of_value(getattr(value, name))
