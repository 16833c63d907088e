"""What a search step costs, beside a plain training step of the same network.

    python benchmarks/step.py [--short] [--compile] [--workloads W1 W2 W3] [--rounds 7]
        [--json FILE]

W1: the ImageNet space at 224x224, batch 8. W2: the same at 96x96, batch 32. W3: `macro` at
32x32, batch 64. float32, two threads. The network of every row is the same one: candidate
(layer index mod 6; mod 3 in `macro`) in every mixed operation, which the others join as
candidates. The baseline is that network built standalone, in plain eager PyTorch: contiguous
memory, forward, cross entropy, backward, SGD with momentum. All run in this process, in turn,
round by round; the ratios are medians of the rounds' own ratios, so slow moments of the machine
hit both sides.

time, memory: ratio to the baseline. memory is the peak of live tensors during a step, above what
is there between steps (parameters, momentum). cl: time beside the plain step in channels_last.
layout: cont. and cl are the memory formats; with "fast" depthwise convolutions take their weight
gradient in strips (`machine.depthwise_strips`) and batch normalisation is fused with its activation
(`machine.fused_batch_norm`).
rss: peak resident MB of a process that takes only this step (long form).
--compile adds steps whose candidates torch.compile has compiled (minutes, before the rounds).
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from proxylessnas.architecture import Architecture
from proxylessnas.config import SearchSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.estimators import Estimator, FullPath, TwoPath
from proxylessnas.core.objective import Linear
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import MixedOp, Supernet
from proxylessnas.data.batches import LoaderBatches
from proxylessnas.hardware.host import cpu_model
from proxylessnas.io.console import output
from proxylessnas.io.process import keep_freed_memory
from proxylessnas.spaces import build, build_supernet
from proxylessnas.training.device import Machine
from proxylessnas.training.task import Task

THREADS = 2
ARCH_EVERY = 5  # weight steps to an architecture step, of the search epoch


@dataclass(frozen=True)
class Workload:
    space: str
    size: int
    batch: int
    classes: int
    settings: dict[str, Any]
    kinds: int  # of candidates


WORKLOADS = {
    "W1": Workload("mobile", 224, 8, 1000, {"input_shape": [3, 224, 224], "zero": False}, 6),
    "W2": Workload("mobile", 96, 32, 1000, {"input_shape": [3, 96, 96], "zero": False}, 6),
    "W3": Workload("macro", 32, 64, 10, {}, 3),
}


@dataclass(frozen=True)
class Row:
    """What is measured: which step, with how many candidates, computed in which way."""

    step: str
    candidates: int
    channels_last: bool = True
    fast: bool = True  # `machine.depthwise_strips` and `machine.fused_batch_norm`
    compiled: bool = False

    @property
    def layout(self) -> str:
        how = ", compiled" if self.compiled else ", fast" if self.fast else ""
        return ("cl" if self.channels_last else "cont.") + how


PLAIN, PLAIN_CL = Row("plain", 0, False, False), Row("plain, channels_last", 0, True, False)
SHORT = [
    PLAIN,
    PLAIN_CL,
    Row("weight", 6),
    Row("two_path", 6),
    Row("full_path", 6),
]
LONG = [
    *SHORT,
    *(Row(step, 6, cl, False) for cl in (True, False) for step in ("weight", "two_path")),
    *(Row(step, n) for n in (2, 12) for step in ("weight", "two_path")),
    *(Row("full_path", n) for n in (2, 4, 12)),
]
COMPILED = [Row(step, 2, True, False, compiled=True) for step in ("weight", "two_path")]


# --- the steps ---


def plain_step(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], object]:
    """What a user would write."""
    optimizer = torch.optim.SGD(network.train().parameters(), lr=1e-3, momentum=0.9)
    inputs, labels = batch

    def step() -> None:
        loss = nn.functional.cross_entropy(network(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_search(
    supernet: Supernet,
    batch: tuple[Tensor, Tensor],
    machine: Machine,
    estimator: Estimator | None = None,
) -> Search:
    """A search whose α all but stays, on one batch again and again."""
    batches = LoaderBatches([batch] * 1000, name="random")
    settings = SearchSettings(learning_rate=1e-3, warmup_epochs=0, arch_learning_rate=1e-9)
    search = Search(
        supernet=supernet,
        task=Task.classification(),
        train=batches,
        valid=batches,
        costs=Costs.one("latency", supernet.mask.double(), unit="ms"),
        objective=Linear(0.1),
        estimator=estimator or TwoPath(),
        settings=settings,
        schedule=Schedule.of(settings, len(batches)),
        machine=machine,
    )
    search.model.train()
    return search


def plain_row(w: Workload, channels_last: bool) -> Callable[[], object]:
    torch.manual_seed(0)
    machine = Machine(channels_last=channels_last)
    return plain_step(machine.place(build(_architecture(w, 0))), machine.put(_batch(w)))


def search_row(w: Workload, row: Row) -> Callable[[], object]:
    """The search's own step: everything it does between two batches."""
    torch.manual_seed(0)
    estimator: Estimator = FullPath() if row.step == "full_path" else TwoPath()
    machine = Machine(
        channels_last=row.channels_last,
        compile=row.compiled,
        depthwise_strips=row.fast,
        fused_batch_norm=row.fast,
    )
    search = make_search(_supernet(w, row.candidates), _batch(w), machine, estimator)
    search.prepare()
    with torch.no_grad():  # candidate 0 runs, candidate 1 is the other of every pair
        search.supernet.alpha[:] = 0.0
        search.supernet.alpha[:, 0], search.supernet.alpha[:, 1] = 60.0, 30.0

    def step() -> None:
        if row.step == "weight":
            search.weight_step()
        else:
            search.architecture_step()
        search.step += 1

    return step


