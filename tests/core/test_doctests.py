"""The examples in docstrings of core/ are true."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["decode", "gradients", "objective", "supernet"])
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(f"proxylessnas.core.{name}")
    failed, attempted = doctest.testmod(module)
    assert failed == 0
    assert attempted > 0
