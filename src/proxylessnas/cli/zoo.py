"""The verb `zoo`: the published networks as a table, one built or drawn, several measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from proxylessnas.cli.latencies import How, show_latencies
from proxylessnas.config import MeasureSettings
from proxylessnas.errors import ConfigError
from proxylessnas.export.write import export_network
from proxylessnas.hardware.runtimes import split
from proxylessnas.io.console import Reporter, output, say, table_of
from proxylessnas.io.files import write_atomic
from proxylessnas.report.draw import draw
from proxylessnas.report.latencies import NamedNetwork, default_runtime, named_network
from proxylessnas.spaces import build
from proxylessnas.zoo import Published, facts, list_networks, load, load_published_weights

SPECIALISED = ("proxyless_gpu", "proxyless_cpu", "proxyless_mobile")
OF_ONE = ("build", "draw", "export", "weights")  # options that take one network


def main(options: Any) -> None:
    """List all networks, or do with one what the options say; several can be measured."""
    if not options.name and not options.measure:
        _list()
    elif len(options.name) == 1:
        _with_one(options, options.name[0])
    else:
        for name in OF_ONE:
            if getattr(options, name):
                raise ConfigError(f"--{name} is for one network; name it: proxylessnas zoo NAME")
        if not options.measure:
            raise ConfigError("several networks can only be measured: add --measure, or name one")
        names = options.name or SPECIALISED
        _measure(options, [named_network(facts(name).name) for name in names])


def _list() -> None:
    table = table_of("network", ("parameters", "MACs", "top-1 %", "GPU", "CPU", "mobile"))
    for network in list_networks():
        latencies = [network.latency_ms.get(device) for device in ("gpu", "cpu", "mobile")]
        table.add_row(
            network.name,
            f"{network.parameters / 1e6:.2f} M",
            f"{network.macs / 1e6:,.1f} M",
            "-" if network.top1 is None else f"{network.top1:.1f}",
            *("-" if ms is None else f"{ms:g} ms" for ms in latencies),
        )
    output().print(table)
    for source in dict.fromkeys(network.source for network in list_networks()):
        say(f"source: {source}")
    say("next: proxylessnas zoo NAME --build, --export FILE, --draw FILE, --measure")


def _with_one(options: Any, name: str) -> None:
    published, architecture = facts(name), load(name)
    _check_weights(options, published)
    network = build(architecture).eval()
    if options.weights:
        load_published_weights(network, options.weights)
    if options.draw:
        write_atomic(Path(options.draw), draw(architecture).encode())
        say(f"{options.draw}: {published.name}")
    if options.export:
        example = (torch.randn(options.batch, *published.input_shape),)
        difference = export_network(architecture, network, example, options.export)
        say(f"{options.export}: differs from eager by {difference.relative:.1e} at most")
    if options.measure:
        shape = published.input_shape
        _measure(options, [NamedNetwork(name=name, network=network, input_shape=shape)])
    if options.build or not (options.draw or options.export or options.measure):
        say(str(network))
        say(f"{published.name}: {published.parameters:,} parameters, {published.macs:,} MACs")


def _check_weights(options: Any, published: Published) -> None:
    """Raises ConfigError where a file would hold random weights unsaid, beside a published name."""
    if options.random_weights and (options.weights or not options.export):
        raise ConfigError("--random-weights goes with --export alone, in place of --weights")
    if options.export and not (options.weights or options.random_weights):
        accuracy = "" if published.top1 is None else f", with which it has {published.top1:.1f} %"
        raise ConfigError(
            f"--export {options.export}: the weights of {published.name} are not here: give the "
            f"authors' by --weights FILE{accuracy}, or say --random-weights"
        )


def _measure(options: Any, networks: list[NamedNetwork]) -> None:
    settings = MeasureSettings(batch=options.batch, threads=options.threads)
    runtimes = split(options.runtime) or [default_runtime(networks)]
    show_latencies(networks, How(runtimes=runtimes, settings=[settings], reporter=Reporter()))
