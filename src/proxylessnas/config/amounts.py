"""How settings are written: their earlier names, and values with a unit, as a list, in a range."""

from __future__ import annotations

import re
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from proxylessnas.errors import ConfigError, did_you_mean
from proxylessnas.limits import parse_latency
from proxylessnas.schema import Parsed

# Settings that had another name -> their dotted names now.
RENAMED = {
    "both_ends": "search.reinmax",
    "dual_rate": "search.multiplier_learning_rate",
    "use": "derive.min_limit_share",
    "split": "machine.depthwise_strips",
    "fuse": "machine.fused_batch_norm",
    "max_parameters": "limits.parameters",
    "max_macs": "limits.macs",
    "max_peak_memory": "limits.peak_memory",
}

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")  # a data set: owner/name:split


def parse_minutes(text: str, what: str = "the budget") -> float:
    """Minutes of `60m`, `2h` or `90s`.

    Raises:
        ConfigError: another form, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*(s|m|h)\s*", text)
    if match is None or not 0 < float(match[1]) < 1e9:
        raise ConfigError(f"{what} {text!r} is not understood: write 60m or 2h")
    return float(match[1]) * {"s": 1 / 60, "m": 1.0, "h": 60.0}[match[2]]


def parse_bytes(text: str) -> float:
    """Bytes of `6GB` or `800MB`; GB and MB are of 1000, GiB and MiB of 1024.

    Raises:
        ConfigError: another form, or not positive.
    """
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d*)?)\s*([kmgt])(i?)b?\s*", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise ConfigError(f"the memory {text!r} is not understood: write 6GB or 800MB")
    thousand = 1024 if match[3] else 1000
    return float(match[1]) * float(thousand ** ("kmgt".index(match[2].lower()) + 1))


def parse_sizes(text: str) -> tuple[int, ...] | None:
    """Sides in pixels of `96,128,160`, the largest first; None for `auto`.

    Raises:
        ConfigError: another form, or a size is out of range.
    """
    if text.strip() == "auto":
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"\d{1,4}", word) and 1 <= int(word) <= 4096 for word in words):
        raise ConfigError(
            f"the image size {text!r} is not understood: write 128, 96,128,160 or auto"
        )
    return tuple(sorted(set(map(int, words)), reverse=True))


PRECISIONS = ("f32", "fp16", "bf16", "int8")


def parse_precisions(text: str) -> tuple[str, ...]:
    """The precisions of `int8` or `f32,int8`, in their order.

    Raises:
        ConfigError: one is unknown, or none is given.
    """
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in words:
        if word not in PRECISIONS:
            raise ConfigError(f"there is no precision {word!r}; {did_you_mean(word, PRECISIONS)}")
    return words


def _parse_device(text: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise ConfigError(f"the device {text!r} is not one of auto, cpu, cuda and cuda:N")


Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
Threads = Annotated[int, Ge(1), Le(1024)]
Positive = Annotated[float, Gt(0)]
Rate = Annotated[float, Gt(0), Le(1000)]
RateOrZero = Annotated[float, Ge(0), Le(1000)]
Share = Annotated[float, Ge(0), Le(1)]
ShareBelowOne = Annotated[float, Ge(0), Lt(1)]
Fraction = Annotated[float, Gt(0), Lt(1)]
Epochs = Positive
EpochsOrZero = Annotated[float, Ge(0)]
Seed = Annotated[int, Ge(0), Lt(2**63)]
Latency = Annotated[str, Parsed(parse_latency, "a latency as 12ms, 800us or 0.6x")]
Side = Annotated[int, Ge(1), Le(4096)]
Sizes = Annotated[str, Parsed(parse_sizes, "sizes as 96,128,160, or auto")]
Budget = Annotated[str, Parsed(parse_minutes, "a time as 60m or 2h")]
Memory = Annotated[str, Parsed(parse_bytes, "an amount of memory as 6GB or 800MB")]
Precision = Annotated[str, Parsed(parse_precisions, "f32, fp16, bf16 or int8")]
Device = Annotated[str, Parsed(_parse_device, "auto, cpu, cuda or cuda:N")]
