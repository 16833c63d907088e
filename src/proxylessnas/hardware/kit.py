"""Measuring on a machine that is not this one.

`export_kit` packs every candidate and some whole networks with a script into a zip;
`python kit.zip` on the device runs `kit_main.py` with the runtime and numpy alone and writes
`results.json`, of which `kit_results.py` makes the latency table. For Android the kit's
`android.sh` runs TensorFlow's `benchmark_model` in the same shuffled rounds, and for a Jetson or
another NVIDIA machine `trtexec.sh` runs TensorRT's `trtexec`.
"""

from __future__ import annotations

import json
import shlex
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from proxylessnas.config import MeasureSettings
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import ExportError, MeasurementError
from proxylessnas.export.coreml import UNTESTED, zipped_coreml
from proxylessnas.export.onnx import to_onnx
from proxylessnas.export.onnx_session import named_inputs
from proxylessnas.export.precision import in_precision, noisy_feeds, noisy_inputs
from proxylessnas.export.quiet import one_thread
from proxylessnas.export.tflite import channels_last, to_tflite
from proxylessnas.hardware.kit_results import SCHEMA
from proxylessnas.hardware.plan import (
    REPEAT,
    Measurable,
    PlannedModules,
    describe_inputs,
    plan_measurement,
)
from proxylessnas.hardware.rounds import orders
from proxylessnas.hardware.runtimes.base import is_block
from proxylessnas.hardware.timing import ProgressCallback


@dataclass(frozen=True)
class Format:
    """The files that a runtime reads. package: of the runtime, on the device.

    precisions: that a kit can be in.
    """

    suffix: str
    export: Callable[..., bytes]
    fed: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
    package: str
    precisions: tuple[str, ...] = ("f32",)


FORMATS = {
    "onnxruntime": Format(".onnx", to_onnx, tuple, "onnxruntime", ("f32", "int8")),
    "litert": Format(".tflite", to_tflite, channels_last, "ai-edge-litert", ("f32", "int8")),
    "coreml": Format(".zip", zipped_coreml, tuple, "coremltools", ("f32", "fp16")),
    "tensorrt": Format(".onnx", to_onnx, tuple, "TensorRT", ("f32", "fp16", "int8")),
}
TRT_FLAGS = {"f32": "--noTF32", "fp16": "--fp16", "int8": "--int8 --fp16"}

