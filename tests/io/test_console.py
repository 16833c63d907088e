"""What a person sees while it works."""

from __future__ import annotations

import pytest
from clock import Clock

from proxylessnas.io.console import Reporter, duration, output, table_of


def test_the_time_left_is_that_of_the_part_at_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """Three slow steps, then many quick ones: the second estimate knows nothing of the first."""
    clock = Clock()
    with Reporter(clock=clock).bar("measuring") as update:
        for done in range(1, 4):
            update(done, 3)
            clock.sleep(60)
        for done in range(100):
            update(done, 1000)
            clock.sleep(0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "  measuring: 2 of 3, 1:00 left"
    later = [line for line in lines[1:] if " left" in line]
    assert len(later) > 3 and later[0] == "  measuring: 20 of 1000, 8:10 left"


def test_names_of_users_stand_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """`mycode:factory: weights` had been printed with a picture of a factory."""
    name = "mycode:factory: [bold]a[/bold] [/b] :smile:"
    Reporter().say(name)
    table = table_of(name, ["class"])
    table.add_row(name, name)
    output().print(table)
    shown = capsys.readouterr()
    assert shown.err == f"{name}\n"
    assert shown.out.count(name) == 3


def test_durations() -> None:
    assert [duration(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]
