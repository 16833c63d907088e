"""Is a network that is specialised to a runtime the best one there? The paper's cross table.

    python benchmarks/specialisation.py [--size 96] [--limit 1.0] [--networks 16]
        [--runtimes onnxruntime litert openvino:bf16] [--tables DIR] [--alpha FILE.safetensors]

For every runtime a latency table of the ImageNet space is measured (kept in --tables, so that
the same command goes on after a break), and a network is derived as `proxylessnas derive`
does it (decoded exactly, measured, corrected) under the same relative limit: --limit of what a
network like MobileNetV2 takes on that runtime. (A share of the largest network would be no like
for like: where kernel 7 is slow, half of a network of kernel 7 is a lot.) Then every network is
measured on every runtime. Five to fifteen minutes on one core, most of them LiteRT's
conversions. openvino:bf16 is openvino in float32 where the processor does not compute in
bfloat16.

What a network is worth comes from one score for all runtimes: the probabilities of a search
(--alpha: a checkpoint with the tensor `alpha`), or without one a stand-in for accuracy, Σ over
blocks of log(1 + MACs of the block), which says only: more computation is better, with
diminishing returns. The first table's networks have the same limit: a network is right for its
runtime if no other one that keeps the limit there is worth more (by a percent or two of latency
that is the noise of two measurements). The second table's are worth the same, as the paper's
have the same accuracy: each should be the fastest on its runtime. Exit code 1: one is not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from proxylessnas.config import DeriveSettings, MeasureSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import decode
from proxylessnas.core.supernet import Supernet, softmax
from proxylessnas.errors import MeasurementError, UserError
from proxylessnas.hardware.costs import count_costs, latency_costs
from proxylessnas.hardware.measure import measure_table
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.timing import disturbance
from proxylessnas.hardware.trace import Trace, trace
from proxylessnas.hardware.whole_networks import NetworkReport, canary_of, measure_networks
from proxylessnas.io.console import Reporter, duration, output
from proxylessnas.selection.choose import choose
from proxylessnas.session.measuring import mobilenet_v2_like
from proxylessnas.spaces import build_supernet

Indices = tuple[int, ...]
SLACK = 1.03  # over the limit that is measurement noise


@dataclass(frozen=True)
class Space:
    """The ImageNet space at one size, and what each candidate is worth."""

    supernet: Supernet
    inputs: tuple[Tensor, ...]
    found: Trace
    worth: Tensor

    def like_mobilenet_v2(self) -> Indices:
        like = mobilenet_v2_like(self.supernet)
        assert like is not None
        return like

    def value(self, indices: Indices) -> float:
        return float(self.worth[torch.arange(len(indices)), torch.tensor(indices)].sum())

    def drawn(self, indices: Indices) -> str:
        names = [c[i] for c, i in zip(self.supernet.candidates, indices, strict=True)]
        short = [n.replace("k", "").replace("_e", "x") for n in names]
        return " ".join("-" if n == "zero" else n for n in short)


@dataclass(frozen=True)
class Device:
    """One runtime, with its table and the cost model from it."""

    name: str
    space: Space
    settings: MeasureSettings
    table: LatencyTable
    costs: Costs
    limit: float  # ms

    def measure(self, networks: Mapping[str, Indices]) -> NetworkReport:
        """With the canary's drift since the table taken out."""
        supernet = self.space.supernet
        return measure_networks(
            {of: supernet.derive(indices).eval() for of, indices in networks.items()},
            make(self.name),
            self.space.inputs,
            replace(self.settings, network_rounds=30),
            canary=canary_of(supernet, self.table, self.costs.space),
            seed=1,
        )

    def within_limit(self) -> Indices:
        """The network of the most worth under the limit: decoded, measured, corrected."""
        supernet, worth = self.space.supernet, self.space.worth
        costs = self.costs.limited({"latency": self.limit})
        with torch.no_grad():
            supernet.alpha.copy_(worth)

        def measured(networks: Sequence[Indices]) -> list[tuple[float, float]]:
            report = self.measure({str(i): indices for i, indices in enumerate(networks)})
            return [result.value for result in report.networks.values()]

        choice = choose(
            supernet,
            costs,
            DeriveSettings(top_k=3, measure_best=3),
            score=lambda indices: (self.space.value(indices), ()),
            measure=measured,
        )
        return choice.chosen.indices

    def fastest(self, least: float) -> Indices:
        """The fastest network by the table that is worth so much at least."""
        costs = Costs.one("worth", -self.space.worth, fixed=0.0, limit=-least)
        return next(decode(-self.costs.per_candidate[0], self.space.supernet.mask, costs))


