"""Networks' latencies now, on one runtime or several: the published ones, files, a run's."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from proxylessnas import zoo
from proxylessnas.architecture import Architecture
from proxylessnas.config import MeasureSettings
from proxylessnas.errors import ArchitectureError, did_you_mean
from proxylessnas.hardware.measure import NetworkResult, measure_networks
from proxylessnas.hardware.runtimes import Runtime, make
from proxylessnas.hardware.timing import disturbance
from proxylessnas.io.console import Reporter
from proxylessnas.spaces import build

FILES = (".onnx", ".tflite")
DEFAULT = "onnxruntime"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured. input_shape: [channels, height, width]; empty where the file says it."""

    name: str
    network: nn.Module | Path
    input_shape: tuple[int, ...] = ()


def is_network(word: str) -> bool:
    """Whether a word of the command line is a network and no run directory."""
    path = Path(word)
    return not path.is_dir() and (path.suffix in (".json", *FILES) or word in zoo.NETWORKS)


def subject(word: str, *, allow: Collection[str] = ()) -> Subject:
    """A network by what it is called: architecture.json, a zoo name, an .onnx or .tflite file.

    allow: `module:factory` names that an architecture may name.

    Raises:
        ArchitectureError: it is none of these, or does not say its input's shape.
    """
    if Path(word).suffix in FILES:
        return Subject(name=word, network=Path(word))
    if word in zoo.NETWORKS:
        architecture = zoo.load(word)
    elif Path(word).suffix == ".json":
        architecture = Architecture.load(word)
    else:
        raise ArchitectureError(
            f"{word!r} is neither a run directory nor a network (an architecture.json, an .onnx "
            f"or .tflite file, or one of the zoo: {did_you_mean(word, zoo.NETWORKS)})"
        )
    if architecture.input is not None:
        shape = architecture.input.shape
    else:
        shape = tuple(architecture.settings.get("input_shape", ()))
    if not shape:
        raise ArchitectureError(f"{word} does not say its input's shape (input.shape)")
    network = build(architecture, allow=allow).eval()
    return Subject(name=word, network=network, input_shape=shape)


def show_latencies(
    subjects: Sequence[Subject],
    runtimes: Sequence[str],
    settings: MeasureSettings,
    console: Console,
    reporter: Reporter,
    *,
    seed: int = 0,
) -> None:
    """Measure every network on every runtime and print a table: a row a network.

    runtimes: by name; without any, LiteRT where all are its files, else ONNX Runtime.

    Raises:
        MeasurementError, MissingDependency: a network cannot run on a runtime, or that is not
            installed; all runtimes are asked before anything is measured.
    """
    tflite = all(isinstance(s.network, Path) and s.network.suffix == ".tflite" for s in subjects)
    runtimes = list(runtimes) or ["litert" if tflite else DEFAULT]
    made = [make(name, threads=settings.threads) for name in runtimes]
    found: dict[str, dict[str, NetworkResult]] = {}
    for runtime in made:
        with reporter.bar(f"measuring on {runtime.name}") as update:
            found[runtime.name] = {}
            for group in _of_one_shape(subjects):
                shape = (settings.batch, *group[0].input_shape)
                report = measure_networks(
                    {s.name: s.network for s in group},
                    runtime,
                    (torch.randn(shape, generator=torch.Generator().manual_seed(0)),),
                    settings,
                    progress=update,
                    seed=seed,
                )
                found[runtime.name] |= report.networks
    console.print(_table(subjects, found))
    for line in _notes(made, settings, found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def in_words(device: Mapping[str, object]) -> str:
    """The device that latencies belong to."""
    threads = device.get("threads")
    return (
        f"{device.get('runtime')} {device.get('version')}, {device.get('precision')}, {threads} "
        f"thread{'s' if threads != 1 else ''}, batch {device.get('batch')}, {device.get('device')}"
    )


def _of_one_shape(subjects: Sequence[Subject]) -> Iterator[list[Subject]]:
    """Networks that are measured in the same rounds: fed alike. Files feed themselves."""
    shapes = list(dict.fromkeys(s.input_shape for s in subjects))
    for shape in shapes:
        yield [s for s in subjects if s.input_shape == shape]


def _table(subjects: Sequence[Subject], found: Mapping[str, Mapping[str, NetworkResult]]) -> Table:
    table = Table(box=None)
    table.add_column("network", no_wrap=True)
    for runtime in found:
        table.add_column(runtime, justify="right", no_wrap=True)
    for s in subjects:
        cells = [results[s.name] for results in found.values()]
        table.add_row(s.name, *(f"{r.raw_ms:.3f} ms ±{r.noise_pct:.1f} %" for r in cells))
    return table


def _notes(
    runtimes: Sequence[Runtime],
    settings: MeasureSettings,
    found: Mapping[str, Mapping[str, NetworkResult]],
) -> Iterator[str]:
    for runtime in runtimes:
        yield in_words({**runtime.describe(), "batch": settings.batch})
    raw = [result.raw for results in found.values() for result in results.values()]
    if words := disturbance(raw):
        yield f"meanwhile {words}: measure again when the machine is at rest"
