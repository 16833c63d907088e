"""A console that cannot show what is printed does not end a finished run."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxylessnas.io.console import output, table_of

SHOW = (
    "import sys, json; from proxylessnas.io.console import output, write_anything; "
    "from proxylessnas.runs.summary_shown import show; write_anything(); "
    "show(json.load(open(sys.argv[1])), 'r\\u00fcn', output()); "
    "print('5 \\u00b5s \\u00b1 1, \\u4e2d.png, \\udcff.png, \\u00e9t\\u00e9')"
)


@pytest.mark.parametrize(
    ("encoding", "bar", "last"),
    [
        ("ascii", "#", "5 us +- 1, ?.png, ?.png, ete"),
        ("cp1252", "#", "5 µs ± 1, ?.png, ?.png, été"),
        ("utf-8", "▇", "5 µs ± 1, 中.png, ?.png, été"),
    ],
)
def test_the_last_table_is_shown_in_the_console_s_alphabet(
    finished_run: Path, encoding: str, bar: str, last: str
) -> None:
    """No `▇` and no `µ` in cp1252 and ASCII; names of files may be no text at all."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", SHOW, str(finished_run / "summary.json")]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    said = done.stdout.decode(encoding)
    assert bar in said and "test accuracy" in said
    assert said.strip().splitlines()[-1] == last


def test_the_command_takes_care_of_its_streams() -> None:
    """An error that names a file in letters which the console lacks is still one line."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "proxylessnas", "run", "--data=дом"]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 2
    assert done.stderr.decode("ascii").startswith("proxylessnas: there is no data set '???'")


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (">&-", 0, ""),  # a service without a console
        (">&- 2>&-", 0, ""),
        (">/dev/full", 1, "proxylessnas: cannot print the results: No space left on device"),
        ("| head -1", 0, ""),
    ],
)
def test_an_output_that_takes_nothing(redirected: str, code: int, said: str) -> None:
    command = f"{sys.executable} -m proxylessnas zoo {redirected}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (code, said)


def test_a_narrow_terminal_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    table = table_of("network", ["test accuracy %", "latency ms"])
    table.add_row("narrower everywhere", "81.25", "12.345")
    output().print(table)
    assert all(text in stream.getvalue() for text in ("narrower everywhere", "12.345"))
