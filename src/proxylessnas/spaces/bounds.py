"""How large a network of a space may be: settings come from files, and files from strangers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Le, MinLen

from proxylessnas.architecture import LARGEST_INPUT
from proxylessnas.errors import ConfigError

MAX_PARAMETERS = 1 << 29  # of all candidates; 2 GiB in float32
MAX_BLOCKS = 1000
Size = Annotated[int, Ge(1), Le(1 << 20)]  # of a width, a side or a number of layers
Sizes = Annotated[tuple[Size, ...], MinLen(1)]
InputShape = tuple[Size, Size, Size]


def check(input_shape: Sequence[int], blocks: int, parameters: float) -> None:
    """Refuse what would take gigabytes or minutes to build.

    parameters: about how many, counted without building anything.

    Raises:
        ConfigError: the input, the depth or the number of parameters is absurd.
    """
    if math.prod(input_shape) > LARGEST_INPUT:
        raise ConfigError(
            f"input_shape is {list(input_shape)}: more than {LARGEST_INPUT:,} numbers an example"
        )
    if blocks > MAX_BLOCKS:
        raise ConfigError(f"there are {blocks:,} blocks; at most {MAX_BLOCKS:,} are built")
    if not parameters <= MAX_PARAMETERS:
        raise ConfigError(
            f"these settings make a supernet of about {parameters:.2g} parameters; at most "
            f"{MAX_PARAMETERS:.2g} are built: lower the widths, the depths or the head"
        )
