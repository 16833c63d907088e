"""Parts put together to one numbering."""

from __future__ import annotations

import numpy as np
import pytest

from proxylessnas.data.source import ImageFiles, SplitPart, assemble
from proxylessnas.errors import DataError


def part(*labels: int, prefix: str = "") -> SplitPart:
    return SplitPart(
        np.array(labels), ImageFiles(tuple(f"{prefix}{i}" for i in range(len(labels))))
    )


def test_images_are_numbered_across_parts_and_unlabelled_ones_left_out() -> None:
    parts = {"test": part(1, -1, prefix="test/"), "train": part(0, -1, 1, -1, prefix="train/")}
    source = assemble("x", ["a", "b"], parts, {"row of split extra": 3})
    assert {role: numbers.tolist() for role, numbers in source.parts.items()} == {
        "test": [0],
        "train": [2, 4],
    }
    assert [source.reader.describe(n) for n in (0, 2, 4)] == ["test/0", "train/0", "train/2"]
    assert [source.labels[n] for n in (0, 2, 4)] == [1, 0, 1]
    assert source.left_out == {
        "row of split extra": 3,
        "test image without a label": 1,
        "train image without a label": 2,
    }


def test_a_validation_part_is_the_test_part_where_there_is_none() -> None:
    source = assemble("x", ["a", "b"], {"train": part(0, 1), "valid": part(1)})
    assert {role: numbers.tolist() for role, numbers in source.parts.items()} == {
        "train": [0, 1],
        "test": [2],
    }


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": part(0, 5)}, "has a label 5 but only 2 class names"),
        ({"train": part(-1, -1)}, "has no labelled training images"),
        ({"test": part(0, 1)}, "has no labelled training images"),
        ({"train": part(1, 1)}, r"training images of 1 class \(b\); at least 2"),
        ({"train": part(0, 1), "test": part(2)}, "class 'c' has no training image, only test"),
    ],
)
def test_labels_that_cannot_be_learnt_are_faults_of_the_data(
    parts: dict[str, SplitPart], message: str
) -> None:
    classes = ["a", "b", "c"] if "'c'" in message else ["a", "b"]
    with pytest.raises(DataError, match=message):
        assemble("x", classes, parts)