def make_step(w: Workload, row: Row) -> Callable[[], object]:
    return search_row(w, row) if row.candidates else plain_row(w, row.channels_last)


def _supernet(w: Workload, count: int) -> Supernet:
    """The fixed architecture, each of its choices joined by `count` - 1 other candidates."""
    shifted = [build(_architecture(w, shift)) for shift in range(count)]
    model = shifted[0]
    for name in _names(w):
        candidates = [network.get_submodule(name) for network in shifted]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, MixedOp(candidates))
    return Supernet(model)


def _architecture(w: Workload, shift: int) -> Architecture:
    supernet = build_supernet(w.space, w.settings)
    indices = [(layer + shift) % w.kinds for layer in range(len(supernet.names))]
    return supernet.architecture(indices)


def _names(w: Workload) -> tuple[str, ...]:
    return build_supernet(w.space, w.settings).names


def _batch(w: Workload) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(w.batch, 3, w.size, w.size, generator=generator)
    return images, torch.randint(w.classes, (w.batch,), generator=generator)


# --- measuring ---


def peak_memory(step: Callable[[], object]) -> int:
    """Bytes: the most live tensor memory above what is live before the step, by the allocator."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it tells of every start and stop
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    live = peak = 0
    for change in _allocations(profile):
        live += change
        peak = max(peak, live)
    return peak


def _allocations(profile: torch.profiler.profile) -> Iterator[int]:
    """Bytes taken (+) and given back (-), in their order."""
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        yield event.nbytes()  # type: ignore[attr-defined]


def measure(w: Workload, rows: Sequence[Row], rounds: int) -> dict[Row, tuple[list[float], int]]:
    """Seconds of every round and the peak of memory, for every row."""
    steps = {row: make_step(w, row) for row in rows}
    seconds: dict[Row, list[float]] = {row: [] for row in rows}
    for step in steps.values():
        step()
    peaks = {row: peak_memory(step) for row, step in steps.items()}
    for _ in track(range(rounds), "rounds"):
        for row, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[row].append(time.perf_counter() - start)
    return {row: (seconds[row], peaks[row]) for row in rows}


def resident_mb(workload: str, row: Row) -> float:
    """Peak resident memory of a process of its own that takes three of these steps."""
    asked = json.dumps([workload, *dataclasses.astuple(row)])
    done = subprocess.run(
        [sys.executable, __file__, "--resident", asked], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _only_resident(asked: str) -> None:
    workload, *row = json.loads(asked)
    step = make_step(WORKLOADS[workload], Row(*row))
    for _ in range(3):
        step()
    # The kernel's high-water mark of this process; `getrusage` has the parent's from before exec.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024)  # type: ignore[index]


# --- the table ---


def rows_of(workload: str, measured: dict[Row, tuple[list[float], int]]) -> list[dict[str, Any]]:
    """Of every row its ratios to the baselines, and those of a search epoch."""
    plain, plain_peak = measured[PLAIN]
    plain_cl, _ = measured[PLAIN_CL]
    rows = []
    for row, (seconds, peak) in measured.items():
        rows.append(
            {
                "workload": workload,
                "step": row.step,
                "candidates": row.candidates,
                "channels_last": row.channels_last,
                "fast": row.fast,
                "layout": row.layout,
                "seconds": statistics.median(seconds),
                "time_ratio": _ratio(seconds, plain),
                "time_ratio_channels_last": _ratio(seconds, plain_cl),
                "memory_ratio": peak / plain_peak,
                "peak_mb": peak / 2**20,
            }
        )
    weight, pair = measured[Row("weight", 6)], measured[Row("two_path", 6)]
    epoch = [a + b / ARCH_EVERY for a, b in zip(weight[0], pair[0], strict=True)]
    peak = max(weight[1], pair[1])
    rows.append(
        {
            "workload": workload,
            "step": f"search epoch (1 two_path each {ARCH_EVERY} weight)",
            "candidates": 6,
            "channels_last": True,
            "fast": True,
            "layout": "cl, fast",
            "seconds": statistics.median(epoch),
            "time_ratio": _ratio(epoch, plain),
            "time_ratio_channels_last": _ratio(epoch, plain_cl),
            "memory_ratio": peak / plain_peak,
            "peak_mb": peak / 2**20,
        }
    )
    return rows


def _ratio(seconds: Sequence[float], baseline: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(seconds, baseline, strict=True))


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Ratios to the plain eager step of the same run")
    for name in ("workload", "step", "N", "layout", "s", "time", "cl", "memory", "peak MB", "rss"):
        table.add_column(name, justify="left" if name in ("workload", "step") else "right")
    for r in rows:
        table.add_row(
            r["workload"],
            r["step"],
            str(r["candidates"] or ""),
            r["layout"],
            f"{r['seconds']:.3f}",
            f"{r['time_ratio']:.2f}",
            f"{r['time_ratio_channels_last']:.2f}",
            f"{r['memory_ratio']:.2f}",
            f"{r['peak_mb']:.0f}",
            f"{r['resident_mb']:.0f}" if "resident_mb" in r else "",
        )
    return table


def main() -> None:
    args = _arguments()
    torch.set_num_threads(THREADS)
    keep_freed_memory()  # for the baseline too
    if args.resident:
        _only_resident(args.resident)
        return
    console, rows = output(), list[dict[str, Any]]()
    for name in args.workloads:
        w = WORKLOADS[name]
        wanted = (SHORT if args.short else LONG) + (COMPILED if args.compile else [])
        found = rows_of(name, measure(w, wanted, args.rounds))
        if not args.short:
            for row, result in zip(wanted, found, strict=False):
                result["resident_mb"] = resident_mb(name, row)
        rows += found
        console.print(_table(found))
    if args.json:
        facts = {
            "date": datetime.date.today().isoformat(),
            "torch": torch.__version__,
            "machine": cpu_model(),
            "threads": THREADS,
        }
        args.json.write_text(json.dumps({**facts, "rows": rows}, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--short", action="store_true", help="six candidates, no resident memory")
    parser.add_argument("--compile", action="store_true", help="compiled candidates besides")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--resident", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
