"""A kit's results, as a latency table: `results.json`, or the log of `android.sh`.

Nothing in the file is trusted on reading.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxylessnas.errors import MeasurementError, one_line
from proxylessnas.hardware.plan import MeasurementPlan, PlannedNetwork, assemble
from proxylessnas.hardware.table import LatencyTable, decode, list_of, object_of, scalars_of
from proxylessnas.hardware.timing import Measurement

SCHEMA = 1
MAX_FILE_BYTES = 64 << 20
MAX_SHAPES_TEXT = 1000
MAX_ELEMENTS = 1 << 27  # of the inputs together: 512 MiB in float32
FIELDS = (
    *("schema", "runtime", "threads", "batch", "input_shapes", "runs", "warmup", "seed"),
    *("canary", "space", "model", "files", "networks"),
)


@dataclass(frozen=True, kw_only=True)
class KitResults:
    """What came back. space, settings, input_shapes: what the kit's networks are of."""

    table: LatencyTable
    space: str
    settings: Mapping[str, Any]
    input_shapes: tuple[tuple[int, ...], ...]


def import_kit(path: str | Path) -> KitResults:
    """A kit's results: `results.json`, or the log of `android.sh`.

    Raises:
        MeasurementError: the file is missing, too large, or not a kit's results.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise MeasurementError(f"cannot read {path}: {error.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise MeasurementError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB")
    try:
        results = _android_results(raw) if b"### manifest " in raw else decode(raw)
        return _results(results)
    except MeasurementError as error:
        raise MeasurementError(f"{path} is not a kit's results: {one_line(error)}") from None


def _android_results(raw: bytes) -> dict[str, Any]:
    """The log of android.sh as a results file.

    benchmark_model prints statistics of its runs in us: their median where it does, else the
    mean of `Inference (avg)`.
    """
    text = raw.decode("utf-8", errors="replace")
    found = {
        name: match[1].strip() if (match := re.search(rf"^### {name} (.*)$", text, re.M)) else ""
        for name in ("manifest", "device", "system", "date")
    }
    manifest = object_of(decode(found["manifest"].encode()), "its manifest")
    samples: dict[str, list[float]] = {}
    for part in text.split("### visit ")[1:]:
        key, _, output = part.partition("\n")
        medians = re.findall(r"count=\d+ .*?median=([\d.e+]+)", output)
        mean = re.search(r"Inference \(avg\): ([\d.e+]+)", output)
        if mean is None:
            raise MeasurementError(f"benchmark_model did not finish on {key.strip()!r}")
        micros = _number(medians[-1] if len(medians) > 1 else mean[1], key.strip())
        samples.setdefault(key.strip(), []).append(micros / 1e3)
    device = {
        "runtime": manifest.get("runtime"),
        "version": "benchmark_model",
        "precision": "f32",
        "threads": manifest.get("threads"),
        "device": found["device"] or "Android",
        "batch": manifest.get("batch"),
        "input_shapes": manifest.get("input_shapes"),
        "cores": 0,
        "system": found["system"],
    }
    return {
        "schema": SCHEMA,
        "manifest": manifest,
        "device": device,
        "environment": {"date": found["date"]},
        "samples_ms": samples,
    }


def _number(text: str, key: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise MeasurementError(f"benchmark_model's {text[:40]!r} of {key!r} is no number") from None


def _shapes(text: str) -> tuple[tuple[int, ...], ...]:
    """`1x3x224x224, 1x10` as shapes, of inputs that a machine can hold."""
    shapes = [
        # A number of thousands of digits is refused unread: Python would not read it either.
        tuple(int(size) if len(size) <= 9 else MAX_ELEMENTS + 1 for size in shape.split("x"))
        for shape in re.findall(r"[0-9]+(?:x[0-9]+)*", text[:MAX_SHAPES_TEXT])
    ]
    empty = any(0 in shape for shape in shapes)
    if empty or len(text) > MAX_SHAPES_TEXT or sum(map(math.prod, shapes)) > MAX_ELEMENTS:
        raise MeasurementError(
            f"its input_shapes are {text[:60]!r}: every size must be 1 or more, and all inputs "
            f"together at most {MAX_ELEMENTS} values"
        )
    return tuple(shapes)


def _results(results: object) -> KitResults:
    names = ("schema", "manifest", "device", "environment", "samples_ms")
    fields = object_of(results, "the file", names)
    if fields["schema"] != SCHEMA:
        raise MeasurementError(f"schema {fields['schema']!r}; this version reads {SCHEMA}")
    manifest = object_of(fields["manifest"], "its manifest", tuple(FIELDS))
    plan = _plan(manifest)
    model = object_of(manifest["model"], "its model", ("space", "settings"))
    shapes = _shapes(str(manifest["input_shapes"]))
    environment = scalars_of(fields["environment"], "environment")
    measured = {}
    for key, samples in object_of(fields["samples_ms"], "samples_ms").items():
        if key not in plan.visits:
            raise MeasurementError(f"it has samples of {key!r}, which its manifest does not name")
        values = list_of(samples, key)
        for v in values:
            number = isinstance(v, int | float) and not isinstance(v, bool)
            if not number or not 0 < v < 1e12:
                raise MeasurementError(
                    f"{key} has the sample {str(v)[:40]}, not a positive number of ms"
                )
        if values:
            measured[key] = Measurement(
                samples_ms=tuple(float(v) for v in values), environment=environment
            )
    return KitResults(
        table=assemble(plan, scalars_of(fields["device"], "device"), measured),
        space=str(model["space"]),
        settings=object_of(model["settings"], "its model's settings"),
        input_shapes=shapes,
    )


def _plan(manifest: Mapping[str, Any]) -> MeasurementPlan:
    networks = []
    for data in list_of(manifest["networks"], "networks"):
        n = object_of(data, "a network", ("name", "choices", "role", "macs"))
        choices = object_of(n["choices"], "a network's choices")
        if n["role"] not in ("fit", "validation", "canary"):
            raise MeasurementError(f"a network has the role {n['role']!r}")
        macs = n["macs"]
        counted = isinstance(macs, int) and not isinstance(macs, bool) and 0 <= macs < 1 << 62
        if not counted or not isinstance(n["name"], str):
            raise MeasurementError("a network's name or MACs are malformed")
        if not all(isinstance(c, str) for c in choices.values()):
            raise MeasurementError("a network's choices are not all names")
        networks.append(PlannedNetwork(name=n["name"], choices=choices, role=n["role"], macs=macs))
    visits: dict[str, int] = {}
    for key, data in object_of(manifest["files"], "files").items():
        count = object_of(data, f"the file of {key!r}").get("visits")
        if not isinstance(count, int) or isinstance(count, bool):
            raise MeasurementError(f"the visits of {key!r} are {count!r}, not a number")
        visits[key] = count
    if not isinstance(manifest["space"], str):
        raise MeasurementError("its space is not a string")
    return MeasurementPlan(
        space=manifest["space"],
        units=tuple(k for k in visits if not k.startswith("network ")),
        networks=tuple(networks),
        visits=visits,
    )
