"""SIGTERM and Ctrl-C: a loop that saves its state saves first; all else stops at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(BaseException):
    """The process was asked to stop. Not an `Exception`: nothing may take it for an error."""


class Signal:
    """Whether the process was asked to stop.

    requested: it was, within `looked_at`; whoever looks saves its state and raises `Stopped`.
    patient: of several ranks, none leaves the others in the middle: torchrun sends a second
        signal as soon as a rank has ended, and SIGKILL half a minute later.
    """

    def __init__(self) -> None:
        self.requested = self.patient = self._looked_at = False
        self._process = os.getpid()

    def __call__(self, signum: int, frame: Any) -> None:
        """The handler of both signals."""
        if os.getpid() != self._process:  # a process that decodes images: its parent decides
            return
        # Workers that the same signal ends are no error now, as torch's handler would have it. A
        # handler of our own and not the default: a death that is waiting to be heard of would end
        # in a traceback, "ignored due to race condition".
        signal.signal(signal.SIGCHLD, _unheard)
        if self.patient:
            self.requested = True
            return
        if self.requested or not self._looked_at:
            raise Stopped
        self.requested = True
        print("stopping after this step (again to stop at once)", file=sys.stderr)

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """Within the block someone looks at `requested` every few seconds."""
        self._looked_at = True
        try:
            yield
        finally:
            self._looked_at = False


def _unheard(signum: int, frame: Any) -> None:
    """A handler that does nothing."""


@contextmanager
def listening() -> Iterator[Signal]:
    """Within the block the two signals stop the process in its own way."""
    heard = Signal()
    try:
        before = {s: signal.signal(s, heard) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are someone else's
        before = {}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
