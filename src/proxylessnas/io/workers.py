"""What an error says of a process that loads data and died."""

from __future__ import annotations

import re
import time
import traceback

# What reading from the process that died raises, where its death was not seen yet.
BROKEN = (ConnectionError, EOFError, FileNotFoundError)


def lost_worker(error: BaseException) -> str:
    """What is known of a worker of a DataLoader that died, empty if none did.

    torch names the worker where it knows of its death. Before that the pipe or the socket breaks on
    which a batch was coming; the same errors of a data set's own are none of a worker.
    """
    broke = isinstance(error, BROKEN)
    try:
        broke = broke and any(
            "multiprocessing" in frame.f_code.co_filename
            for frame, _ in traceback.walk_tb(error.__traceback__)
        )
        if broke:
            time.sleep(0.5)
    except RuntimeError as seen:  # torch's handler of SIGCHLD raises wherever we are
        error = seen
    found = re.search(r"DataLoader worker .*(exited|is killed)[^.]*", str(error))
    if found:
        return " ".join(found[0].split())
    return "DataLoader worker: the connection broke" if broke else ""
