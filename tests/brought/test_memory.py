"""Memory: the peak of a stage is predicted, said, and kept within what is free."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from image_folders import load, make_folder, mixed_size
from pretrained import WORDS, small_teacher, trained_run
from tiny_run import OPTIONS
from torch import Tensor, nn

from proxylessnas.cli.main import main
from proxylessnas.config import SearchSettings, TrainSettings, parse_bytes
from proxylessnas.core.costs import Costs
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import MixedOp, Supernet
from proxylessnas.data import LoaderBatches
from proxylessnas.errors import ConfigError, UserError
from proxylessnas.io.memory import free_bytes
from proxylessnas.io.process import keep_freed_memory
from proxylessnas.session import memory
from proxylessnas.session.memory import Need, fit_memory, predict
from proxylessnas.training.optimizers import whole_batch
from proxylessnas.training.task import Task
from proxylessnas.training.train import Training

MEMINFO = {"proc/meminfo": "MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable:   9000 kB\n"}
V1, V2 = "sys/fs/cgroup/memory", "sys/fs/cgroup"


# --- what is free ---


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, float("inf")),
        (MEMINFO, 9000 * 1024),
        (MEMINFO | {f"{V2}/memory.max": "max\n", f"{V2}/memory.current": "5\n"}, 9000 * 1024),
        (MEMINFO | {f"{V2}/memory.max": "6000\n", f"{V2}/memory.current": "5000\n"}, 1000),
        (
            {
                **{f"{V2}/memory.max": "6000", f"{V2}/memory.current": "5000"},
                f"{V2}/memory.stat": "anon 7\nfile 900\ninactive_file 300\nactive_file 400\n",
            },
            1700,
        ),
        ({f"{V2}/memory.max": "6000", f"{V2}/memory.current": "7000"}, 0),
        ({f"{V2}/memory.high": "5500", f"{V2}/memory.current": "5000"}, 500),
        (  # a limit of a group above the process's own
            {
                "proc/self/cgroup": "0::/job/step\n",
                **{f"{V2}/job/memory.max": "900", f"{V2}/job/memory.current": "500"},
                **{f"{V2}/job/step/memory.max": "max", f"{V2}/job/step/memory.current": "100"},
            },
            400,
        ),
        (
            MEMINFO
            | {
                "proc/self/cgroup": "5:cpu:/\n4:memory:/pod/one\n0::/\n",
                f"{V1}/pod/one/memory.limit_in_bytes": "8000",
                f"{V1}/pod/one/memory.usage_in_bytes": "7500",
                f"{V1}/pod/one/memory.stat": "inactive_file 1\ntotal_inactive_file 50\n",
                f"{V1}/memory.limit_in_bytes": "9223372036854771712",
                f"{V1}/memory.usage_in_bytes": "1",
            },
            550,
        ),
        (  # in a container: the path is the host's, and the mount is the group itself
            {
                "proc/self/cgroup": "4:memory:/docker/abc\n",
                f"{V1}/memory.limit_in_bytes": "8000",
                f"{V1}/memory.usage_in_bytes": "7000",
            },
            1000,
        ),
    ],
)
def test_what_the_machine_or_its_cgroup_has_free(
    files: dict[str, str], free: float, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_bytes(tmp_path) == free


@pytest.mark.parametrize(
    ("text", "size"),
    [("6GB", 6e9), ("6G", 6e9), ("800MB", 8e8), ("1.5GiB", 1.5 * 2**30), ("2 gb", 2e9)],
)
def test_amounts_of_memory(text: str, size: float) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["6", "0GB", "-1GB", "GB", "6GHz", "", "1e400GB"])
def test_other_amounts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write 6GB or 800MB"):
        parse_bytes(text)


# --- accumulation over smaller batches gives the same result ---


def batches(count: int = 2, images: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(images, 3, 16, 16, dtype=torch.float64, generator=generator),
            torch.randint(5, (images,), generator=generator),
        )
        for _ in range(count)
    ]


def trained(network: nn.Module, at_once: int | None, **settings: Any) -> Training:
    job = Training(
        network=copy.deepcopy(network),
        task=Task.classification(0.1),
        train=LoaderBatches(batches(), name="train"),
        settings=TrainSettings(epochs=2, **settings),
    )
    job.at_once = at_once
    undo = job.prepare()
    while job.step < job.total:
        job.take_step()
        job.step += 1
    undo()
    return job


def plain_network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5)
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("at_once", [1, 3, 4, 7])
@pytest.mark.parametrize("kind", ["frozen statistics", "no batch normalisation"])
def test_parts_of_a_batch_train_to_the_same_weights(kind: str, at_once: int) -> None:
    frozen = kind == "frozen statistics"
    network = small_teacher().double() if frozen else plain_network()
    whole = trained(network, None, frozen_statistics=frozen)
    parts = trained(network, at_once, frozen_statistics=frozen)
    assert not parts.whole_batch
    assert whole.loss is not None and parts.loss is not None
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-6, atol=0)
    before = network.state_dict()
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], tensor, rtol=1e-6, atol=1e-9)
    assert any(not torch.equal(t, before[n]) for n, t in whole.model.state_dict().items())


def searched(at_once: int | None, estimator: str) -> Search:
    torch.manual_seed(0)
    model = nn.Sequential(
        MixedOp([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)]),
        nn.ReLU(),
        MixedOp([nn.Conv2d(4, 4, 3, padding=1), nn.Identity(), nn.Conv2d(4, 4, 1)]),
        nn.Flatten(),
        nn.Linear(1024, 5),
    ).double()
    supernet = Supernet(model)
    settings = SearchSettings(warmup_epochs=0, epochs=3, estimator=estimator)  # type: ignore[arg-type]
    job = Search.from_settings(
        settings,
        costs=Costs.free(*supernet.mask.shape),
        train=LoaderBatches(batches(), name="train"),
        valid=LoaderBatches(batches(), name="valid"),
        supernet=supernet,
        task=Task.classification(0.1),
    )
    job.at_once = at_once
    job.prepare()
    while job.step < job.total:
        job.take_step()
        job.step += 1
    return job


@pytest.mark.parametrize("estimator", ["two_path", "full_path", "darts", "gumbel"])
def test_parts_of_a_batch_search_to_the_same_alpha(estimator: str) -> None:
    whole, parts = searched(None, estimator), searched(3, estimator)
    assert not parts.whole_batch
    torch.testing.assert_close(parts.supernet.alpha, whole.supernet.alpha, rtol=1e-6, atol=1e-9)
    assert not torch.equal(whole.supernet.alpha, whole.alpha_start)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], tensor, rtol=1e-6, atol=1e-9)


class Mine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("model", "task", "frozen", "words"),
    [
        (nn.BatchNorm2d(3), Task.classification(), False, "statistics of the whole batch"),
        (nn.BatchNorm2d(3), Task.classification(), True, ""),
        (
            nn.BatchNorm2d(3, track_running_stats=False),
            Task.classification(),
            True,
            "statistics of the whole batch",
        ),
        (nn.GroupNorm(3, 3), Task.classification(0.1), False, ""),
        (nn.Sequential(Mine()), Task.classification(), False, "Mine may look at the whole batch"),
        (nn.ReLU(), Task(loss=nn.functional.mse_loss), False, "not known to be a mean"),
        (nn.ReLU(), Task.classification(0.0, torch.ones(3)), False, "not known to be a mean"),
    ],
)
def test_what_cannot_be_accumulated(model: nn.Module, task: Task, frozen: bool, words: str) -> None:
    why = whole_batch(model, task, frozen_statistics=frozen)
    assert words in why and bool(words) == bool(why)


# --- the prediction ---


def test_a_prediction_grows_with_the_batch_and_leaves_nothing_behind() -> None:
    """Of 64 images whose activations are known to take 64 x 16 x 64 x 64 floats a layer."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    job = Training(
        network=network,
        task=Task.classification(),
        train=LoaderBatches(batches(), name="train"),
        settings=TrainSettings(),
    )
    before = {k: v.clone() for k, v in job.model.state_dict().items()}
    random = torch.get_rng_state()
    need = predict(job, (3, 64, 64), 64)
    if need is None:
        pytest.skip("the kernel does not tell peaks here")
    activations = 3 * 16 * 64 * 64 * 4  # of an image: of convolution, normalisation, ReLU
    assert 0.6 * activations < need.image < 4 * activations
    assert need.peak(64) > need.peak(32) > need.before
    after = job.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in job.model.parameters())


