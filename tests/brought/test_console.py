"""A console that cannot show what is printed does not end a finished run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
