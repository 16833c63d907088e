"""A worker's death, before it is known, is a broken connection."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from multiprocessing.connection import Client, Listener
from pathlib import Path

import pytest
from torch import Tensor

from proxylessnas.data.stores import _alive
from proxylessnas.errors import DataError
from proxylessnas.io.workers import lost_worker
from proxylessnas.training.faults import explained


def broken_connection(path: Path) -> None:
    """As a worker that dies while the pixels of a batch are fetched from it."""
    listener = Listener(str(path / "socket"), authkey=b"key")

    def dies() -> None:
        listener._listener._socket.accept()[0].close()  # type: ignore[attr-defined]

    thread = threading.Thread(target=dies)
    thread.start()
    try:
        Client(listener.address, authkey=b"key")
    finally:
        thread.join()
        listener.close()


def test_a_connection_that_breaks_is_a_worker_lost(tmp_path: Path) -> None:
    said = "process that loads data died.*connection broke"
    with pytest.raises(DataError, match=said), explained():
        broken_connection(tmp_path)


def test_a_connection_that_breaks_is_a_decoder_lost(tmp_path: Path) -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        broken_connection(tmp_path)
        yield from ()

    with pytest.raises(DataError, match=r"worker: the connection broke.*--loading\.workers 1"):
        next(_alive(batches()))


def test_where_a_socket_is_gone(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised:
        Client(str(tmp_path / "socket"))
    assert lost_worker(raised.value) == "DataLoader worker: the connection broke"


@pytest.mark.parametrize("place", ["traceback.walk_tb", "time.sleep"])
def test_a_death_that_becomes_known_while_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """As torch's handler of SIGCHLD, which raises wherever the program is."""

    def interrupted(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    with pytest.raises(OSError) as raised:
        Client(str(tmp_path / "socket"))
    monkeypatch.setattr(place, interrupted)
    assert lost_worker(raised.value) == "DataLoader worker (pid 7) is killed by signal: Killed"


@pytest.mark.parametrize("kind", [ConnectionResetError, EOFError, FileNotFoundError])
def test_a_data_set_s_own_errors_are_no_worker_s(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="of the server"), explained():
        raise kind("of the server")
