"""The structure of a module as a hash and as a readable label; weights are ignored.

Two candidates that are built alike share one latency, wherever they stand in the network
and whatever their weights are: what counts is in `description.py`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping

from torch import nn

from proxylessnas.core.mixed import Residual
from proxylessnas.hardware.description import Description
from proxylessnas.hardware.objects import SCALARS

Convolution = nn.modules.conv._ConvNd


def fingerprint(
    module: nn.Module,
    replaced: Mapping[nn.Module, nn.Module] | None = None,
    *,
    where: str = "",
) -> str:
    """The structural hash of `module`, 16 hex digits.

    replaced: submodules to be taken for others, so that a mixed operation can be hashed
        with one of its candidates in its place without a copy being made.
    where: the place of the module in its network, which tells modules apart that hold what
        cannot be described.
    """
    return _hash(Description(replaced or {}, where).of_module(module))


def argument_label(value: object, where: str = "") -> str:
    """An argument of a call, that is no tensor, in a word: as it prints, or its type and a hash."""
    if isinstance(value, (*SCALARS, slice)) and type(value).__module__ in ("builtins", "torch"):
        return repr(value)
    return f"{type(value).__name__} {_hash(Description({}, where).of_value(value))[:8]}"


def _hash(words: Iterator[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for word in words:
        digest.update(f"{len(word)}:{word}".encode())
    return digest.hexdigest()


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
