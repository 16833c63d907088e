"""One thread (two noisy cores), one hypothesis profile, seeded weights."""

from __future__ import annotations

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=40)
hypothesis.settings.load_profile("quick")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Fresh weights are the same whatever test ran before."""
    torch.manual_seed(0)
