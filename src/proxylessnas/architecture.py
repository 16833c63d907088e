"""The value that flows through the house: the candidate of every choice.

`Architecture` names the space (or the `module:factory`) that builds the model, the
settings it is built with, and one candidate for each choice. It is frozen,
hashable and round-trips through JSON. No torch here: reading one is instant.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from proxylessnas.errors import ArchitectureError

SCHEMA = 1
MAX_FILE_BYTES = 8 << 20
LARGEST_INPUT = 1 << 26  # numbers of one example
LARGEST = 1e12  # of any number in an architecture: no infinity, NaN or overflow


@dataclass(frozen=True, kw_only=True)
class InputInfo:
    """How an image becomes the network's input, and what its outputs mean.

    shape: [channels, height, width] of one example.
    mean, std: per channel, of pixel values scaled to [0, 1]; empty where unknown.
    classes: the class names in the order of the outputs; empty where unknown.
    central_share: the share of an image's shorter side that is seen, centred.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    central_share: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "mean": list(self.mean),
            "std": list(self.std),
            "classes": list(self.classes),
            "central_share": self.central_share,
        }


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One network of a space.

    space: a name in `proxylessnas.spaces.SPACES`, or `module:factory`.
    settings: what the space is built with; plain JSON values.
    choices: choice -> name of its candidate. A choice is named by the module path of its mixed
        operation, or by the `choice=` that several mixed operations share.
    input: what the network was made for, where that is known.
    """

    space: str
    choices: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    input: InputInfo | None = None

    def __post_init__(self) -> None:
        # A JSON round trip makes tuples lists, copies deeply, and refuses what is not JSON.
        try:
            settings = json.loads(json.dumps(dict(self.settings), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ArchitectureError(f"architecture settings are not plain JSON: {error}") from None
        for name, candidate in self.choices.items():
            if not isinstance(name, str) or not isinstance(candidate, str):
                raise ArchitectureError(
                    f"architecture choice {name!r}: {candidate!r} is not a pair of strings"
                )
        object.__setattr__(self, "settings", MappingProxyType(settings))
        object.__setattr__(self, "choices", MappingProxyType(dict(self.choices)))

    def __hash__(self) -> int:
        return hash((self.space, frozenset(self.choices.items())))  # equal in any order

    def __reduce__(self) -> tuple[Any, ...]:
        return (Architecture.from_dict, (self.to_dict(),))

    def with_input(self, info: InputInfo) -> Architecture:
        return replace(self, input=info)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "space": self.space,
            "settings": dict(self.settings),
            "choices": dict(self.choices),
            "input": self.input.to_dict() if self.input else None,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @staticmethod
    def from_dict(data: object) -> Architecture:
        """Check every field of a decoded JSON value.

        Raises:
            ArchitectureError: a field is missing, unknown or of the wrong type.
        """
        fields = _object(data, "architecture", {"schema", "space", "settings", "choices", "input"})
        if fields.get("schema") != SCHEMA:
            raise ArchitectureError(
                f"architecture has schema {fields.get('schema')!r}; this version reads {SCHEMA}"
            )
        space = fields.get("space")
        if not isinstance(space, str) or not space:
            raise ArchitectureError(f"architecture.space is {space!r}, not a name")
        info = fields.get("input")
        return Architecture(
            space=space,
            settings=_object(fields.get("settings", {}), "architecture.settings"),
            choices=_object(fields.get("choices"), "architecture.choices"),
            input=None if info is None else _input_info(info),
        )

    @staticmethod
    def from_json(text: str) -> Architecture:
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArchitectureError(f"architecture is not JSON: {error}") from None
        return Architecture.from_dict(data)

    @staticmethod
    def load(path: str | Path) -> Architecture:
        """Read `architecture.json`; at most 8 MiB.

        Raises:
            ArchitectureError: the file is missing, too large or not an architecture.
        """
        try:
            with Path(path).open("rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
            if len(raw) > MAX_FILE_BYTES:
                raise ArchitectureError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB")
            return Architecture.from_json(raw.decode("utf-8"))
        except OSError as error:
            reason = error.strerror or error
            raise ArchitectureError(f"cannot read the architecture {path}: {reason}") from None
        except UnicodeDecodeError as error:
            raise ArchitectureError(f"cannot read the architecture {path}: {error}") from None
        except ArchitectureError as error:
            raise ArchitectureError(f"{path}: {error}") from None


def _object(data: object, what: str, allowed: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ArchitectureError(f"{what} is {type(data).__name__}, not an object")
    for key in data:
        if allowed is not None and key not in allowed:
            raise ArchitectureError(f"{what} has the unknown field {key!r}")
    return data


def _numbers(data: object, what: str) -> tuple[float, ...]:
    if not isinstance(data, list) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= LARGEST for v in data
    ):
        raise ArchitectureError(f"{what} is {data!r}, not a list of numbers")
    return tuple(float(v) for v in data)


def _input_info(data: object) -> InputInfo:
    known = {"shape", "mean", "std", "classes", "central_share"}
    fields = _object(data, "architecture.input", known)
    shape = _numbers(fields.get("shape"), "architecture.input.shape")
    if not shape or any(v < 1 or v != int(v) or v > 1 << 20 for v in shape):
        raise ArchitectureError(f"architecture.input.shape is {list(shape)}, not a shape")
    if math.prod(int(v) for v in shape) > LARGEST_INPUT:
        raise ArchitectureError(
            f"architecture.input.shape is {list(shape)}: more than {LARGEST_INPUT} numbers"
        )
    classes = fields.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise ArchitectureError("architecture.input.classes is not a list of names")
    mean = _numbers(fields.get("mean", []), "architecture.input.mean")
    std = _numbers(fields.get("std", []), "architecture.input.std")
    if len(mean) != len(std) or (mean and len(mean) != shape[0]) or any(s <= 0 for s in std):
        raise ArchitectureError(
            f"architecture.input: mean {list(mean)} and std {list(std)} do not fit "
            f"{int(shape[0])} channels"
        )
    (share,) = _numbers([fields.get("central_share", 1.0)], "architecture.input.central_share")
    if not 0 < share <= 1:
        raise ArchitectureError(f"architecture.input.central_share is {share}, not in (0, 1]")
    return InputInfo(
        shape=tuple(int(v) for v in shape),
        mean=mean,
        std=std,
        classes=tuple(classes),
        central_share=share,
    )
