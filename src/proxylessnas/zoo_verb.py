"""The verb `zoo`: the published networks as a table, and one of them built, drawn, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from . import export
from .architecture import Architecture
from .config import MeasureSettings
from .emit import to_python
from .errors import ConfigError
from .hardware.measure import measure_networks
from .hardware.runtimes import make
from .report.draw import draw
from .runs import write_atomic
from .spaces import build
from .zoo import facts, list_networks, load, load_published_weights


def zoo(options: Any) -> None:
    """List all networks, or do with one what the options say."""
    console = Console()
    if options.name is None:
        _list(console)
        return
    published = facts(options.name)
    architecture = load(options.name)
    network = build(architecture).eval()
    if options.weights:
        load_published_weights(network, options.weights)
    example = (torch.randn(options.batch, *published.input_shape),)
    if options.draw:
        write_atomic(Path(options.draw), draw(architecture).encode())
        console.print(f"{options.draw}: {published.name}", highlight=False)
    if options.export:
        _export(console, options.export, architecture, network, example)
    if options.measure:
        _measure(console, options, network, example)
    if options.build or not (options.draw or options.export or options.measure):
        console.print(network, markup=False, highlight=False)
        console.print(
            f"{published.name}: {published.parameters:,} parameters, {published.macs:,} MACs",
            highlight=False,
        )


def _list(console: Console) -> None:
    table = Table(box=None)
    table.add_column("network", no_wrap=True)
    for column in ("parameters", "MACs", "top-1 %", "GPU", "CPU", "mobile"):
        table.add_column(column, justify="right", no_wrap=True)
    for network in list_networks():
        latencies = [network.latency_ms.get(device) for device in ("gpu", "cpu", "mobile")]
        table.add_row(
            network.name,
            f"{network.parameters / 1e6:.2f} M",
            f"{network.macs / 1e6:,.1f} M",
            "-" if network.top1 is None else f"{network.top1:.1f}",
            *("-" if ms is None else f"{ms:g} ms" for ms in latencies),
        )
    console.print(table)
    for source in dict.fromkeys(network.source for network in list_networks()):
        console.print(f"source: {source}", highlight=False, markup=False)
    console.print("next: proxylessnas zoo NAME --build, --export FILE, --draw FILE, --measure")


def _export(
    console: Console,
    path: str,
    architecture: Architecture,
    network: nn.Module,
    example: tuple[torch.Tensor, ...],
) -> None:
    suffix = Path(path).suffix
    if suffix == ".onnx":
        content = export.to_onnx(network, example, path)
        difference = export.compare(network, content, example)
    elif suffix == ".pt2":
        difference = export.to_torch_export(network, example, path)
    elif suffix in ("", ".py"):
        difference = to_python(architecture, network, path)
    else:
        raise ConfigError(f"--export {path}: the name must end in .onnx or .pt2, or be a folder")
    console.print(f"{path}: differs from eager by {difference.relative:.1e} at most")


def _measure(
    console: Console, options: Any, network: nn.Module, example: tuple[torch.Tensor, ...]
) -> None:
    runtime = make(options.runtime)
    report = measure_networks(
        {options.name: network}, runtime, example, MeasureSettings(network_rounds=10), seed=0
    )
    result = report[options.name]
    device = runtime.describe()
    console.print(
        f"{options.name}: {result.raw_ms:.3f} ms on {device['runtime']} {device['version']}, "
        f"{device['device']}, batch {options.batch} (noise {result.noise_pct:.1f} %)",
        highlight=False,
    )
