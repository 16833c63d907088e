"""Networks' latencies now, by the names that users have for the networks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from torch import nn

from proxylessnas import zoo
from proxylessnas.architecture import Architecture
from proxylessnas.config import MeasureSettings
from proxylessnas.errors import ArchitectureError, did_you_mean
from proxylessnas.hardware.runtimes import DEFAULT, Runtime, make
from proxylessnas.hardware.space_table import noise
from proxylessnas.hardware.timing import ProgressCallback
from proxylessnas.hardware.whole_networks import NetworkResult, measure_networks
from proxylessnas.spaces import build

FILES = {".onnx": DEFAULT, ".tflite": "litert", ".pte": "executorch"}  # and what runs them
ARCHITECTURE = "architecture.json"  # of a run, the network that it found


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedNetwork:
    """A network to measure.

    network: a module, or an exported file. input_shape: [channels, height, width] of an example;
    empty for a file, which says its shape itself.
    """

    name: str
    network: nn.Module | Path
    input_shape: tuple[int, ...] = ()


def is_network(word: str, *, runs: bool = False) -> bool:
    """Whether a word of the command line is a network and no run directory.

    runs: a finished run is the network that it found.
    """
    path = Path(word)
    if runs and (path / ARCHITECTURE).is_file():
        return True
    return not path.is_dir() and (path.suffix.lower() in (".json", *FILES) or word in zoo.NETWORKS)


def named_network(word: str, *, allow: Collection[str] = ()) -> NamedNetwork:
    """The network of an architecture.json, a name of the zoo, a run, an .onnx or a .tflite file.

    allow: `module:factory` names that an architecture may name.

    Raises:
        ArchitectureError: the word is none of these, or the input's shape is not said.
    """
    if Path(word).suffix.lower() in FILES:
        return NamedNetwork(name=word, network=Path(word))
    if word in zoo.NETWORKS:
        architecture = zoo.load(word)
    elif Path(word).suffix == ".json":
        architecture = Architecture.load(word)
    elif (Path(word) / ARCHITECTURE).is_file():
        architecture = Architecture.load(Path(word) / ARCHITECTURE)
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
    return NamedNetwork(name=word, network=network, input_shape=shape)


def default_runtime(networks: Sequence[NamedNetwork]) -> str:
    """That of the files where all are of one kind, else ONNX Runtime."""
    kinds = {n.network.suffix.lower() if isinstance(n.network, Path) else "" for n in networks}
    return FILES.get(next(iter(kinds)), DEFAULT) if len(kinds) == 1 else DEFAULT


def measure_latencies(
    networks: Sequence[str | NamedNetwork],
    runtime: str | Runtime | None = None,
    settings: MeasureSettings | None = None,
    *,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, NetworkResult]:
    """Every network's latency on a runtime now, by name; those fed alike in the same rounds.

    networks: see `named_network` for words. runtime: see `default_runtime`.
    settings: threads, batch, `network_rounds`, runs and warmup. progress: called with
    (done, in all) of the networks of one shape after the other. shapes: see `measure_networks`.

    Raises:
        ArchitectureError: a word names no network.
        MeasurementError, MissingDependency: a network cannot run on the runtime; it is named.
    """
    settings = settings or MeasureSettings()
    subjects = [named_network(n) if isinstance(n, str) else n for n in networks]
    runtime = runtime or default_runtime(subjects)
    if isinstance(runtime, str):
        runtime = make(runtime, threads=settings.threads)
    results: dict[str, NetworkResult] = {}
    for shape, group in groupby(sorted(subjects, key=_shape), key=_shape):
        report = measure_networks(
            {subject.name: subject.network for subject in group},
            runtime,
            (noise((settings.batch, *shape)),),
            settings,
            progress=progress,
            seed=seed,
            shapes=shapes,
        )
        results |= report.networks
    return results


def _shape(subject: NamedNetwork) -> tuple[int, ...]:
    return subject.input_shape
