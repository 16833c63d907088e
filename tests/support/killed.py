"""A process that dies when all that a stage leaves is there but for its record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from proxylessnas.runs.directory import RunDirectory


@contextmanager
def killed_before_record(monkeypatch: pytest.MonkeyPatch, stage: str) -> Iterator[None]:
    """Within the block writing the stage's record is a KeyboardInterrupt."""
    write = RunDirectory.write

    def dying(self: RunDirectory, name: str, data: bytes) -> None:
        if name == f"stages/{stage}.json":
            raise KeyboardInterrupt
        write(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "write", dying)
        yield
