"""Measuring on a machine that is not this one.

`export_kit` packs every candidate and some whole networks with a script into one zip;
`python kit.zip` on the device runs the protocol with the runtime and numpy alone and writes
`results.json`; `import_kit` makes the latency table of it. For Android the kit's `android.sh`
runs TensorFlow's `benchmark_model` in the same shuffled rounds, and its output is imported.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from proxylessnas.config import MeasureSettings
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import ExportError, MeasurementError, one_line
from proxylessnas.export.onnx import to_onnx
from proxylessnas.export.quiet import one_thread
from proxylessnas.export.tflite import channels_last, to_tflite
from proxylessnas.hardware.plan import (
    REPEAT,
    Measurable,
    MeasurementPlan,
    PlannedNetwork,
    assemble,
    plan_measurement,
)
from proxylessnas.hardware.rounds import orders
from proxylessnas.hardware.runtimes.base import is_activation
from proxylessnas.hardware.table import LatencyTable, decode, list_of, object_of, scalars_of
from proxylessnas.hardware.timing import Measurement, ProgressCallback

SCHEMA = 1
MAX_FILE_BYTES = 64 << 20
MAX_SHAPES_TEXT = 1000
MAX_ELEMENTS = 1 << 27  # of the inputs together: 512 MiB in float32
FORMATS = {"onnxruntime": ".onnx", "litert": ".tflite"}
FIELDS = (
    *("schema", "runtime", "threads", "batch", "input_shapes", "runs", "warmup", "seed"),
    *("canary", "space", "model", "files", "networks"),
)

# The kit's script: these files of the package, and no other, under the names that they have here.
CARRIED = (
    "io/process.py",
    "export/onnx_session.py",
    *(f"hardware/{name}.py" for name in ("host", "rounds", "networks", "kit_main")),
)
MAIN = """import os, sys
from proxylessnas.hardware.kit_main import main
sys.exit(main(os.path.dirname(os.path.abspath(__file__))))
"""

README = """A kit to measure {count} networks on another machine, made by proxylessnas.

On a machine with Python and {runtime} (and numpy):
    python {name} --out results.json
