"""What only a GPU shows: the same steps there, in every precision and memory format; its clock."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import make_search

from proxylessnas.config import MeasureSettings
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.whole_networks import measure_networks
from proxylessnas.spaces import build_supernet
from proxylessnas.training.device import Machine
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import Task

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

SETTINGS = {"widths": [8, 16], "depths": [2, 2], "input_shape": [3, 16, 16]}


def images() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 10) for _ in range(3)
    ]


def search_on(estimator: str = "two_path", **machine: Any) -> Any:
    torch.manual_seed(0)
    model = build_supernet("macro", SETTINGS).model
    return make_search(
        model,
        estimator,
        data=images(),
        task=Task.classification(),
        machine=Machine(**machine),
        warmup_epochs=1,
        epochs=1,
    )


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("estimator", ["two_path", "full_path", "reinforce"])
def test_a_search_runs_there(estimator: str, channels_last: bool, autocast: bool) -> None:
    device = torch.device("cuda")
    job = search_on(estimator, device=device, channels_last=channels_last, autocast=autocast)
    run_loop(job)
    assert job.step == job.schedule.total
    tensors = [*job.model.parameters(), *job.model.buffers()]
    assert all(t.is_cuda and bool(t.isfinite().all()) for t in tensors)
    assert not job.supernet.alpha.is_cuda and float(job.supernet.alpha.abs().max()) > 1e-2


def test_compiled_candidates_learn_there() -> None:
    job = search_on(device=torch.device("cuda"), compile=True)
    run_loop(job)
    assert job.step == job.schedule.total and float(job.supernet.alpha.abs().max()) > 1e-2
    assert all(bool(p.isfinite().all()) for p in job.model.parameters())


def test_its_steps_are_those_of_the_cpu_but_for_rounding() -> None:
    here, there = search_on(), search_on(device=torch.device("cuda"))
    for job in (here, there):
        job.model.train()
        job.weight_step()
        job.architecture_step()
    theirs = dict(there.model.named_parameters())
    for name, parameter in here.model.named_parameters():
        torch.testing.assert_close(theirs[name].cpu(), parameter, atol=1e-3, rtol=1e-2)
    assert there.latest.estimate.loss == pytest.approx(here.latest.estimate.loss, rel=1e-2)


def test_weight_steps_never_wait_for_the_device() -> None:
    job = search_on(device=torch.device("cuda"))
    job.model.train()
    for _ in range(2):
        job.weight_step()
    batch = job.machine.put(images()[0])  # reading a batch pins memory, which may wait
    job.train_stream.take = lambda: batch
    torch.cuda.set_sync_debug_mode("error")
    try:
        job.weight_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(job.recovery.unread) == 3
    job.recovery.read()
    assert job.recovery.bad == {"weight": 0}


def test_a_batch_arrives_as_it_was() -> None:
    machine = Machine(device=torch.device("cuda"), channels_last=True)
    inputs, labels = images()[0]
    there, classes = machine.put((inputs, labels))
    assert there.is_cuda and there.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(there.cpu(), inputs) and torch.equal(classes.cpu(), labels)


@pytest.mark.parametrize("name", ["torch:cuda", "torch:cuda,graph", "torch:cuda,channels_last"])
def test_its_latency_is_of_the_device_and_not_of_the_launch(name: str) -> None:
    """A hundred times the work takes longer, although launching it takes as long."""
    small, large = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 512, 9, padding=4)
    report = measure_networks(
        {"small": small.eval(), "large": large.eval()},
        make(name),
        (torch.randn(16, 8, 128, 128),),
        MeasureSettings(network_rounds=5),
        seed=0,
    )
    assert report["large"].raw_ms > 3 * report["small"].raw_ms
