"""One thread (two noisy cores), one hypothesis profile, the marker of slow tests."""

from __future__ import annotations

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=40)
hypothesis.settings.load_profile("quick")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a few seconds")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Fresh weights are the same whatever test ran before."""
    torch.manual_seed(0)
