"""What the arguments of the Python calls may be, refused in one line where they are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from proxylessnas.config import (
    PRECISIONS,
    DeriveSettings,
    MachineSettings,
    MeasureSettings,
    RunConfig,
    SearchSettings,
)
from proxylessnas.core.objective import check_objective
from proxylessnas.data import Batches, LoaderBatches
from proxylessnas.data.arguments import Keywords
from proxylessnas.errors import ConfigError
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.limits import all_limits
from proxylessnas.training.callbacks import Callback


def batches_of(seed: int, inputs: Any, **loaders: Any) -> dict[str, Batches]:
    """What was given, as `Batches`; named as in messages. inputs: the example inputs, if given."""
    example = tuple(inputs) if isinstance(inputs, tuple | list) else None
    names = {"search": "train"}
    return {
        part: loader
        if callable(getattr(loader, "epoch", None))  # batches already, as our own data give
        else LoaderBatches(loader, name=names.get(part, part), seed=seed, example=example)
        for part, loader in loaders.items()
        if loader is not None
    }


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are not None, the keywords at the end of `example_inputs`.

    Raises:
        ConfigError: the keywords are no mapping of names.
    """
    arguments = {name: value for name, value in arguments.items() if value is not None}
    keywords = arguments.pop("example_kwargs", None)
    check_kinds({"example_kwargs": keywords})
    inputs = arguments.get("example_inputs", ())
    if keywords and isinstance(inputs, tuple | list):  # others are refused as such
        arguments["example_inputs"] = (*inputs, Keywords(keywords))
    return arguments


def _is(*kinds: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def _is_named(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _is_path(value: Any) -> bool:
    return isinstance(value, str | Path) and value != ""  # which would be the directory we are in


# What arguments may be, and the words of a message for it.
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_is(nn.Module), "a torch module (or leave it out, and give pretrained)"),
    "loss": (_is_function, "a function (output, target) -> scalar"),
    "train_loss": (_is_function, "a function (output, target) -> scalar"),
    "correct": (_is_function, "a function (output, target) -> how many are right"),
    "reward": (_is_function, "a function (accuracy, candidate indices) -> R"),
    "example_inputs": (
        lambda inputs: isinstance(inputs, tuple | list) and len(inputs) > 0,
        "a tuple of the arguments of one forward pass: write (x,) for a single tensor",
    ),
    "example_kwargs": (_is_named, "arguments by name, as {'input_ids': x}"),
    "limits": (_is_named, "limits by the cost's name, as {'macs': '600M'}"),
    "costs": (_is_named, "functions by the cost's name"),
    "runtime": (
        lambda runtime: isinstance(runtime, str) or callable(getattr(runtime, "load", None)),
        "a name (onnxruntime) or a runtime",
    ),
    "precision": (_is(str), "a name, as int8"),
    "table": (_is(str, Path, LatencyTable), "a path or a LatencyTable"),
    "pretrained": (_is_path, "a name, as efficientnet_lite0, or a path"),
    "data": (_is_path, "a folder of images, or a data set's name"),
    "settings": (_is(SearchSettings, Mapping), "SearchSettings"),
    "measure": (_is(MeasureSettings), "MeasureSettings"),
    "derive": (_is(DeriveSettings), "DeriveSettings"),
    "machine": (_is(MachineSettings), "MachineSettings"),
    "accept_changed_data": (_is(bool), "True or False"),
    "callbacks": (
        lambda callbacks: (
            isinstance(callbacks, tuple | list)
            and all(isinstance(callback, Callback) for callback in callbacks)
        ),
        "a list of Callback objects",
    ),
    "out": (_is_path, "a path"),
    "path": (_is_path, "a path"),
}


def check_kinds(arguments: Mapping[str, Any], *required: str) -> None:
    """Refuse arguments of the wrong kind, which would fail later in torch's words.

    required: names of arguments that must not be None.

    Raises:
        ConfigError: one is.
    """
    for name, (allowed, words) in KINDS.items():
        value = arguments.get(name)
        if (value is not None or name in required) and not allowed(value):
            raise ConfigError(f"{name} is {in_words(value)}, not {words}")


def in_words(value: Any) -> str:
    """An argument of the wrong kind, as a message says it: what is wrong inside, for containers."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__} itself (an instance would be {value.__name__}(...))"
    if isinstance(value, Mapping):
        return f"a mapping with the keys {', '.join(map(repr, value))}"
    if isinstance(value, list | tuple) and value:
        return f"a {type(value).__name__} of {', '.join(type(v).__name__ for v in value[:5])}"
    return type(value).__name__


def precision_of(arguments: Mapping[str, Any]) -> str | None:
    """The precision that is asked for, or the runtime's own where that is int8.

    Raises:
        ConfigError: both are given, or the model's inputs cannot be quantised.
    """
    runtime, precision = arguments["runtime"], arguments.get("precision")
    if not isinstance(runtime, str):
        if precision is not None:
            raise ConfigError("precision is given with a runtime that has one: leave it out")
        own = runtime.describe()["precision"]
        precision = "int8" if own == "int8" else None
    tensors = all(isinstance(value, Tensor) for value in arguments["example_inputs"])
    if precision == "int8" and not tensors:
        raise ConfigError("precision int8 is for models whose inputs are tensors alone")
    if precision is not None and "," in precision:
        raise ConfigError(f"precision is {precision!r}: one, as int8")
    if precision in PRECISIONS and isinstance(runtime, str):
        make(runtime, precision=precision)  # for its error, before anything is done
    return precision


def check_needs(config: RunConfig, own_reward: bool) -> None:
    """The objective's needs, before anything is measured for it."""
    limited = "latency" in all_limits(config.limits, config.target_latency)
    measured = limited or config.table is not None
    check_objective(config.search, measured=measured, limited=limited, own_reward=own_reward)
