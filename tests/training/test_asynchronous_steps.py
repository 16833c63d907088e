"""A device that the host does not wait for: bad steps are skipped there and heard of later.

Shown on the CPU, where `later` means the same to the letter; `test_gpu.py` shows that nothing
waits.
"""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import changed, make_search, regression, snapshot

from proxylessnas.config import TrainSettings
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import MixedOp
from proxylessnas.data.batches import LoaderBatches
from proxylessnas.errors import UserError
from proxylessnas.training import faults as recovery
from proxylessnas.training.device import Machine
from proxylessnas.training.faults import Recovery
from proxylessnas.training.freezing import BufferSnapshot
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import Task
from proxylessnas.training.train import Training


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "is_apart", True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.2))
        self.op = MixedOp({"a": nn.Linear(6, 4), "b": nn.Sequential(nn.Linear(6, 4), nn.ReLU())})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(self.first(x))
        return out


class BadAt(nn.Module):
    """A loss that is NaN the n-th times it is asked."""

    def __init__(self, *times: int) -> None:
        super().__init__()
        self.times, self.asked = times, 0

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.asked += 1
        bad = self.asked - 1 in self.times
        return nn.functional.mse_loss(output, target) * (math.nan if bad else 1.0)


def searching(*bad: int) -> Search:
    torch.manual_seed(0)
    task = Task(loss=nn.functional.mse_loss, train_loss=BadAt(*bad))
    return make_search(Net(), task=task, warmup_epochs=1, epochs=3)


def training(*bad: int) -> Training:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 4))
    settings = TrainSettings(epochs=4, learning_rate=0.05)
    task = Task(loss=BadAt(*bad))
    return Training(network, task, LoaderBatches(regression(), name="train"), settings)


def heard(job: Any) -> tuple[dict[str, Tensor], Any, list[str]]:
    """Its state after all steps, and its warnings."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run_loop(job)
    tensors, values = job.state()
    return tensors, values, [str(w.message) for w in said]


@pytest.mark.parametrize("bad", [(), (0,), (2, 3, 7), (15,), (4, 5, 6, 7), range(10, 15)])
@pytest.mark.parametrize("make", [searching, training])
def test_it_ends_as_if_the_host_had_waited(
    make: Any, bad: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = heard(make(*bad))
    monkeypatch.setattr(Machine, "is_apart", True)
    later = heard(make(*bad))
    assert later[1] == waiting[1]
    # The host has gone a step further before it goes back.
    said = [
        [re.sub("back from step [0-9]+", "back", line) for line in x[2]] for x in (waiting, later)
    ]
    assert said[0] == said[1] and len(said[0]) >= len(bad)
    for name, value in waiting[0].items():
        assert torch.equal(later[0][name], value), name


@pytest.mark.parametrize("make", [searching, training])
def test_a_bad_step_leaves_no_trace(make: Any, apart: None) -> None:
    job = make(0)
    job.model.train()
    before = snapshot(job.model)
    job.weight_step() if isinstance(job, Search) else job.take_step()
    assert changed(job.model, before) == set()
    assert not job.recovery.bad  # nobody has asked the device
    with pytest.warns(UserWarning, match="not finite at step 0"):
        job.state()
    assert set(job.recovery.bad.values()) == {1}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("make", [searching, training])
def test_too_many_in_a_row_still_go_back_and_give_up(
    make: Any, apart: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "ANCHOR_EVERY", 4)
    with pytest.raises(UserError, match=r"not finite 5 times in a row.*going back 3 times"):
        run_loop(make(*range(6, 99)))
    job = make(*range(6, 11))  # the sixth is taken before the fifth is heard of
    run_loop(job)
    assert job.recovery.returns == 1 and job.step == 16


def test_the_last_steps_are_heard_of_before_it_ends(apart: None) -> None:
    job = training(*range(12, 16))
    with pytest.warns(UserWarning, match="at step 15"):
        run_loop(job)
    assert not job.recovery.unread


def test_it_reads_in_order_and_one_step_late() -> None:
    seen = Recovery()
    for step, good in enumerate([False, True, False, False]):
        seen.report("weight", step, torch.tensor(good))
    with pytest.warns(UserWarning):
        seen.read(but=1)
    assert len(seen.unread) == 1 and seen.bad == {"weight": 1}


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("replaces", [False, True])
def test_buffers_are_put_back_unless_the_step_was_taken(taken: bool, replaces: bool) -> None:
    module = nn.BatchNorm1d(2)
    before = {k: v.clone() for k, v in module.named_buffers()}
    kept = BufferSnapshot(module._buffers)
    if replaces:
        module.running_mean = torch.full((2,), torch.nan)
    else:
        module.running_mean.fill_(torch.nan)  # type: ignore[union-attr]
    module.num_batches_tracked.add_(1)  # type: ignore[union-attr]
    kept.restore(unless=torch.tensor(taken))
    for name, buffer in module.named_buffers():
        same = torch.equal(buffer, before[name])
        assert same is (not taken or name == "running_var")
