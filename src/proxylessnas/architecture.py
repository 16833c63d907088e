"""The value that flows through the house: the candidate of every choice.

`Architecture` names the space (or the `module:factory`) that builds the model, the
settings it is built with, and one candidate for each choice. It is frozen,
hashable and round-trips through JSON. No torch here: reading one is instant.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen

from proxylessnas.errors import ArchitectureError
from proxylessnas.io.json_files import parse_json, read_json
from proxylessnas.schema import checked

MAX_FILE_BYTES = 8 << 20
LARGEST_INPUT = 1 << 26  # numbers of one example

Side = Annotated[int, Ge(1), Le(1 << 20)]
Mean = Annotated[float, Ge(-1e12), Le(1e12)]  # no overflow
Deviation = Annotated[float, Gt(0), Le(1e12)]


@checked(ArchitectureError, place="input")
@dataclass(frozen=True, kw_only=True)
class InputInfo:
    """How an image becomes the network's input, and what its outputs mean."""

    shape: Annotated[tuple[Side, ...], MinLen(1)]
    """Channels, height and width of one example."""
    mean: tuple[Mean, ...] = ()
    """Mean of every channel, of pixel values scaled to [0, 1]; empty where unknown."""
    std: tuple[Deviation, ...] = ()
    """Standard deviation of every channel, as the mean."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the outputs; empty where unknown."""
    central_share: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of an image's shorter side that is seen, centred."""
    value_range: tuple[float, float] | None = None
    """Values of images of more than 8 bits that become 0 and 255; null where there are none."""
    background: Literal["white", "black"] = "white"
    """What transparent pixels lie on: black where all that is drawn is white."""

    def __post_init__(self) -> None:
        if math.prod(self.shape) > LARGEST_INPUT:
            raise ValueError(f"shape is {list(self.shape)}: more than {LARGEST_INPUT:,} numbers")
        if len(self.mean) != len(self.std) or (self.mean and len(self.mean) != self.shape[0]):
            raise ValueError(
                f"mean {list(self.mean)} and std {list(self.std)} do not fit {self.shape[0]} "
                "channels"
            )


@checked(ArchitectureError, place="architecture")
@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One network of a space."""

    space: Annotated[str, MinLen(1)]
    """A name in `proxylessnas.spaces.SPACES`, or `module:factory`."""
    choices: Mapping[str, str]
    """Choice -> name of its candidate. A choice is named by the module path of its mixed operation,
    or by the `choice=` that several mixed operations share."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the space is built with; plain JSON values."""
    input: InputInfo | None = None
    """What the network was made for, where that is known."""
    schema: Literal[1] = 1
    """Version of the file's form."""

    def __post_init__(self) -> None:
        # A JSON round trip makes tuples lists, copies deeply, and refuses what is not JSON.
        try:
            settings = json.loads(json.dumps(dict(self.settings), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"settings are not plain JSON: {error}") from None
        object.__setattr__(self, "settings", MappingProxyType(settings))
        object.__setattr__(self, "choices", MappingProxyType(dict(self.choices)))

    def __hash__(self) -> int:
        return hash((self.space, frozenset(self.choices.items())))  # equal in any order

    def __reduce__(self) -> tuple[Any, ...]:
        return (Architecture.from_json, (self.to_json(),))

    def with_input(self, info: InputInfo) -> Architecture:
        return replace(self, input=info)

    def to_json(self) -> str:
        plain = {
            "schema": self.schema,
            "space": self.space,
            "settings": dict(self.settings),
            "choices": dict(self.choices),
            "input": asdict(self.input) if self.input else None,
        }
        return json.dumps(plain, indent=2) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> Architecture:
        """The architecture of a JSON text.

        Raises:
            ArchitectureError: the text is not JSON, or a field is missing, unknown or of the wrong
                type.
        """
        architecture: Architecture = parse_json(Architecture, text, ArchitectureError)
        return architecture

    @staticmethod
    def load(path: str | Path) -> Architecture:
        """Read `architecture.json`; at most 8 MiB.

        Raises:
            ArchitectureError: the file cannot be read, is too large or not an architecture.
        """
        architecture: Architecture = read_json(
            path, Architecture, MAX_FILE_BYTES, ArchitectureError
        )
        return architecture
