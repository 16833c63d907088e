"""Is a network that is specialised to a runtime the best one there? The paper's cross table.

    python benchmarks/specialisation.py [--size 96] [--limit 0.6] [--networks 16]
        [--runtimes onnxruntime litert openvino:bf16] [--tables DIR] [--alpha FILE.safetensors]

For every runtime a latency table of the ImageNet space is measured (kept in --tables, so that
the same command goes on after a break), and one network is decoded exactly under the same
relative limit: --limit of that runtime's largest network. Then every network is measured on
every runtime. Five to fifteen minutes on one core, most of them LiteRT's conversions.
openvino:bf16 is openvino in float32 where the processor does not compute in bfloat16.

What a network is worth comes from one score for all runtimes: the probabilities of a search
(--alpha: a checkpoint with the tensor `alpha`), or without one a stand-in for accuracy, Σ over
blocks of log(1 + MACs of the block), which says only: more computation is better, with
diminishing returns. A network is right for its runtime if no other one that keeps the limit
there is worth more. Being the fastest there is more than that: a network that is worth less
may be faster, and the verdict says so. Exit code 1: one is not right for its runtime.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from proxylessnas.config import MeasureSettings
from proxylessnas.errors import MeasurementError, UserError
from proxylessnas.hardware.cost import latency_cost, macs_cost
from proxylessnas.hardware.measure import canary_of, measure_networks, measure_table
from proxylessnas.hardware.protocol import disturbance
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.trace import Trace, trace
from proxylessnas.objective import Prices, decode
from proxylessnas.progress import Reporter, duration
from proxylessnas.spaces import build_supernet
from proxylessnas.supernet import Supernet, softmax

Indices = tuple[int, ...]
SLACK = 1.03  # over the limit that is measurement noise


def main() -> int:
    args, start = _arguments(), time.monotonic()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    console = Console(highlight=False)
    args.runtimes = [_available(name, console) for name in args.runtimes]
    supernet = build_supernet("mobile", {"input_shape": [3, args.size, args.size]})
    inputs = (torch.randn(1, 3, args.size, args.size),)
    found = trace(supernet, inputs)
    worth = _worth(supernet, found, args.alpha)
    settings = MeasureSettings(networks=args.networks)
    tables, chosen, limits = {}, {}, {}
    for name in args.runtimes:
        runtime = make(name)
        path = args.tables / f"mobile{args.size}_{name.replace(':', '_')}.json"
        with Reporter().bar(f"measuring on {name}") as update:
            tables[name] = measure_table(
                supernet, runtime, inputs, settings, seed=0, path=path, progress=update
            )
        chosen[name], limits[name] = _decoded(supernet, found, tables[name], worth, args.limit)
        console.print(f"[bold]{name}[/]: {_drawn(supernet, chosen[name])}")
        if words := disturbance(tables[name].entries.values()):
            console.print(f"  while it was measured {words}")
    measured = {
        name: _measured(name, chosen, supernet, inputs, settings, tables[name])
        for name in args.runtimes
    }
    value = {name: _sum(worth, indices) for name, indices in chosen.items()}
    console.print(_cross_table(args.runtimes, measured, value, limits))
    verdicts = [_verdict(name, measured[name], value, limits[name]) for name in args.runtimes]
    for _, text in verdicts:
        console.print(text)
    console.print(_kernels(supernet, chosen))
    console.print(f"took {duration(time.monotonic() - start)}")
    return 0 if all(right for right, _ in verdicts) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--limit", type=float, default=0.6, help="of the largest network")
    parser.add_argument("--networks", type=int, default=16, help="to fit the cost model")
    runtimes = ["onnxruntime", "litert", "openvino:bf16"]
    parser.add_argument("--runtimes", nargs="+", default=runtimes)
    parser.add_argument("--tables", type=Path, default=Path("runs/specialisation"))
    parser.add_argument("--alpha", type=Path, default=None)
    args = parser.parse_args()
    args.tables.mkdir(parents=True, exist_ok=True)
    return args


def _available(name: str, console: Console) -> str:
    """The runtime, or OpenVINO in float32 where this processor has no bfloat16."""
    try:
        make(name)
    except MeasurementError as error:
        if name != "openvino:bf16":
            raise
        console.print(f"{error}; measured in f32 instead")
        return "openvino"
    return name


def _worth(supernet: Supernet, found: Trace, alpha: Path | None) -> Tensor:
    """[mixed operations, candidates]: log probabilities, or a stand-in for accuracy."""
    if alpha is not None:
        tensors = load_file(alpha)
        if "alpha" not in tensors or tensors["alpha"].shape != supernet.mask.shape:
            raise UserError(f"{alpha} has no tensor `alpha` of this space")
        return softmax(tensors["alpha"].double(), supernet.mask).clamp_min(1e-12).log()
    macs = macs_cost(supernet, found).per_candidate
    return torch.log1p(macs / macs[macs > 0].min())


def _decoded(
    supernet: Supernet, found: Trace, table: LatencyTable, worth: Tensor, share: float
) -> tuple[Indices, float]:
    """The network of the most worth under the limit, and the limit in ms."""
    cost = latency_cost(supernet, found, table)
    limit = share * cost.range(supernet.mask)[1]
    prices = Prices(
        names=("latency",),
        units=("ms",),
        per_candidate=cost.per_candidate[None],
        fixed=torch.tensor([cost.fixed], dtype=torch.float64),
        limits=torch.tensor([limit], dtype=torch.float64),
    )
    return next(islice(decode(worth, supernet.mask, prices), 1)), limit


def _measured(
    name: str,
    chosen: dict[str, Indices],
    supernet: Supernet,
    inputs: tuple[Tensor, ...],
    settings: MeasureSettings,
    table: LatencyTable,
) -> dict[str, float]:
    """Network -> ms on one runtime, corrected by the canary's drift since the table."""
    report = measure_networks(
        {of: supernet.derive(indices).eval() for of, indices in chosen.items()},
        make(name),
        inputs,
        replace(settings, network_rounds=30),
        table=table,
        canary=canary_of(supernet, table),
        seed=1,
    )
    return {of: result.corrected_ms for of, result in report.networks.items()}