def main() -> int:
    args, start = _arguments(), time.monotonic()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    console = output()
    space = _space(args)
    devices = [_device(name, space, args) for name in args.runtimes]
    for device in devices:
        if words := disturbance(device.table.entries.values()):
            console.print(f"while {device.name} was measured {words}")
    least = space.value(space.like_mobilenet_v2())
    best = {device.name: device.within_limit() for device in devices}
    fast = {device.name: device.fastest(least) for device in devices}
    ms = [device.measure(_both(best, fast)) for device in devices]
    right = []
    for kind, chosen in (("best", best), ("fast", fast)):
        title = {
            "best": "of the most worth that one like MobileNetV2's time allows",
            "fast": f"as fast as can be, worth {least:.1f} as one like MobileNetV2",
        }[kind]
        measured = {
            device.name: {of: report[f"{kind} {of}"].corrected_ms for of in chosen}
            for device, report in zip(devices, ms, strict=True)
        }
        value = {of: space.value(indices) for of, indices in chosen.items()}
        console.print(_cross_table(title, devices, measured, value))
        for device, report in zip(devices, ms, strict=True):
            judge = _best_within if kind == "best" else _fastest_of_all
            good, text = judge(device, measured[device.name], value)
            noise = max(result.noise_pct for result in report.networks.values())
            text += f" (noise {noise:.1f} %)"
            console.print(text)
            right.append(good or kind == "best")
        for of, indices in chosen.items():
            console.print(f"{of}: {space.drawn(indices)}; {_kernels(space.supernet, indices)}")
        console.print()
    console.print(f"took {duration(time.monotonic() - start)}")
    return 0 if all(right) else 1


def _space(args: argparse.Namespace) -> Space:
    supernet = build_supernet("mobile", {"input_shape": [3, args.size, args.size]})
    inputs = (torch.randn(1, 3, args.size, args.size),)
    found = trace(supernet, inputs)
    return Space(supernet, inputs, found, _worth(supernet, found, args.alpha))


def _device(name: str, space: Space, args: argparse.Namespace) -> Device:
    """With its table, measured now or gone on with."""
    name = _available(name)
    settings = MeasureSettings(networks=args.networks)
    path = args.tables / f"mobile{args.size}_{name.replace(':', '_')}.json"
    with Reporter().bar(f"measuring on {name}") as update:
        table = measure_table(
            space.supernet,
            make(name),
            space.inputs,
            settings,
            seed=0,
            path=path,
            progress=update,
        )
    costs = latency_costs(space.supernet, space.found, table)
    limit = args.limit * costs.cost_of("latency", space.like_mobilenet_v2())
    return Device(name, space, settings, table, costs, limit)


def _both(best: dict[str, Indices], fast: dict[str, Indices]) -> dict[str, Indices]:
    return {f"{kind} {of}": c[of] for kind, c in (("best", best), ("fast", fast)) for of in c}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--limit", type=float, default=1.0, help="of one like MobileNetV2")
    parser.add_argument("--networks", type=int, default=16, help="to fit the cost model")
    runtimes = ["onnxruntime", "litert", "openvino:bf16"]
    parser.add_argument("--runtimes", nargs="+", default=runtimes)
    parser.add_argument("--tables", type=Path, default=Path("runs/specialisation"))
    parser.add_argument("--alpha", type=Path, default=None)
    args = parser.parse_args()
    args.tables.mkdir(parents=True, exist_ok=True)
    return args


