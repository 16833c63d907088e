"""Images that get lost while they stream."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_folders import load, make_folder, mixed_size

from proxylessnas.errors import DataError


def test_damage_found_while_streaming_is_stood_in_for(tmp_path: Path) -> None:
    make_folder(tmp_path, count=60, size=mixed_size)
    data = load(str(tmp_path), image_size=12, workers=0)
    before = list(data.batches("test", 8).epoch(0))
    lost = sorted((tmp_path / "cat").iterdir())
    for path in lost:
        path.write_bytes(b"gone")
    with pytest.raises(DataError, match="no image of a batch can be decoded"), pytest.warns():
        list(data.batches("test", 8).epoch(0))
    with pytest.warns(UserWarning, match="left out"):
        after = list(data.batches("train", 96, shuffle=True).epoch(0))
    assert len(after[0][0]) == 96 and set(after[0][1].tolist()) == {1}
    assert len(before) == 3 and all("gone" not in name for name in data.store.damaged)
    assert (
        not data.summary.damaged and len(data.store.damaged) == len(lost) - 12 + 8
    )  # all of train, the first batch of test
