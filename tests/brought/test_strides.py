"""A network at 32 pixels is slower than at 96: the strides that were chosen are said."""

from __future__ import annotations

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
    """Only what was not given; that a larger stride is faster, where the stem has none."""
    data = make_folder(tmp_path / "photos", count=10, size=lambda i: (size, size))
    words = ["run", f"--data={data}", "--runtime=fake", f"--out={tmp_path}/run", "--limit=macs=1"]
    assert main([*words, *([f"--space-settings={more}"] if more else [])]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert ("strides for" in said) == bool(line)
    assert ("a larger one is faster" in said) == (size == 32 and not more)
