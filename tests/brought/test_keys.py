"""K1. Two computations, one price: whatever a forward pass depends on is in a candidate's key."""

from __future__ import annotations

import copy
import enum
import functools
import logging
import operator
import threading
import types
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxylessnas.core.supernet import MixedOp, Supernet
from proxylessnas.hardware.fingerprint import fingerprint
from proxylessnas.hardware.trace import trace


class Holds(nn.Module):
    """A candidate with any attribute."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held

    def forward(self, x: Tensor) -> Tensor:
        return x


class Buffered(nn.Module):
    def __init__(self, value: Any, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.register_buffer("value", torch.as_tensor(value, dtype=dtype))


class Mode(enum.Enum):
    LIGHT = 1
    HEAVY = 2


class ByFunction(enum.Enum):
    LIGHT = functools.partial(torch.relu)
    HEAVY = functools.partial(torch.sigmoid)


class Apply:
    """A callable object whose repr says nothing."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __repr__(self) -> str:
        return "Apply()"

    def __call__(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = torch.relu(x)
        return x


class Slotted:
    __slots__ = ("__hidden", "shown")

    def __init__(self, shown: int, hidden: int = 0) -> None:
        self.shown, self.__hidden = shown, hidden


class Nested:
    def __init__(self, times: int) -> None:
        self.inner = Apply(times)
        self.parent = self


class Pair(NamedTuple):
    kernel: int
    times: int


def repeat(times: int) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(x: Tensor) -> Tensor:
            for _ in range(times):
                x = function(x)
            return x

        return wrapper

    return decorate


def halve(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(x: Tensor) -> Tensor:
        return function(x[:, ::2])

    return wrapper


def act(x: Tensor) -> Tensor:
    return torch.relu(x)


def of_class(times: int, **members: Any) -> nn.Module:
    """A class made where it is used: its name is the same, whatever is in it."""

    class Block(nn.Module):
        depth = times

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

        def body(self, x: Tensor) -> Tensor:
            for _ in range(times):
                x = torch.relu(x)
            return x

    return Block()


def executed(text: str, **names: Any) -> Any:
    names = {"torch": torch, "nn": nn, **names}
    exec(text, names)  # what notebooks and code generators do
    return names["f"]


def with_global(times: int) -> Any:
    return executed("def f(x):\n    return g(x)\ndef g(x):\n    return x * TIMES", TIMES=times)


def in_module(times: int) -> Any:
    ops = types.ModuleType("my_ops")
    exec(f"def heavy(x):\n    return [x] * {times}", vars(ops))
    return executed("def f(x):\n    return ops.heavy(x)", ops=ops)


def with_settings(times: int, out: str) -> Any:
    args = types.SimpleNamespace(times=times, out=out)
    return executed("def f(x):\n    return x * args.times", args=args)


def hooked(times: int) -> nn.Module:
    module = nn.ReLU()
    module.register_forward_hook(lambda m, args, out: [out] * times)
    return module


def patched(times: int) -> nn.Module:
    module = nn.Conv2d(3, 3, 1)
    module.forward = types.MethodType(lambda self, x: [x] * times, module)  # type: ignore
    return module


def lists(times: int) -> nn.Module:
    module = nn.Module()
    module.unregistered = [nn.Linear(2, 2) for _ in range(times)]  # type: ignore
    return module


LIGHT, HEAVY = Holds(lambda x: torch.relu(x)), Holds(lambda x: torch.sigmoid(x))
ONE_LINE = [lambda x: x + 1, lambda x: x + 2]

# What the two candidates differ by -> the two; and the first once more, made anew.
PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "a partial's argument": (
        lambda: Holds(functools.partial(F.avg_pool2d, kernel_size=2)),
        lambda: Holds(functools.partial(F.avg_pool2d, kernel_size=9)),
    ),
    "the function in a partial": (
        lambda: Holds(functools.partial(torch.relu)),
        lambda: Holds(functools.partial(torch.sigmoid)),
    ),
    "a closure": (lambda: Holds(repeat(2)(act)), lambda: Holds(repeat(20)(act))),
    "a decorator": (lambda: Holds(repeat(2)(act)), lambda: Holds(halve(act))),
    "a lambda on the same line": (lambda: Holds(ONE_LINE[0]), lambda: Holds(ONE_LINE[1])),
    "a callable object": (lambda: Holds(Apply(2)), lambda: Holds(Apply(20))),
    "a bound method": (lambda: Holds(Apply(2).__call__), lambda: Holds(Apply(20).__call__)),
    "a method of C": (lambda: Holds({1: 2}.get), lambda: Holds({1: 20}.get)),
    "a cached function": (
        lambda: Holds(functools.lru_cache(repeat(2)(act))),
        lambda: Holds(functools.lru_cache(repeat(20)(act))),
    ),
    "a partial method": (
        lambda: Holds(functools.partialmethod(act, 1)),
        lambda: Holds(functools.partialmethod(act, 2)),
    ),
    "an operator": (lambda: Holds(operator.itemgetter(0)), lambda: Holds(operator.itemgetter(1))),
    "an object's attribute": (lambda: Holds(Nested(2)), lambda: Holds(Nested(20))),
    "a slot": (lambda: Holds(Slotted(2)), lambda: Holds(Slotted(20))),
    "a private slot": (lambda: Holds(Slotted(2, 1)), lambda: Holds(Slotted(2, 10))),
    "an enum": (lambda: Holds(Mode.LIGHT), lambda: Holds(Mode.HEAVY)),
    "an enum of functions": (lambda: Holds(ByFunction.LIGHT), lambda: Holds(ByFunction.HEAVY)),
    "a slice": (lambda: Holds(slice(2)), lambda: Holds(slice(20))),
    "a range": (lambda: Holds(range(2)), lambda: Holds(range(20))),
    "a dtype": (lambda: Holds(torch.float32), lambda: Holds(torch.float64)),
    "a named tuple": (lambda: Holds(Pair(3, 1)), lambda: Holds(Pair(3, 10))),
    "a key of a dict": (lambda: Holds({Mode.LIGHT: 1}), lambda: Holds({Mode.HEAVY: 1})),
    "a set of functions": (lambda: Holds({torch.relu}), lambda: Holds({torch.sigmoid})),
    "a class": (lambda: Holds(nn.ReLU), lambda: Holds(nn.Sigmoid)),
    "a method of a class of one name": (lambda: of_class(2), lambda: of_class(20)),
    "a function's attribute": (lambda: attributed(2), lambda: attributed(20)),
    "what a subclass of int adds": (lambda: Holds(Number(1, 2)), lambda: Holds(Number(1, 20))),
    "what a subclass of list adds": (lambda: Holds(Row(2)), lambda: Holds(Row(20))),
    "the default of a dict": (
        lambda: Holds(defaultdict(lambda: 2)),
        lambda: Holds(defaultdict(lambda: 20)),
    ),
    "what a weak reference is to": (
        lambda: Holds(weakref.ref(KEPT[2])),
        lambda: Holds(weakref.ref(KEPT[20])),
    ),
    "a parametrisation": (lambda: parametrised(2), lambda: parametrised(20)),
    "an array": (lambda: Holds(np.zeros(2000)), lambda: Holds(np.ones(2000))),
    "modules in a list": (lambda: lists(2), lambda: lists(20)),
    "a forward of the instance": (lambda: patched(2), lambda: patched(20)),
    "a hook": (lambda: hooked(2), lambda: hooked(20)),
    "a constant of code without source": (
        lambda: Holds(executed("def f(x):\n    return x * 2")),
        lambda: Holds(executed("def f(x):\n    return x * 20")),
    ),
    "a global": (lambda: Holds(with_global(2)), lambda: Holds(with_global(20))),
    "a function of one's own module": (lambda: Holds(in_module(2)), lambda: Holds(in_module(20))),
    "a global setting": (
        lambda: Holds(with_settings(2, "a")),
        lambda: Holds(with_settings(20, "a")),
    ),
    "a number in a buffer": (lambda: Buffered(2), lambda: Buffered(20)),
    "a share in a buffer": (lambda: Buffered(0.25), lambda: Buffered(0.5)),
    "indices in a buffer": (
        lambda: Buffered(torch.arange(40)),
        lambda: Buffered(torch.zeros(40, dtype=torch.int64)),
    ),
    "a mask in a buffer": (
        lambda: Buffered(torch.ones(8, 8).tril()),
        lambda: Buffered(torch.ones(8, 8).triu(3)),
    ),
    "a tensor in a closure": (
        lambda: Holds((lambda t: lambda x: x[t])(torch.arange(2))),
        lambda: Holds((lambda t: lambda x: x[t])(torch.arange(20))),
    ),
    "a scripted function": (
        lambda: Holds(torch.jit.script(scripted_light)),
        lambda: Holds(torch.jit.script(scripted_heavy)),
    ),
    "a scripted module": (
        lambda: torch.jit.trace(of_class(2), torch.zeros(3)),
        lambda: torch.jit.trace(of_class(20), torch.zeros(3)),
    ),
    "a number in a scripted module": (
        lambda: torch.jit.script(Repeated(2)),
        lambda: torch.jit.script(Repeated(20)),
    ),
    "a module of torch.fx": (
        lambda: torch.fx.symbolic_trace(of_class(2)),
        lambda: torch.fx.symbolic_trace(of_class(20)),
    ),
}


def attributed(times: int) -> nn.Module:
    def function(x: Tensor) -> Tensor:
        return x * function.times

    function.times = times  # type: ignore[attr-defined]
    return Holds(function)


class Number(int):
    def __new__(cls, value: int, times: int) -> Number:
        number = super().__new__(cls, value)
        number.times = times  # type: ignore[attr-defined]
        return number


class Row(list[int]):
    def __init__(self, times: int) -> None:
        super().__init__([1])
        self.times = times


KEPT = {times: Apply(times) for times in (2, 20)}


def parametrised(times: int) -> nn.Module:
    module = nn.Linear(2, 2)
    nn.utils.parametrize.register_parametrization(module, "weight", of_class(times))
    return module


class Repeated(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.times, self.conv = times, nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.conv(x)
        return x


def scripted_light(x: Tensor) -> Tensor:
    return torch.relu(x)


def scripted_heavy(x: Tensor) -> Tensor:
    return torch.relu(torch.relu(x))


@pytest.mark.parametrize("what", PAIRS)
def test_candidates_that_differ_have_keys_of_their_own(what: str) -> None:
    light, heavy = PAIRS[what]
    assert fingerprint(light()) != fingerprint(heavy())


@pytest.mark.parametrize("what", PAIRS)
def test_candidates_that_are_built_alike_have_one_key(what: str) -> None:
    light, _ = PAIRS[what]
    assert fingerprint(light()) == fingerprint(light())


@pytest.mark.parametrize(
    "held",
    [torch.Generator(), iter(range(3)), (i for i in range(3)), memoryview(b"12")],
    ids=lambda held: type(held).__name__,
)
def test_what_cannot_be_described_is_never_shared(held: Any) -> None:
    """But it has the same key at its place in another process: the place is in the key."""
    one, other = Holds([held]), Holds([held])
    assert fingerprint(one, where="0.a") != fingerprint(other, where="1.a")
    assert fingerprint(one, where="0.a") == fingerprint(other, where="0.a")


class Counting(nn.Module):
    """A candidate that changes with each call: a counter as buffer, one as number, a list."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))
        self.conv, self.lock, self.log = nn.Conv2d(3, 3, 1), threading.Lock(), logging.getLogger()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x)


def test_learning_and_counting_change_no_key() -> None:
    module = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3))
    before = fingerprint(module)
    module(torch.randn(2, 3, 4, 4))
    nn.init.ones_(module[0].weight_g)  # type: ignore[arg-type]
    assert fingerprint(module) == before


def test_a_trace_leaves_counters_and_so_the_keys_as_they_were() -> None:
    supernet = Supernet(MixedOp({"a": Counting(), "b": nn.Conv2d(3, 3, 3, padding=1)}))
    x = torch.randn(1, 3, 8, 8)
    first, again = trace(supernet, (x,)), trace(supernet, (x,))
    assert list(first.units) == list(again.units)
    assert len(first.units) == 2


def test_settings_that_a_function_does_not_read_do_not_count() -> None:
    assert fingerprint(Holds(with_settings(2, "runs/1"))) == fingerprint(
        Holds(with_settings(2, "runs/2"))
    )


def test_a_module_in_a_maze_of_objects_is_described_in_time() -> None:
    maze: list[Any] = []
    maze.append({"maze": maze, "set": frozenset([Apply(2)])})
    chain: Any = None
    for _ in range(5000):
        chain = types.SimpleNamespace(next=chain)
    module = Holds([maze, chain, copy.copy(maze)])
    assert fingerprint(module) == fingerprint(module)


class Asked(nn.Module):
    """A mixed operation that is given an object beside its input."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.asked = Apply(times)
        self.mixed = MixedOp({"a": Applies(), "b": nn.Identity()})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mixed(x, self.asked)
        return out


class Applies(nn.Module):
    def forward(self, x: Tensor, apply: Apply) -> Tensor:
        return apply(x)


def test_an_object_among_the_arguments_is_part_of_the_key() -> None:
    """By what it holds, not by its address: the same model has the same keys again."""
    two, again, twenty = (
        set(trace(Supernet(Asked(times)), (torch.zeros(1, 4),)).units) for times in (2, 2, 20)
    )
    assert two == again != twenty