def test_as_many_images_fit_as_the_peak_says() -> None:
    need = Need(before=1e9, step=1e8, image=2e7)
    fitting = need.images(3e9)
    assert need.peak(fitting) <= 3e9 < need.peak(fitting + 1)
    assert need.images(1e9) == 0


def fitted(
    monkeypatch: pytest.MonkeyPatch,
    need: Need,
    free: float,
    *,
    world: int = 1,
    local: int = 1,
    is_apart: bool = False,
    limit: str | None = None,
    **job: Any,
) -> tuple[Any, str]:
    """(the job, what is said) for images of 224 pixels at batch 64."""
    batches = SimpleNamespace(
        batch_size=64, rows=range(245), info=SimpleNamespace(shape=(3, 224, 224))
    )
    alone = SimpleNamespace(world=world, local=local, of_main=lambda make: make())
    machine = SimpleNamespace(is_apart=is_apart)
    parts = SimpleNamespace(train=batches, machine=machine, ranks=alone, step=0, total=9, **job)
    monkeypatch.setattr(memory, "ImageBatches", SimpleNamespace)
    monkeypatch.setattr(memory, "Training", SimpleNamespace)
    monkeypatch.setattr(memory, "predict", lambda *_: need)
    monkeypatch.setattr(memory, "free_bytes", lambda: free - need.before)
    said: list[str] = []
    fit_memory(parts, "train", limit, said.append)  # type: ignore[arg-type]
    assert parts.ranks is alone
    return parts, "\n".join(said)


