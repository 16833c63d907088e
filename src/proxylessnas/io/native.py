"""What native code prints, past Python's streams."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def native_away(number: int = 2) -> Iterator[None]:
    """What native code prints meanwhile goes nowhere, which Python's own means cannot stop.

    number: of the process's file, 1 for standard output and 2 for standard error.
    """
    with contextlib.suppress(ValueError, AttributeError):  # a stream that is closed, or None
        (sys.stdout if number == 1 else sys.stderr).flush()
    try:
        saved = os.dup(number)
    except OSError:  # the process has none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    try:
        yield
    finally:
        os.dup2(saved, number)
        os.close(saved)
        os.close(nowhere)
