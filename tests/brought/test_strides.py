"""A network at 32 pixels is slower than at 96: the strides that were chosen are said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from image_folders import make_folder

from proxylessnas.cli.main import main


@pytest.mark.parametrize(
    ("size", "more", "line"),
    [
        (
            32,
            "",
            "strides for 32 pixels: 1 of the stem, then 1 2 2 1 2 1; the last layers see 4 x 4",
        ),
        (
            96,
            "",
            "strides for 96 pixels: 2 of the stem, then 2 2 2 1 2 1; the last layers see 3 x 3",
        ),
        (32, "{stem_stride: 2}", "strides for 32 pixels: 2 of the stem, then 1 2 2 1 2 1"),
        (32, "{stem_stride: 2, strides: [1, 2, 2, 1, 2, 1]}", ""),
    ],
)
def test_strides_that_follow_from_the_images_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int, more: str, line: str
) -> None:
    """Only what was not given."""
    data = make_folder(tmp_path / "photos", count=10, size=lambda i: (size, size))
    words = ["run", f"--data={data}", "--runtime=fake", f"--out={tmp_path}/run", "--limit=macs=1"]
    assert main([*words, *([f"--space-settings={more}"] if more else [])]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert ("strides for" in said) == bool(line)
    assert ("is taken" in said) == (size == 32 and not more)


def test_they_are_measured_where_there_is_a_choice_and_the_limit_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 32 pixels both leave the last layers something to see; at 16 they do not."""
    data = make_folder(tmp_path / "photos", count=10, size=lambda i: (32, 32))
    words = ["run", f"--data={data}", "--runtime=fake", "--limit=macs=1"]

    def said(*more: str) -> str:
        assert main([*words, *more, f"--out={tmp_path}/run"]) == 2  # one MAC is too few
        return capsys.readouterr().err

    first = said()
    figures = re.search(
        r"take (\S+) to (\S+) ms with a stem of stride 1, (\S+) to (\S+) with 2: 1 is taken", first
    )
    assert figures is not None and "pixels: 1 of the stem" in first
    low, high, low_2, high_2 = map(float, figures.groups())
    assert low_2 < low < high and high_2 < high
    second = said(f"--target-latency={(low + low_2) / 2}ms")
    assert "with 2: 2 is taken" in second and "pixels: 2 of the stem" in second
    assert "with 2: 1 is taken" in said(f"--target-latency={high}ms")
    make_folder(tmp_path / "small", count=10, size=lambda i: (16, 16))
    words[1] = f"--data={tmp_path / 'small'}"
    small = said()
    assert "is taken" not in small and "pixels: 1 of the stem" in small