NEED = Need(before=5e8, step=0.0, image=1e8)  # 8.8 GB at batch 64


def test_the_peak_of_a_stage_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    job, said = fitted(monkeypatch, NEED, 9.8e9, whole_batch="", at_once=None)
    assert said == "  memory: about 8.8 GB at batch 64; 9.8 GB are free"
    assert job.at_once is None


def test_the_ranks_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 ranks on two machines each takes 16 images, and half of what is free beside it."""
    free = {"free": 9.5e9, "whole_batch": "", "at_once": None, "world": 4, "local": 2}
    job, said = fitted(monkeypatch, NEED, **free)
    assert said == "  memory: about 2.6 GB at batch 16; 5.0 GB are free for each of 2 processes"
    job, said = fitted(monkeypatch, NEED, **free, limit="4GB")
    assert "2.0 GB are allowed (--memory 4GB) for each of 2 processes" in said
    assert job.at_once == 8  # 11 fit: two equal parts


def test_that_nothing_is_predicted_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    job, said = fitted(monkeypatch, NEED, 1e9, whole_batch="", at_once=None, is_apart=True)
    assert said.startswith("  memory: not predicted on a GPU") and job.at_once is None
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    monkeypatch.undo()
    training = Training(
        network=network,
        task=Task.classification(),
        train=LoaderBatches(batches(), name="train"),
        settings=TrainSettings(),
    )
    lines: list[str] = []
    fit_memory(training, "train", None, lines.append)
    assert "not predicted for loaders of your own" in lines[0]


def test_a_batch_that_is_too_large_is_accumulated(monkeypatch: pytest.MonkeyPatch) -> None:
    job, said = fitted(monkeypatch, NEED, 5e9, whole_batch="", at_once=None)
    assert job.at_once == 32  # 34 fit: two equal parts
    assert said.endswith("batches are computed 32 images at a time, to the same result")


def test_a_batch_that_cannot_be_accumulated_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as refused:
        fitted(monkeypatch, NEED, 5e9, whole_batch="batch normalisation ...", at_once=None)
    words = str(refused.value)
    assert "64 images of 224 x 224 needs about 8.8 GB, and 5.0 GB are free" in words
    assert "--train.batch-size 34" in words
    assert "--image-size" in words and "--memory" in words and "\n" not in words


@pytest.mark.parametrize(
    ("limit", "words"),
    [("6", "6GB or 800MB"), ("50MB", "50 MB are allowed (--memory 50MB); no smaller batch fits")],
)
def test_memory_is_bounded_before_anything_is_measured(
    limit: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *OPTIONS, f"--out={tmp_path}/run", f"--memory={limit}"]) == 2
    error = capsys.readouterr().err
    assert words in error.splitlines()[-1]
    assert "measure:" not in error


# --- workers that decode ---


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_workers_hold_no_copy_of_the_activations(tmp_path: Path) -> None:
    """Forked where malloc keeps 400 MB that the step before has freed."""
    before = _mib(os.getpid())
    keep_freed_memory()
    photos = make_folder(tmp_path, size=mixed_size)
    data = load(str(photos), image_size=16, workers=1)
    stream = data.batches("train", 2).epoch(0)
    tensors = [torch.ones(1 << 20) for _ in range(100)]
    last = torch.ones(1)  # behind them, so that the heap does not simply shrink
    del tensors
    assert _mib(os.getpid()) > before + 300
    next(stream)
    assert last is not None and _mib(*_children()) < before + 200


def _children() -> list[int]:
    lists = Path("/proc/self/task").glob("*/children")
    return [int(pid) for children in lists for pid in children.read_text().split()][-1:]


def _mib(*processes: int) -> int:
    """What the processes have of their own or share with the one that forked them."""
    text = "".join(Path(f"/proc/{pid}/status").read_text() for pid in processes)
    return sum(map(int, re.findall(r"RssAnon:\s*(\d+)", text))) >> 10


# --- the whole road with trained weights ---


@pytest.mark.slow
def test_a_run_from_trained_weights_in_parts_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With memory for 5 images of a batch at a time, in teaching, search and training."""
    weights = trained_run(tmp_path / "trained")
    command = ["run", *WORDS, f"--pretrained={weights}"]
    assert main([*command, f"--out={tmp_path}/whole"]) == 0
    monkeypatch.setattr(memory, "predict", lambda *_: Need(before=0.0, step=0.0, image=1e6))
    capsys.readouterr()
    words = [word for word in command if word != "--quiet"]
    assert main([*words, f"--out={tmp_path}/parts", "--memory=7MB"]) == 0
    # Teaching (once more where it led away), the search and the training.
    assert capsys.readouterr().err.count("images at a time, to the same result") in (3, 4)
    one, other = (json.loads((tmp_path / out / "summary.json").read_text()) for out in RUNS)
    assert other["teacher_accuracy"] == pytest.approx(one["teacher_accuracy"], abs=0.02)
    networks = [(tmp_path / out / "architecture.json").read_text() for out in RUNS]
    assert networks[0] == networks[1]


RUNS = ("whole", "parts")
