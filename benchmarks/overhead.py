"""What the tool itself costs, besides the model: loop, data, decode, tables, start-up.

    python benchmarks/overhead.py [--data DATA] [--rounds 20]

loop: 21 mixed operations of near-empty candidates, search steps beside the plain model's step.
tree: the 648 mixed operations of the CIFAR-10 space, beside the plain network of one path.
decode: the most probable network within a limit, 648 operations of 7 candidates, exactly.
data: images a second of the training batches (augmented) beside those of a weight step of
`macro`; at 3 times as many the data are no bottleneck. table: every distinct candidate of the
ImageNet space at 224x224 measured on ONNX Runtime. start: a new process to its first step.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.table import Table
from step import make_search, plain_step
from torch import Tensor, nn

from proxylessnas.config import MeasureSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import decode
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import MixedOp, Supernet
from proxylessnas.data import load_data
from proxylessnas.hardware.measure import measure_table
from proxylessnas.hardware.runtimes import make
from proxylessnas.io.console import output
from proxylessnas.io.process import keep_freed_memory
from proxylessnas.spaces import build, build_supernet
from proxylessnas.training.device import Machine, fastest

FIRST_STEP = """
import torch
from step import make_search
from proxylessnas.training.device import Machine
from proxylessnas.spaces import build_supernet
batch = torch.randn(2, 3, 32, 32), torch.arange(2)
make_search(build_supernet("macro", {}), batch, Machine()).weight_step()
"""
HELP = (
    "import sys; sys.argv = ['proxylessnas', '--help']\n"
    "from proxylessnas.cli.main import main\nmain()"
)


class Scale(nn.Module):
    """Almost nothing, with a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def in_turn(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, interleaved."""
    return {name: 1e3 * s for name, s in fastest(steps, rounds=rounds).items()}


def search_steps(search: Search) -> dict[str, Callable[[], object]]:
    def weight() -> None:
        search.weight_step()
        search.step += 1

    return {"weight": weight, "two_path": search.architecture_step}


def loop(rounds: int) -> list[tuple[str, str]]:
    batch = torch.randn(4, 10), torch.arange(4)
    mixed = [MixedOp([Scale() for _ in range(7)]) for _ in range(21)]
    supernet = Supernet(nn.Sequential(*mixed))
    plain = plain_step(nn.Sequential(*[Scale() for _ in range(21)]), batch)
    ms = in_turn({"plain": plain, **search_steps(make_search(supernet, batch, Machine()))}, rounds)
    return [
        (
            f"loop, 21 mixed operations: {kind} step over the plain step",
            f"{ms[kind] - ms['plain']:.1f} ms",
        )
        for kind in ("weight", "two_path")
    ]


def tree(rounds: int) -> list[tuple[str, str]]:
    batch = torch.randn(8, 3, 32, 32), torch.arange(8)
    supernet = build_supernet("tree", {})
    network = build(supernet.architecture([0] * len(supernet.names)))
    search = make_search(supernet, batch, Machine())
    search.weight_gates = lambda: [0] * len(supernet.names)  # type: ignore[method-assign]
    ms = in_turn({"plain": plain_step(network, batch), **search_steps(search)}, rounds)
    return [
        ("tree, 648 mixed operations, batch 8: plain step of one path", f"{ms['plain']:.0f} ms"),
        ("  weight step of the same path", f"{ms['weight']:.0f} ms"),
        ("  two-path step of random pairs", f"{ms['two_path']:.0f} ms"),
    ]


def decoding(rounds: int) -> list[tuple[str, str]]:
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(648, 7, generator=generator).double()
    costs = Costs.one("latency", cost, limit=0.35 * 648, unit="ms")
    log_p = torch.log_softmax(torch.randn(648, 7, generator=generator).double(), 1)
    mask = torch.ones(648, 7, dtype=torch.bool)
    ms = in_turn({"decode": lambda: next(decode(log_p, mask, costs))}, min(rounds, 5))
    return [("decode within a limit, 648 x 7, exact", f"{ms['decode']:.0f} ms")]


def data(spec: str, rounds: int) -> list[tuple[str, str]]:
    images = load_data(spec)
    batches = images.batches("train", 64, augment=True, shuffle=True)
    settings = {"input_shape": list(images.info.shape), "classes": len(images.info.classes)}
    stream = iter(batches.epoch(0))
    batch = next(stream)
    machine = Machine(channels_last=True)
    search = make_search(build_supernet("macro", settings), batch, machine)
    ms = in_turn({"batch": lambda: next(stream), **search_steps(search)}, rounds)
    ratio = ms["weight"] / ms["batch"]
    return [
        (
            f"data, {images.summary.source} in batches of 64: images a second",
            f"{64e3 / ms['batch']:.0f}",
        ),
        ("  beside the weight step of macro", f"{ratio:.0f} times its rate"),
    ]


def table() -> list[tuple[str, str]]:
    supernet = build_supernet("mobile", {})
    inputs = (torch.randn(1, 3, 224, 224),)
    rows = []
    for text, settings in (
        (
            "one round of every candidate and 3 networks",
            MeasureSettings(networks=3, rounds=1, network_rounds=1),
        ),
        ("as usual, with 10 networks", MeasureSettings()),
    ):
        start = time.perf_counter()
        measure_table(supernet, make("onnxruntime"), inputs, settings, seed=0)
        rows.append(
            (
                f"table of the ImageNet space at 224x224: {text}",
                f"{time.perf_counter() - start:.0f} s",
            )
        )
    return rows


def start() -> list[tuple[str, str]]:
    rows = []
    for text, program in (
        ("--help", HELP),
        ("a new process to the first weight step of `macro`", FIRST_STEP),
    ):
        begun = time.perf_counter()
        here = Path(__file__).parent
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=here)
        rows.append((f"start-up: {text}", f"{time.perf_counter() - begun:.2f} s"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="mnist5k", help="a data set, such as a folder of images")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--no-table", action="store_true", help="leave out the latency table")
    args = parser.parse_args()
    torch.set_num_threads(2)
    keep_freed_memory()
    shown = Table("what", "measured", title="What the tool itself costs")
    rows: list[Sequence[tuple[str, str]]] = [
        start(),
        loop(args.rounds),
        tree(max(3, args.rounds // 4)),
        decoding(args.rounds),
        data(args.data, args.rounds),
    ]
    if not args.no_table:
        rows.append(table())
    for what, measured in (pair for part in rows for pair in part):
        shown.add_row(what, measured)
    output().print(shown)


if __name__ == "__main__":
    main()
