"""Progress of what takes long and says nothing: a slow disk, a large folder, another library."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
Progress = Callable[[int, int, str], None]  # done, in all (0: unknown), and what of
EVERY = 0.3  # seconds


def silent(done: int, total: int, what: str) -> None:
    """No progress."""


def watched(work: Callable[[], T], tell: Callable[[], None]) -> T:
    """The result of `work`, which runs in a thread while `tell` is called again and again.

    The thread is a daemon: whoever stops the process waits for no disk.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while True:
        thread.join(EVERY)
        tell()
        if not thread.is_alive():
            break
    if errors:
        raise errors[0]
    return results[0]