def _available(name: str) -> str:
    """The runtime, or OpenVINO in float32 where this processor has no bfloat16."""
    try:
        make(name)
    except MeasurementError as error:
        if name != "openvino:bf16":
            raise
        Reporter().say(f"{error}; measured in f32 instead")
        return "openvino"
    return name


def _worth(supernet: Supernet, found: Trace, alpha: Path | None) -> Tensor:
    """[mixed operations, candidates]: log probabilities, or a stand-in for accuracy."""
    if alpha is not None:
        tensors = load_file(alpha)
        if "alpha" not in tensors or tensors["alpha"].shape != supernet.mask.shape:
            raise UserError(f"{alpha} has no tensor `alpha` of this space")
        return softmax(tensors["alpha"].double(), supernet.mask).clamp_min(1e-12).log()
    macs = count_costs(supernet, found).per_candidate[0]
    return torch.log1p(macs / macs[macs > 0].min())


def _cross_table(
    title: str,
    devices: Sequence[Device],
    measured: dict[str, dict[str, float]],
    value: dict[str, float],
) -> Table:
    table = Table(title=f"latency in ms, row by network, column by runtime: networks {title}")
    table.add_column("specialised for")
    table.add_column("worth", justify="right")
    for device in devices:
        table.add_column(f"{device.name}\n(limit {device.limit:.3f})", justify="right")
    for of in value:
        cells = []
        for device in devices:
            text = f"{measured[device.name][of]:.3f}"
            cells.append(f"[bold]{text}[/]" if of == device.name else text)
        table.add_row(of, f"{value[of]:.1f}", *cells)
    return table


def _best_within(
    device: Device, measured: dict[str, float], value: dict[str, float]
) -> tuple[bool, str]:
    """Whether the runtime's own network is worth most of those that keep the limit there."""
    name = device.name
    keeping = [of for of, ms in measured.items() if ms <= device.limit * SLACK]
    if name not in keeping:
        excess = 100 * (measured[name] / device.limit - 1)
        return False, f"{name}: its own network misses the limit by {excess:.1f} %"
    better = [of for of in keeping if value[of] > value[name] + 1e-9]
    if better:
        others = ", ".join(
            f"{of}'s ({measured[of]:.3f} ms, {value[of] - value[name]:+.1f})" for of in better
        )
        return False, f"{name}: worth more within the limit than its own: {others}"
    over = [of for of in measured if of not in keeping]
    why = [
        f"{of}'s is {100 * (1 - measured[of] / measured[name]):.1f} % faster, "
        f"but worth {value[name] - value[of]:.1f} less"
        for of in measured
        if value[of] < value[name] - 1e-9 and measured[of] < measured[name]
    ]
    return True, (
        f"{name}: its own network is worth most within its limit"
        + (f"; over the limit: {', '.join(over)}" if over else "")
        + ("; " + "; ".join(why) if why else ", and the fastest of all")
    )


def _fastest_of_all(
    device: Device, measured: dict[str, float], value: dict[str, float]
) -> tuple[bool, str]:
    """Whether the runtime's own network is the fastest there; all are worth alike."""
    name = device.name
    first = min(measured, key=lambda of: measured[of])
    if first == name:
        others = {of: ms for of, ms in measured.items() if of != name}
        second = min(others, key=lambda of: others[of]) if others else name
        ahead = 100 * (measured[second] / measured[name] - 1)
        return True, f"{name}: its own network is the fastest, {second}'s takes {ahead:.1f} % more"
    behind = 100 * (measured[name] / measured[first] - 1)
    return behind <= 100 * (SLACK - 1), (
        f"{name}: {first}'s network is faster, its own takes {behind:.1f} % more "
        f"(and is worth {value[name] - value[first]:+.2f})"
    )


def _kernels(supernet: Supernet, indices: Indices) -> str:
    names = [c[i] for c, i in zip(supernet.candidates, indices, strict=True)]
    counts = {k: sum(n.startswith(k) for n in names) for k in ("k3", "k5", "k7", "zero")}
    return ", ".join(f"{n} x {k}" for k, n in counts.items())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
