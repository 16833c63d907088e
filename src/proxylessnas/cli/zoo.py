"""The verb `zoo`: the published networks as a table, one built or drawn, several measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from proxylessnas.architecture import Architecture
from proxylessnas.cli.latencies import Subject, show_latencies, subject
from proxylessnas.config import MeasureSettings
from proxylessnas.errors import ConfigError
from proxylessnas.export.onnx import compare, to_onnx
from proxylessnas.export.python import to_python
from proxylessnas.export.torch_export import to_torch_export
from proxylessnas.hardware.runtimes import split
from proxylessnas.io.console import Reporter, output
from proxylessnas.io.files import write_atomic
from proxylessnas.report.draw import draw
from proxylessnas.spaces import build
from proxylessnas.zoo import facts, list_networks, load, load_published_weights

SPECIALISED = ("proxyless_gpu", "proxyless_cpu", "proxyless_mobile")


def zoo(options: Any) -> None:
    """List all networks, or do with one what the options say; several can be measured."""
    console = output()
    if not options.name and not options.measure:
        _list(console)
        return
    if len(options.name) != 1:
        _measure_several(console, options)
        return
    (name,) = options.name
    published = facts(name)
    architecture = load(name)
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
        shape = published.input_shape
        _measure(console, options, [Subject(name=name, network=network, input_shape=shape)])
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
        content = to_onnx(network, example, path)
        difference = compare(network, content, example)
    elif suffix == ".pt2":
        difference = to_torch_export(network, example, path)
    elif suffix in ("", ".py"):
        difference = to_python(architecture, network, path)
    else:
        raise ConfigError(f"--export {path}: the name must end in .onnx or .pt2, or be a folder")
    console.print(f"{path}: differs from eager by {difference.relative:.1e} at most")


def _measure_several(console: Console, options: Any) -> None:
    for name in ("build", "draw", "export", "weights"):
        if getattr(options, name):
            raise ConfigError(f"--{name} is for one network; name it: proxylessnas zoo NAME")
    if not options.measure:
        raise ConfigError("several networks can only be measured: add --measure, or name one")
    _measure(console, options, [subject(facts(name).name) for name in options.name or SPECIALISED])


def _measure(console: Console, options: Any, subjects: list[Subject]) -> None:
    settings = MeasureSettings(batch=options.batch, threads=options.threads)
    show_latencies(subjects, split(options.runtime), settings, console, Reporter())
