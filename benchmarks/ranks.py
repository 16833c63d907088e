"""What several ranks send one another in a step of the search.

    torchrun --nproc-per-node 2 benchmarks/ranks.py [--space mobile] [--size 32] [--batch 8]
        [--steps 7] [--estimator two_path]

Ours sends the gradients of the active path, its BN statistics and the loss, flattened into one
buffer. The usual way wraps the whole supernet in DistributedDataParallel, which must then look
for unused parameters, and sends every candidate's gradient. The profiler counts both: the calls
of `all_reduce` and the bytes of their buffers, means over --steps weight steps with the same
gates. What DistributedDataParallel broadcasts besides (buffers) is left out.

Bytes and calls do not depend on the machine, on the sizes of images and batches, or on how many
ranks there are. How long an exchange takes does.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from math import prod

import torch
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile

from proxylessnas.config import SearchSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.gates import Path
from proxylessnas.core.search import Search
from proxylessnas.data.batches import LoaderBatches
from proxylessnas.io.console import output
from proxylessnas.spaces import build_supernet
from proxylessnas.training.ranks import Ranks, open_ranks
from proxylessnas.training.task import Task

OURS = "a weight step: the active path"
USUAL = "DistributedDataParallel: the supernet"
Sent = tuple[float, float]  # calls and bytes a step


def main() -> None:
    args = _arguments()
    warnings.simplefilter("ignore")
    with open_ranks() as ranks:
        if ranks.world == 1:
            raise SystemExit("one rank sends nothing: torchrun --nproc-per-node 2 benchmarks/...")
        job, steps = _search(args, ranks), args.steps
        parameters = sum(p.numel() for p in job.supernet.model.parameters())
        rows = {
            OURS: _sent(steps, job.weight_step, job),
            f"an architecture step ({args.estimator})": _sent(
                steps, job.architecture_step, job, element=8
            ),
        }
        job = _search(args, ranks)  # another one: replicating puts hooks on its parameters
        whole = ranks.replicate(job.supernet.model, may_skip=True)
        rows[USUAL] = _sent(steps, lambda: _replicated_step(job, whole), job)
        if ranks.is_main:
            _show(rows, f"{args.space}, {parameters:,} parameters, {ranks.world} ranks")


def _search(args: argparse.Namespace, ranks: Ranks) -> Search:
    supernet = build_supernet(args.space, {"input_shape": [3, args.size, args.size]})
    x = torch.randn(args.batch, 3, args.size, args.size)
    data = LoaderBatches([(x, torch.zeros(args.batch, dtype=torch.long))], name="noise")
    settings = SearchSettings(
        warmup_epochs=1000, epochs=1000, learning_rate=1e-4, estimator=args.estimator
    )
    return Search.from_settings(
        settings,
        supernet=supernet,
        task=Task.classification(),
        train=data,
        valid=data,
        costs=Costs.free(*supernet.mask.shape),
        ranks=ranks,
    )


def _replicated_step(job: Search, whole: nn.Module) -> None:
    """The gradients of one weight step, averaged by DistributedDataParallel."""
    inputs, target = job.train_stream.draw()
    with job.supernet.gated([Path(j) for j in job.weight_gates()]):
        job.task.loss(whole(inputs), target).backward()  # type: ignore[no-untyped-call]
    job.weight_optimizer.zero_grad(set_to_none=True)


def _sent(steps: int, take: Callable[[], None], job: Search, element: int = 4) -> Sent:
    """element: bytes of a number that is sent (float32 weights and int32 flags, float64 α)."""
    job.step = 0
    take()  # the first one makes buckets
    calls = sent = 0
    for job.step in range(1, steps + 1):
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            take()
        for event in profiler.events() or ():
            if event.name in ("gloo:all_reduce", "nccl:all_reduce"):
                calls += 1
                sent += element * sum(prod(shape) for shape in event.input_shapes)
    return calls / steps, sent / steps


def _show(rows: dict[str, Sent], title: str) -> None:
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("a step")
    for column in ("calls", "MB"):
        table.add_column(column, justify="right")
    for name, (calls, sent) in rows.items():
        table.add_row(name, f"{calls:.1f}", f"{sent / 1e6:.4g}")
    output().print(table)
    ours, usual = rows[OURS][1], rows[USUAL][1]
    print(f"a weight step sends {usual / ours:.1f} times less than the whole supernet would")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="mobile")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--estimator", default="two_path")
    return parser.parse_args()


if __name__ == "__main__":
    main()