def _cross_table(
    runtimes: Sequence[str],
    measured: dict[str, dict[str, float]],
    value: dict[str, float],
    limits: dict[str, float],
) -> Table:
    table = Table(title="latency in ms; a row is a network, a column a runtime")
    table.add_column("specialised for")
    table.add_column("worth", justify="right")
    for name in runtimes:
        table.add_column(f"{name}\n(limit {limits[name]:.3f})", justify="right")
    for of in runtimes:
        cells = []
        for name in runtimes:
            ms = measured[name][of]
            text = f"{ms:.3f}" + ("" if ms <= limits[name] * SLACK else " over")
            cells.append(f"[bold]{text}[/]" if of == name else text)
        table.add_row(of, f"{value[of]:.1f}", *cells)
    return table


def _verdict(
    name: str, measured: dict[str, float], value: dict[str, float], limit: float
) -> tuple[bool, str]:
    """Whether the runtime's own network is the best of those that keep the limit there."""
    keeping = [of for of, ms in measured.items() if ms <= limit * SLACK]
    if name not in keeping:
        over = 100 * (measured[name] / limit - 1)
        return False, f"{name}: its own network misses the limit by {over:.1f} %"
    better = [of for of in keeping if value[of] > value[name] + 1e-9]
    if better:
        others = ", ".join(f"{of} ({measured[of]:.3f} ms)" for of in better)
        return False, f"{name}: worth more within the limit: {others}"
    over = [of for of in measured if of not in keeping]
    less = [of for of in measured if value[of] < value[name] - 1e-9]
    faster = [of for of in less if measured[of] < measured[name]]
    why = [
        f"{of}'s is {100 * (1 - measured[of] / measured[name]):.1f} % faster, "
        f"but worth {value[name] - value[of]:.1f} less"
        for of in faster
    ]
    return True, (
        f"{name}: its own network is the best within its limit"
        + (f"; over the limit: {', '.join(over)}" if over else "")
        + ("; " + "; ".join(why) if why else ", and the fastest of all")
    )


def _drawn(supernet: Supernet, indices: Indices) -> str:
    names = [c[i] for c, i in zip(supernet.candidates, indices, strict=True)]
    return " ".join("-" if n == "zero" else n.replace("k", "").replace("_e", "x") for n in names)


def _kernels(supernet: Supernet, chosen: dict[str, Indices]) -> str:
    lines = []
    for of, indices in chosen.items():
        names = [c[i] for c, i in zip(supernet.candidates, indices, strict=True)]
        counts = {k: sum(n.startswith(k) for n in names) for k in ("k3", "k5", "k7", "zero")}
        lines.append(f"{of}: " + ", ".join(f"{n} x {k}" for k, n in counts.items()))
    return "blocks by kernel\n" + "\n".join(lines)


def _sum(worth: Tensor, indices: Indices) -> float:
    return float(worth[torch.arange(len(indices)), torch.tensor(indices)].sum())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
