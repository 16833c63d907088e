"""A folder of tables: what is in it, and the right one for a device that the user names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from tiny_run import TINY_RUN

from proxylessnas.cli.main import main
from proxylessnas.errors import MeasurementError
from proxylessnas.hardware import shared_tables
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.hardware.shared_tables import SharedTable, table_of_device, tables_in
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.timing import Measurement
from proxylessnas.runs.directory import RunDirectory

PIXEL = """\
Conv-input:224x224x3-output:112x112x32: {count: 10, mean: 1.5, var: 0.1}
expanded_conv-input:56x56x24-output:56x56x24-expand:3-kernel:5-stride:1-idskip:1: \
{count: 10, mean: 2.5, var: 0.1}
"""


def saved(folder: Path, name: str, device: str, precision: str, runtime: str = "fake") -> None:
    measured = Measurement(samples_ms=(1.0,), environment={"date": f"2026-0{len(name)}-01T00:00"})
    described = FakeRuntime(device=device, precision=precision).describe()
    table = LatencyTable(
        device={**described, "runtime": runtime, "batch": 1, "input_shapes": "1x3x96x96"},
        entries={"Conv": measured},
        validation={"mean_abs_error_pct": 1.25},
    )
    table.save(folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tables"
    path.mkdir()
    saved(path, "a.json", "Board 3000", "f32")
    saved(path, "b.json", "Board 3000", "int8")
    saved(path, "c.json", "Phone X", "f32", "litert")
    saved(path, "d.json", "Phone X", "f32", "onnxruntime")
    (path / "mobile_trim.yaml").write_text(PIXEL)
    (path / "bad.json").write_text("{}")
    (path / "notes.txt").write_text("not a table")
    return path


def test_what_is_in_a_folder(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    tables = {t.path.name: t for t in tables_in(folder)}
    ours = ["a.json", "b.json", "bad.json", "c.json", "d.json"]
    assert list(tables) == [*ours, "mobile_trim.yaml"]
    b = tables["b.json"]
    assert (b.device, b.precision, b.validation, b.date[:4]) == ("Board 3000", "int8", 1.25, "2026")
    assert tables["bad.json"].problem and not b.problem
    assert tables["mobile_trim.yaml"].device == "Pixel 1"
    assert main(["tables", str(folder)]) == 0
    said = capsys.readouterr().out
    for words in ("Board 3000", "1x3x96x96", "1.2 %", "not usable: bad.json", "Pixel 1"):
        assert words in said


def test_of_a_run_s_directory_its_table_is_listed_and_no_other_file(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tables", str(finished_run)]) == 0
    said = capsys.readouterr().out
    assert "latency_table.json" in said and "not usable" not in said and "1 in " in said


def test_the_table_of_a_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def name(device: str, **how: str) -> str:
        return table_of_device(device, folder, **how).name

    assert name("board3000") == "a.json"
    assert name("Board 3000", precision="int8") == "b.json"
    assert name("pixel1") == "mobile_trim.yaml"
    assert name("phone-x", runtime="litert") == "c.json"
    with pytest.raises(MeasurementError, match=r"several tables .* give --runtime.*c\.js.*d\.js"):
        name("phonex")
    with pytest.raises(MeasurementError, match=r"no table of the device 'phonex' in int8"):
        name("phonex", precision="int8")
    with pytest.raises(MeasurementError, match="did you mean Board 3000"):
        name("Board 300x")
    (folder / "mobile_trim.yaml").unlink()
    with pytest.raises(MeasurementError, match="publishes mobile_trim"):
        name("pixel1")
    with pytest.raises(MeasurementError, match="there is no folder of tables"):
        table_of_device("x", folder / "missing")


def test_a_run_takes_the_table_of_its_device(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", *TINY_RUN, f"--out={tmp_path / 'first'}"]) == 0
    table = LatencyTable.load(tmp_path / "first" / "latency_table.json")
    table = LatencyTable(**{**vars(table), "device": {**table.device, "device": "My Board"}})
    table.save(folder / "mine.json")
    words = [*TINY_RUN, f"--tables={folder}", f"--out={tmp_path / 'run'}"]
    assert main(["measure", *words, "--device=myboard"]) == 0
    config = RunDirectory(tmp_path / "run").read_config()
    assert config.table == str(folder / "mine.json")
    capsys.readouterr()
    for more, expected in (
        (["--device=nothing"], "no table of the device 'nothing'"),
        ([], "give --device too"),
        (["--device=myboard", "--table=t.json"], "give one"),
        (["--device=myboard", "--precision=int8"], "no table of the device 'myboard' in int8"),
    ):
        out = f"--out={tmp_path / 'other'}"
        assert main(["run", *TINY_RUN, f"--tables={folder}", *more, out]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert expected in line


@pytest.fixture
def url(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The folder, by a server of this machine."""
    monkeypatch.setattr(shared_tables, "CACHE", tmp_path / "cache")
    handler = partial(SilentHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


def test_a_url_is_a_folder_of_the_tables_that_it_lists(
    url: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a.json", "mobile_trim.yaml"]
    (folder / "index.json").write_text(json.dumps(names))
    assert [table.path.name for table in tables_in(url)] == names
    assert table_of_device("pixel1", url).read_bytes() == (folder / names[1]).read_bytes()
    assert main(["tables", url, "--device=board3000"]) == 0
    assert capsys.readouterr().out.strip().endswith("a.json")
    (folder / "index.json").write_text('["a.json"]')  # what is no longer listed is forgotten
    assert [table.path.name for table in tables_in(url)] == ["a.json"]


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (None, "cannot read the tables of http"),
        ('{"a": 1}', "is no list of names of tables"),
        ('["../a.json"]', "is no list of names of tables"),
        ('["a.sh"]', "is no list of names of tables"),
        ('["missing.json"]', "cannot read the tables of http"),
    ],
)
def test_a_url_that_lists_no_tables_is_one_line(
    url: str, folder: Path, index: str | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if index is not None:
        (folder / "index.json").write_text(index)
    assert main(["tables", url]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("asked", "device", "same"),
    [
        ("pixel1", "Google Pixel 1", True),
        ("pixel1", "Pixel 10", False),
        ("pixel", "Pixel 10", True),
        ("note10", "Samsung Note10", True),
        ("epyc", "AMD EPYC 7763", True),
        ("7763", "AMD EPYC 7763", True),
        ("776", "AMD EPYC 7763", False),
        ("63", "AMD EPYC 7763", False),
        ("--", "Pixel 1", False),
    ],
)
def test_a_device_is_known_by_whole_numbers(asked: str, device: str, same: bool) -> None:
    assert SharedTable(path=Path("t.json"), device=device).is_of(asked) == same