# The kit's script: these files of the package, and no other, under the names that they have here.
CARRIED = (
    "io/process.py",
    "export/onnx_session.py",
    "export/lite_names.py",
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
{more}"""

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

TENSORRT = """A kit to measure {count} networks with TensorRT's trtexec, made by proxylessnas.
Untested on a device: written after trtexec's documentation.

On an NVIDIA machine (a Jetson at its maximal clocks: sudo nvpmodel -m 0; sudo jetson_clocks):
    unzip {name} -d kit
    sh kit/trtexec.sh > results.log
    proxylessnas measure --import-kit results.log --out table.json     (where the kit was made)
TRTEXEC=/usr/src/tensorrt/bin/trtexec before `sh` says where trtexec is. It builds every engine
once, keeps it in kit/engines, and makes {visits} visits. In int8 trtexec makes up the ranges of
activations: the times are right, the outputs are not.
"""


def export_kit(
    supernet: Supernet,
    example_inputs: tuple[Tensor, ...],
    settings: MeasureSettings,
    path: str | Path,
    *,
    seed: int,
    runtime: str = "onnxruntime",
    precision: str = "f32",
    progress: ProgressCallback | None = None,
) -> None:
    """Write the kit, whole or not at all.

    runtime: onnxruntime (.onnx files), litert (.tflite files, also for Android), tensorrt, or
    coreml for a Mac.
    precision: f32; of onnxruntime and litert also int8, whose files are quantised on noise (of ONNX
    with 7 bits of the weights, which costs no time anywhere); of tensorrt fp16 and int8, of coreml
    fp16.
    progress: called with (networks exported, in all).

    Raises:
        MeasurementError: no kit can be made for this runtime, or the file cannot be written.
        ExportError: a candidate cannot be exported; it is named.
    """
    if runtime not in FORMATS:
        raise MeasurementError(
            f"no kit can be made for {runtime!r}; allowed: {', '.join(sorted(FORMATS))}"
        )
    if precision not in FORMATS[runtime].precisions:
        raise MeasurementError(
            f"a kit for {runtime} is in {' or '.join(FORMATS[runtime].precisions)}, not {precision}"
        )
    planned = plan_measurement(supernet, example_inputs, settings, seed=seed)
    path = Path(path)
    partial = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as kit:
            networks = _write_networks(kit, planned, runtime, precision, progress)
            manifest = {
                **{"schema": SCHEMA, "runtime": runtime, "precision": precision, "seed": seed},
                **{name: getattr(settings, name) for name in ("threads", "runs", "warmup")},
                **_described(planned),
                "files": networks,
            }
            _write_scripts(kit, manifest, path.name)
        partial.replace(path)
    except OSError as error:
        raise MeasurementError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def _write_networks(
    kit: zipfile.ZipFile,
    planned: PlannedModules,
    runtime: str,
    precision: str,
    progress: ProgressCallback | None,
) -> dict[str, dict[str, Any]]:
    """Every network as a file, and how the kit is to load and visit it, by the plan's keys."""
    networks: dict[str, dict[str, Any]] = {}
    visits = planned.plan.visits
    for i, key in enumerate(visits):
        if key.endswith(REPEAT):  # the same file, loaded again
            networks[key] = networks[key.removesuffix(REPEAT)]
        else:
            measurable, file = planned.measurable(key), f"networks/{i:04d}{FORMATS[runtime].suffix}"
            kit.writestr(file, _exported(measurable, runtime, precision))
            fed = FORMATS[runtime].fed(measurable.inputs)
            networks[key] = {
                "file": file,
                "visits": visits[key],
                "block": is_block(measurable.inputs),
                "inputs": [[list(x.shape), str(x.dtype).removeprefix("torch.")] for x in fed],
            }
        if progress is not None:
            progress(i + 1, len(visits))
    return networks


def _exported(measurable: Measurable, runtime: str, precision: str) -> bytes:
    assert isinstance(measurable.network, nn.Module)
    try:
        with one_thread():
            network, inputs = measurable.network, measurable.inputs
            if runtime == "coreml":
                return zipped_coreml(network, inputs, precision)
            if runtime == "litert" and precision == "int8":
                return to_tflite(network, inputs, noisy_inputs(inputs))
            content = FORMATS[runtime].export(network, inputs)
            if runtime != "onnxruntime":  # trtexec takes the float file, and converts it itself
                return content
            feeds = noisy_feeds(named_inputs([x.numpy() for x in inputs]))
            return in_precision(content, precision, feeds, reduce_range=True)
    except ExportError as error:
        raise ExportError(
            f"{measurable.label} cannot be put into a kit for {runtime}: {error}"
        ) from error


def _described(planned: PlannedModules) -> dict[str, Any]:
    """The plan and the model that it is of, for the way back."""
    plan = planned.plan
    model = planned.supernet.architecture([0] * len(planned.supernet.names))
    return {
        **describe_inputs(planned.trace.inputs),
        "canary": plan.canary,
        "space": plan.space,
        "networks": [asdict(network) for network in plan.networks],
        "model": {"space": model.space, "settings": dict(model.settings)},
    }


def _write_scripts(kit: zipfile.ZipFile, manifest: Mapping[str, Any], name: str) -> None:
    kit.writestr("__main__.py", MAIN)
    for file in CARRIED:
        kit.writestr(
            f"proxylessnas/{file}", files("proxylessnas").joinpath(file).read_text("utf-8")
        )
    for package in sorted({parent for file in CARRIED for parent in Path(file).parents}):
        kit.writestr(str("proxylessnas" / package / "__init__.py"), "")
    kit.writestr("manifest.json", json.dumps(manifest))
    more = f"{UNTESTED}.\n" if manifest["runtime"] == "coreml" else ""
    if manifest["runtime"] == "litert":
        kit.writestr("android.sh", _android_script(manifest))
        more = ANDROID.format(name=name)
    if manifest["runtime"] == "tensorrt":
        kit.writestr("trtexec.sh", _tensorrt_script(manifest))
    readme = (TENSORRT if manifest["runtime"] == "tensorrt" else README).format(
        count=len(manifest["files"]),
        runtime=FORMATS[manifest["runtime"]].package,
        name=name,
        visits=sum(entry["visits"] for entry in manifest["files"].values()),
        more=more,
    )
    kit.writestr("README.txt", readme)


def _tensorrt_script(manifest: Mapping[str, Any]) -> str:
    """A visit is one start of trtexec on an engine that was built before the first round."""
    flags = TRT_FLAGS[manifest["precision"]]
    times = (
        f"--iterations={manifest['runs']} --duration=0 --warmUp=200 --useSpinWait "
        "--noDataTransfers --avgRuns=1"
    )
    built = dict.fromkeys(entry["file"] for entry in manifest["files"].values())
    lines = [
        # Engines of another kit that was unpacked here are not this one's.
        "cmp -s manifest.json engines/manifest.json ||",
        "  { rm -rf engines; mkdir engines; cp manifest.json engines; }",
        'trt="${TRTEXEC:-trtexec}"',
        'echo "### system $(uname -sr)"',
        "build() {",
        f'  [ -f "$2" ] || "$trt" --onnx="$1" --saveEngine="$2" {flags} --skipInference 2>&1 || {{',
        '    echo "### failed $1"; exit 1; }',
        "}",
        *(f"build {file} {_engine(file)}" for file in built),
    ]
    run = f'"$trt" --loadEngine="$2" {times}'
    return _script("/bin/sh", "trtexec", manifest, lines, run, _engine)


def _engine(file: str) -> str:
    return f"engines/{Path(file).stem}.engine"


def _android_script(manifest: Mapping[str, Any]) -> str:
    """A visit is one start of benchmark_model."""
    options = (
        f"--num_threads={manifest['threads']} --num_runs={manifest['runs']} "
        f"--warmup_runs={max(1, manifest['warmup'])} --warmup_min_secs=0 --min_secs=0 "
        "--use_xnnpack=true"
    )
    lines = [
        'echo "### device $(getprop ro.product.manufacturer) $(getprop ro.product.model)"',
        'echo "### system Android $(getprop ro.build.version.release)"',
    ]
    run = f'${{TASKSET:+taskset $TASKSET}} ./benchmark_model --graph="$2" {options}'
    return _script("/system/bin/sh", "benchmark_model", manifest, lines, run, str)


def _script(
    shell: str,
    program: str,
    manifest: Mapping[str, Any],
    lines: Sequence[str],
    run: str,
    file_of: Callable[[str], str],
) -> str:
    """A script of shuffled rounds; its log names the network before the program's output.

    run: the command of a visit to `$2`, which `file_of` makes of a network's file.
    """
    files = manifest["files"]
    visits = {key: entry["visits"] for key, entry in files.items()}
    rounds = [
        f"visit {shlex.quote(key)} {file_of(files[key]['file'])}"
        for order in orders(visits, int(manifest["seed"]))
        for key in order
    ]
    head = [
        f"#!{shell}",
        f"# Runs {program} on every network of this kit, in shuffled rounds.",
        'cd "$(dirname "$0")" || exit 1',
        "printf '### manifest '; cat manifest.json; echo",
        'echo "### date $(date -u +%Y-%m-%dT%H:%M:%S+00:00)"',
    ]
    visit = ["visit() {", '  echo "### visit $1"', f"  {run} 2>&1", "}"]
    return "\n".join([*head, *lines, *visit, *rounds]) + "\n"
