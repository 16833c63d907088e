"""A kit's results, as a latency table: `results.json`, or the log of a kit's shell script.

Nothing in the file is trusted on reading.
"""

from __future__ import annotations

import codecs
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from proxylessnas.errors import MeasurementError
from proxylessnas.hardware.plan import MeasurementPlan, PlannedNetwork, assemble
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.table_entries import Milliseconds, Scalar
from proxylessnas.hardware.timing import Measurement
from proxylessnas.io.files import read_bytes
from proxylessnas.io.json_files import parse_json
from proxylessnas.schema import Parsed, checked

SCHEMA: Final = 1
MAX_FILE_BYTES = 64 << 20
MAX_SHAPES_TEXT = 1000
MAX_ELEMENTS = 1 << 27  # of the inputs together: 512 MiB in float32


def _shapes(text: str) -> tuple[tuple[int, ...], ...]:
    """`1x3x224x224, 1x10` as shapes, of inputs that a machine can hold."""
    shapes = [
        # A number of thousands of digits is refused unread: Python would not read it either.
        tuple(int(size) if len(size) <= 9 else MAX_ELEMENTS + 1 for size in shape.split("x"))
        for shape in re.findall(r"[0-9]+(?:x[0-9]+)*", text[:MAX_SHAPES_TEXT])
    ]
    empty = any(0 in shape for shape in shapes)
    if empty or len(text) > MAX_SHAPES_TEXT or sum(map(math.prod, shapes)) > MAX_ELEMENTS:
        raise ValueError(
            f"the shapes are {text[:60]!r}: every size must be 1 or more, and all inputs "
            f"together at most {MAX_ELEMENTS} values"
        )
    return tuple(shapes)


Samples = tuple[Milliseconds, ...]


@checked(MeasurementError)
@dataclass(frozen=True, kw_only=True)
class _Model:
    space: str
    settings: dict[str, Any]


@checked(MeasurementError, others="ignore")
@dataclass(frozen=True, kw_only=True)
class _File:
    visits: int


@checked(MeasurementError)
@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """What `kit.py` packs; it comes back with the samples."""

    schema: Literal[1]
    runtime: str
    threads: int
    batch: int
    input_shapes: Annotated[str, Parsed(_shapes, "shapes as 1x3x224x224")]
    runs: int
    warmup: int
    seed: int
    canary: str
    space: str
    model: _Model
    files: dict[str, _File]
    networks: tuple[PlannedNetwork, ...]
    precision: str = "f32"

    def plan(self) -> MeasurementPlan:
        visits = {key: file.visits for key, file in self.files.items()}
        return MeasurementPlan(
            space=self.space,
            units=tuple(key for key in visits if not key.startswith("network ")),
            networks=self.networks,
            visits=visits,
        )


@checked(MeasurementError)
@dataclass(frozen=True, kw_only=True)
class KitResults:
    """What came back: the kit's manifest with samples, of which `table` is made."""

    schema: Literal[1]
    manifest: _Manifest
    device: dict[str, Scalar]
    environment: dict[str, Scalar]
    samples_ms: dict[str, Samples]

    def __post_init__(self) -> None:
        for key in self.samples_ms:
            if key not in self.manifest.files:
                raise ValueError(f"it has samples of {key!r}, which its manifest does not name")

    @cached_property
    def table(self) -> LatencyTable:
        measurements = {
            key: Measurement(samples_ms=samples, environment=self.environment)
            for key, samples in self.samples_ms.items()
            if samples
        }
        return assemble(self.manifest.plan(), self.device, measurements)

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """What the networks were measured with."""
        return _shapes(self.manifest.input_shapes)


def import_kit(path: str | Path) -> KitResults:
    """A kit's results: `results.json`, or the log of `android.sh` or `trtexec.sh`.

    Raises:
        MeasurementError: the file is missing, too large, or not a kit's results.
    """
    text = read_bytes(path, MAX_FILE_BYTES, MeasurementError)
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell's > writes it
        text = text.decode("utf-16", errors="replace").encode()
    try:
        if b"### manifest " in text:
            results = _results_of_log(text.decode("utf-8", errors="replace"))
        else:
            results = parse_json(KitResults, text, MeasurementError)
        _ = results.table  # for its errors
        return results
    except MeasurementError as error:
        raise MeasurementError(f"{path} is not a kit's results: {error}") from None


def _results_of_log(text: str) -> KitResults:
    """The log of a kit's shell script as a results file: a part a visit, named by the network."""
    header = {
        name: match[1].strip() if (match := re.search(rf"^### {name} (.*)$", text, re.M)) else ""
        for name in ("manifest", "device", "system", "date", "failed")
    }
    if len(set(re.findall(r"^### manifest (.*?)\s*$", text, re.M))) > 1:
        raise MeasurementError("it has the output of several kits: keep each in a file of its own")
    manifest: _Manifest = parse_json(_Manifest, header["manifest"], MeasurementError)
    on_nvidia = manifest.runtime == "tensorrt"
    if header["failed"]:
        raise MeasurementError(f"trtexec could not build an engine of {header['failed']!r}")
    samples: dict[str, list[float]] = {}
    for part in text.split("### visit ")[1:]:
        key, _, output = part.partition("\n")
        key = key.strip()
        ms = _trtexec_ms(output, key) if on_nvidia else _benchmark_model_ms(output, key)
        samples.setdefault(key, []).append(ms)
    found = _nvidia_device(text) if on_nvidia else ("benchmark_model", header["device"])
    device: dict[str, Scalar] = {
        "runtime": manifest.runtime,
        "version": found[0],
        "precision": manifest.precision,
        "threads": manifest.threads,
        "device": found[1] or ("NVIDIA" if on_nvidia else "Android"),
        "batch": manifest.batch,
        "input_shapes": manifest.input_shapes,
        "cores": 0,
        "system": header["system"],
    }
    return KitResults(
        schema=SCHEMA,
        manifest=manifest,
        device=device,
        environment={"date": header["date"]},
        samples_ms={key: tuple(values) for key, values in samples.items()},
    )


def _benchmark_model_ms(output: str, key: str) -> float:
    """What benchmark_model prints of its runs, in us: their median where it does, else the mean."""
    medians = re.findall(r"count=\d+ .*?median=([\d.e+]+)", output)
    mean = re.search(r"Inference \(avg\): ([\d.e+]+)", output)
    if mean is None:
        raise MeasurementError(f"benchmark_model did not finish on {key!r}")
    return _number(medians[-1] if len(medians) > 1 else mean[1], key) / 1e3


def _trtexec_ms(output: str, key: str) -> float:
    """The median of `GPU Compute Time` in trtexec's performance summary."""
    median = re.search(r"GPU Compute Time: .*?median = ([\d.e+-]+) ms", output)
    if median is None:
        raise MeasurementError(f"trtexec did not finish on {key!r}")
    return _number(median[1], key)


def _nvidia_device(text: str) -> tuple[str, str]:
    """(TensorRT's version, the device) as trtexec prints them."""
    version = re.search(r"TensorRT version: ([\w.]+)", text)
    device = re.search(r"Selected Device: (.*)$", text, re.M)
    return version[1] if version else "unknown", device[1].strip() if device else ""


def _number(text: str, key: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise MeasurementError(f"the time {text[:40]!r} of {key!r} is no number") from None
