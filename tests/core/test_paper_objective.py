"""The paper's whole objective: the ImageNet space, the Pixel 1 table, 80 ms; and no phone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from proxylessnas.config import SearchSettings
from proxylessnas.core.estimators import make_estimator
from proxylessnas.core.objective import make_objective
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.search import Search
from proxylessnas.data.batches import LoaderBatches
from proxylessnas.hardware.published_table import published_cost, read_published_table
from proxylessnas.spaces import build_supernet
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import Task

DATA = os.environ.get("PROXYLESSNAS_DATA")


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="PROXYLESSNAS_DATA is unset: no Pixel 1 table")
@pytest.mark.parametrize("objective", ["mul_log", "add_linear", "constraint"])
def test_a_few_steps_towards_80_ms_on_the_pixel_1(objective: str) -> None:
    table = read_published_table(Path(DATA or "") / "published" / "mobile_trim.yaml")
    supernet = build_supernet("mobile")
    costs = published_cost(supernet, table).limited({"latency": 80.0})
    settings = SearchSettings(
        warmup_epochs=0,
        epochs=2,
        batch_size=2,
        objective=objective,
        arch_every=1,  # type: ignore[arg-type]
    )
    batch = (torch.randn(2, 3, 224, 224), torch.randint(0, 1000, (2,)))
    job = Search(
        supernet=supernet,
        task=Task.classification(0.1),
        train=LoaderBatches([batch], name="train"),
        valid=LoaderBatches([batch], name="valid"),
        costs=costs,
        objective=make_objective(settings, costs, 2),
        estimator=make_estimator("two_path"),
        settings=settings,
        schedule=Schedule.of(settings, 1),
    )
    before = supernet.alpha.detach().clone()
    run_loop(job)
    assert job.step == 2
    assert (supernet.alpha != before).any()
    estimate = job.latest.estimate
    assert estimate is not None
    latency = costs.index("latency")
    assert costs.limits[latency] == 80
    assert 60 < estimate.expected[latency] < 140  # near uniform: the mean of the space
