"""What a kit does: measures the kit's networks on the machine it is started on.

    python kit.zip [--out results.json] [--device NAME]

Needs Python 3.10, numpy and the runtime alone (onnxruntime, or ai-edge-litert / tflite-runtime
for a kit of .tflite files, coremltools on a Mac). Samples are saved every few seconds: the same
command goes on after a break. Bring the results file back: `proxylessnas measure --import-kit`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import zipfile
from importlib import metadata
from typing import Any

from proxylessnas.export.lite_names import lite_inputs
from proxylessnas.export.onnx_session import named_inputs, open_session
from proxylessnas.hardware.host import cpu_model
from proxylessnas.hardware.networks import (
    CoreMlNetwork,
    LiteRtNetwork,
    OnnxNetwork,
    stand_in,
)
from proxylessnas.hardware.rounds import Rounds, TimedNetwork
from proxylessnas.io.process import usable_cpus

PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "litert": ("ai-edge-litert", "tflite-runtime"),
    "coreml": ("coremltools",),
}


def main(root: str) -> int:
    """Measure what is missing; root: the kit, a zip or a folder."""
    manifest = json.loads(read(root, "manifest.json"))
    args = parse()
    results = earlier(args.out, manifest)
    visits = {key: entry["visits"] for key, entry in manifest["files"].items()}
    names = ("runs", "warmup", "seed", "threads", "canary")
    settings = {name: manifest[name] for name in names}
    networks: dict[str, TimedNetwork] = {}
    rounds = Rounds(networks, visits, **settings, samples_ms=results["samples_ms"])
    missing = rounds.missing()
    if not missing:
        print(f"{args.out} is complete")
        return 0
    for key in dict.fromkeys([*missing, manifest["canary"]]):
        networks[key] = load(root, manifest, key)
        say(f"loading {len(networks)}")
    results |= {"device": describe(manifest, args.device), "environment": rounds.environment}
    rounds.run(
        progress=lambda done, total: say(f"measuring {100 * done // total:3d} %"),
        save=lambda: save(results, args.out),
    )
    print(f"\nwrote {args.out}; where the kit was made:")
    print(f"    proxylessnas measure --import-kit {args.out} --out table.json")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the networks of this kit.")
    parser.add_argument("--out", default="results.json", help="where the results are kept")
    parser.add_argument("--device", default=cpu_model(), help="the name of this device")
    return parser.parse_args()


def read(root: str, name: str) -> bytes:
    """A file of the kit."""
    if zipfile.is_zipfile(root):
        with zipfile.ZipFile(root) as kit:
            return kit.read(name)
    with open(os.path.join(root, name), "rb") as file:
        return file.read()


def load(root: str, manifest: dict[str, Any], key: str) -> TimedNetwork:
    """The network of a key, loaded by the kit's runtime."""
    entry, threads = manifest["files"][key], manifest["threads"]
    content = read(root, entry["file"])
    arrays = [stand_in(shape, dtype) for shape, dtype in entry["inputs"]]
    if manifest["runtime"] == "onnxruntime":
        return OnnxNetwork(
            lambda profile: open_session(content, threads=threads, profile=profile),
            named_inputs(arrays),
            block=entry["block"],
            integers=manifest["precision"] == "int8",
        )
    if manifest["runtime"] == "coreml":
        return CoreMlNetwork(content, named_inputs(arrays))
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter  # type: ignore

    interpreter = Interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
    return LiteRtNetwork(interpreter, lite_inputs(arrays))


def describe(manifest: dict[str, Any], device: str) -> dict[str, Any]:
    """The device that the table will be of."""
    return {
        **{name: manifest[name] for name in ("runtime", "threads", "batch", "input_shapes")},
        "version": version(manifest["runtime"]),
        "precision": manifest["precision"],
        "device": device,
        "cores": usable_cpus(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def version(runtime: str) -> str:
    for package in PACKAGES[runtime]:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def say(text: str) -> None:
    """Progress, on a terminal alone."""
    if sys.stdout.isatty():
        print(f"\r{text}", end="", flush=True)


def earlier(path: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """The results of an earlier start, or an empty results file."""
    if not os.path.exists(path):
        return {"schema": 1, "manifest": manifest, "samples_ms": {}}
    try:
        with open(path, encoding="utf-8") as file:
            results: dict[str, Any] = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        sys.exit(f"cannot read {path}: {error}; remove it, or choose another --out")
    known = isinstance(results, dict) and isinstance(results.get("samples_ms"), dict)
    if not known or results.get("manifest") != manifest:
        sys.exit(f"{path} belongs to another kit: choose another --out, or remove it")
    return results


def save(results: dict[str, Any], path: str) -> None:
    """Whole or not at all."""
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(results, file)
    os.replace(path + ".part", path)
