"""Data specs that name nothing."""

from __future__ import annotations

import pytest
from image_folders import load

from proxylessnas.errors import DataError


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mnist", "did you mean torchvision:MNIST?"),
        ("mnist5", "did you mean mnist5k?"),
        ("qwertz", "allowed: digits, mnist5k, surfaces Or give a folder"),
        ("torchvision:CIFAR1", "did you mean CIFAR1"),
        ("./nowhere", "there is no folder ./nowhere"),
        ("/no/such/place", "there is no folder /no/such/place"),
        (__file__, "is a file; --data takes a folder"),
    ],
)
def test_unknown_specs(spec: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        load(spec)
    assert message in str(error.value) and "\n" not in str(error.value)
