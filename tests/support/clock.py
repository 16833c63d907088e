"""A clock that only tests move: what takes seconds elsewhere takes none here."""

from __future__ import annotations


class Clock:
    """Takes the place of `time.monotonic` and of `time.sleep`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
