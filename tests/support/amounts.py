"""How often the same is proven: `TESTS=thorough` (`make test-all`) asks for all of it."""

from __future__ import annotations

import os
from typing import Any

import hypothesis

THOROUGH = os.environ.get("TESTS") == "thorough"
LESS = 4  # times fewer examples of a property otherwise


def seeds(all_of_them: int, few: int) -> range:
    """Seeds of a test that repeats one proof; the first few by default."""
    return range(all_of_them if THOROUGH else few)


def examples(most: int, **options: Any) -> hypothesis.settings:
    """Settings of a property test with at most so many examples."""
    return hypothesis.settings(
        max_examples=most if THOROUGH else max(most // LESS, 10), deadline=None, **options
    )