It needs nothing else, runs {visits} visits, saves every few seconds and goes on where it
was broken off. Keep the machine otherwise idle. Then, where the kit was made:
    proxylessnas measure --import-kit results.json --out table.json
{android}"""

ANDROID = """
On Android, with TensorFlow's benchmark_model
(https://ai.google.dev/edge/litert/models/measurement) in the same folder as this kit:
    unzip {name} -d kit
    adb push kit /data/local/tmp/kit
    adb push benchmark_model /data/local/tmp/kit/
    adb shell chmod +x /data/local/tmp/kit/benchmark_model
    adb shell sh /data/local/tmp/kit/android.sh > results.log
    proxylessnas measure --import-kit results.log --out table.json
TASKSET=f0 before `sh` chooses the cores: adb shell "TASKSET=f0 sh ...".
"""


def export_kit(
    supernet: Supernet,
    example_inputs: tuple[Tensor, ...],
    settings: MeasureSettings,
    path: str | Path,
    *,
    seed: int,
    runtime: str = "onnxruntime",
    progress: ProgressCallback | None = None,
) -> None:
    """Write the kit.

    runtime: onnxruntime (.onnx files) or litert (.tflite files, also for Android).

    Raises:
        MeasurementError: no kit can be made for this runtime.
        ExportError: a candidate cannot be exported; it is named.
    """
    if runtime not in FORMATS:
        raise MeasurementError(
            f"no kit can be made for {runtime!r}; allowed: {', '.join(sorted(FORMATS))}"
        )
    planned = plan_measurement(supernet, example_inputs, settings, seed=seed)
    plan, described = planned.plan, dict[str, Any]()
    path = Path(path)
    partial = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as kit:
            for i, key in enumerate(plan.visits):
                measurable = planned.measurable(key)
                inputs = measurable.inputs
                if key.endswith(REPEAT):  # the same file, loaded again
                    name = described[key.removesuffix(REPEAT)]["file"]
                else:
                    name = f"networks/{i:04d}{FORMATS[runtime]}"
                    kit.writestr(name, _exported(measurable, runtime))
                fed = channels_last(inputs) if runtime == "litert" else inputs
                described[key] = {
                    "file": name,
                    "visits": plan.visits[key],
                    "block": any(is_activation(x.shape) for x in inputs),
                    "inputs": [[list(x.shape), str(x.dtype).removeprefix("torch.")] for x in fed],
                }
                if progress is not None:
                    progress(i + 1, len(plan.visits))
            manifest = _manifest(plan, described, settings, example_inputs, runtime, seed)
            model = supernet.architecture([0] * len(supernet.names))
            manifest["model"] = {"space": model.space, "settings": dict(model.settings)}
            _write_scripts(kit, manifest, path.name)
        partial.replace(path)
    except OSError as error:
        raise MeasurementError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


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


# --- out ---


def _exported(measurable: Measurable, runtime: str) -> bytes:
    export = to_onnx if runtime == "onnxruntime" else to_tflite
    assert isinstance(measurable.network, nn.Module)
    try:
        with one_thread():
            return export(measurable.network, measurable.inputs)
    except ExportError as error:
        raise ExportError(
            f"{measurable.label} cannot be put into a kit for {runtime}: {error}"
        ) from error


def _manifest(
    plan: MeasurementPlan,
    described: Mapping[str, Any],
    settings: MeasureSettings,
    example_inputs: tuple[Tensor, ...],
    runtime: str,
    seed: int,
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "runtime": runtime,
        "threads": settings.threads,
        "batch": int(example_inputs[0].shape[0]),
        "input_shapes": ", ".join("x".join(map(str, x.shape)) for x in example_inputs),
        "runs": settings.runs,
        "warmup": settings.warmup,
        "seed": seed,
        "canary": plan.canary,
        "space": plan.space,
        "files": dict(described),
        "networks": [
            {"name": n.name, "choices": dict(n.choices), "role": n.role, "macs": n.macs}
            for n in plan.networks
        ],
    }


def _write_scripts(kit: zipfile.ZipFile, manifest: dict[str, Any], name: str) -> None:
    kit.writestr("__main__.py", MAIN)
    for file in CARRIED:
        kit.writestr(
            f"proxylessnas/{file}", files("proxylessnas").joinpath(file).read_text("utf-8")
        )
    for package in sorted({parent for file in CARRIED for parent in Path(file).parents}):
        kit.writestr(str("proxylessnas" / package / "__init__.py"), "")
    kit.writestr("manifest.json", json.dumps(manifest))
    visits = sum(f["visits"] for f in manifest["files"].values())
    android = ""
    if manifest["runtime"] == "litert":
        kit.writestr("android.sh", _android_script(manifest))
        android = ANDROID.format(name=name)
    kit.writestr(
        "README.txt",
        README.format(
            count=len(manifest["files"]),
            runtime={"litert": "ai-edge-litert"}.get(manifest["runtime"], manifest["runtime"]),
            name=name,
            visits=visits,
            android=android,
        ),
    )


def _android_script(manifest: Mapping[str, Any]) -> str:
    """A visit is one start of benchmark_model; its output is kept, with what it belongs to."""
    visits = {key: f["visits"] for key, f in manifest["files"].items()}
    options = (
        f"--num_threads={manifest['threads']} --num_runs={manifest['runs']} "
        f"--warmup_runs={max(1, manifest['warmup'])} --warmup_min_secs=0 --min_secs=0 "
        "--use_xnnpack=true"
    )
    lines = [
        "#!/system/bin/sh",
        "# Runs benchmark_model on every network of this kit, in shuffled rounds.",
        'cd "$(dirname "$0")" || exit 1',
        "printf '### manifest '; cat manifest.json; echo",
        'echo "### device $(getprop ro.product.manufacturer) $(getprop ro.product.model)"',
        'echo "### system Android $(getprop ro.build.version.release)"',
        'echo "### date $(date -u +%Y-%m-%dT%H:%M:%S+00:00)"',
        "visit() {",
        '  echo "### visit $1"',
        f'  ${{TASKSET:+taskset $TASKSET}} ./benchmark_model --graph="$2" {options} 2>&1',
        "}",
    ]
    for order in orders(visits, int(manifest["seed"])):
        for key in order:
            lines.append(f"visit {shlex.quote(key)} {manifest['files'][key]['file']}")
    return "\n".join(lines) + "\n"


# --- back ---


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
