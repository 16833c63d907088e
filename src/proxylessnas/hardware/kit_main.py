"""The script of a kit: measures the kit's networks on the machine it is started on.

    python kit.zip [--out results.json] [--device NAME]

Needs Python 3.10, numpy and the runtime alone (onnxruntime, or ai-edge-litert / tflite-runtime
for a kit of .tflite files). What was measured is saved every few seconds: start it again to
go on after a break. Bring the results file back: `proxylessnas measure --import-kit`.

Within the package this file is only read, to be packed with
`host.py`, `rounds.py` and `nodes.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import zipfile
from datetime import datetime, timezone
from typing import Any

import numpy as np

if __package__:
    from proxylessnas.hardware import host, nodes, rounds
else:  # beside this file, in the kit
    import host  # type: ignore[no-redef,import-not-found]
    import nodes  # type: ignore[no-redef,import-not-found]
    import rounds  # type: ignore[no-redef,import-not-found]

SAVE_EVERY_S = 5.0


class Network:
    """One loaded network with its input in place.

    reordering_s: seconds of an inference that only a block alone spends, and that are not timed.
    """

    def __init__(self, run: Any, reordering_s: float = 0.0) -> None:
        self.run, self.reordering_s = run, reordering_s

    def __call__(self) -> None:
        self.run()

    def timed(self, repeat: int) -> float:
        waited, start = host.waited_s(), time.perf_counter()
        for _ in range(repeat):
            self.run()
        elapsed = time.perf_counter() - start
        elapsed = max(elapsed - (host.waited_s() - waited), 0.0) or elapsed
        return max(elapsed - repeat * self.reordering_s, 0.1 * elapsed)


def onnxruntime_network(content: bytes, feed: list[Any], threads: int, block: bool) -> Network:
    import onnxruntime

    def opened(profile: str = "") -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        # As `protocol.py` does: networks that are not trained have denormal activations.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        if threads > 1:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    session = opened()
    binding = session.io_binding()
    named = dict(zip([i.name for i in session.get_inputs()], feed, strict=False))
    for name, array in named.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for given, array in zip(session.get_outputs(), session.run(None, named), strict=True):
        binding.bind_ortvalue_output(given.name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    reordering_s = nodes.reordering_s(opened, named) if block else 0.0
    return Network(lambda: session.run_with_iobinding(binding), reordering_s)


def litert_network(content: bytes, feed: list[Any], threads: int, block: bool) -> Network:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter  # type: ignore

    interpreter = Interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
    details = sorted(interpreter.get_input_details(), key=lambda d: str(d["name"]))
    for given, array in zip(details, feed, strict=True):
        interpreter.set_tensor(given["index"], array)
    return Network(interpreter.invoke)


LOADERS = {"onnxruntime": onnxruntime_network, "litert": litert_network}


def version(runtime: str) -> str:
    from importlib import metadata

    for package in {"onnxruntime": ["onnxruntime", "onnxruntime-gpu"]}.get(
        runtime, ["ai-edge-litert", "tflite-runtime"]
    ):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def read(name: str) -> bytes:
    """A file of the kit, which may be a zip or a folder."""
    here = os.path.dirname(os.path.abspath(__file__))
    if zipfile.is_zipfile(here):
        with zipfile.ZipFile(here) as kit:
            return kit.read(name)
    with open(os.path.join(here, name), "rb") as file:
        return file.read()


def stand_in(shape: list[int], dtype: str) -> Any:
    random = np.random.default_rng(0)
    if np.issubdtype(np.dtype(dtype), np.floating):
        return random.standard_normal(shape).astype(dtype)
    return np.zeros(shape, dtype)


def say(text: str) -> None:
    """Progress, on a terminal alone."""
    if sys.stdout.isatty():
        print(f"\r{text}", end="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the networks of this kit.")
    parser.add_argument("--out", default="results.json", help="where the results are kept")
    parser.add_argument("--device", default=host.cpu_model(), help="what to call this device")
    args = parser.parse_args()
    manifest = json.loads(read("manifest.json"))
    results = earlier(args.out, manifest)
    samples: dict[str, list[float]] = results["samples_ms"]
    wanted = {
        k: max(0, f["visits"] - len(samples.get(k, []))) for k, f in manifest["files"].items()
    }
    missing = [k for k, n in wanted.items() if n]
    if not missing:
        print(f"{args.out} is complete")
        return 0
    networks = {}
    for i, key in enumerate(dict.fromkeys([*missing, manifest["canary"]])):
        entry = manifest["files"][key]
        feed = [stand_in(shape, dtype) for shape, dtype in entry["inputs"]]
        load = LOADERS[manifest["runtime"]]
        networks[key] = load(read(entry["file"]), feed, manifest["threads"], entry["block"])
        say(f"loading {i + 1}")
    measure(networks, wanted, manifest, results, args)
    print(f"\nwrote {args.out}; where the kit was made:")
    print(f"    proxylessnas measure --import-kit {args.out} --out table.json")
    return 0


def measure(
    networks: dict[str, Network],
    wanted: dict[str, int],
    manifest: dict[str, Any],
    results: dict[str, Any],
    args: argparse.Namespace,
) -> None:
    samples = results["samples_ms"]
    total, done, saved = sum(wanted.values()), 0, time.monotonic()
    other = host.OtherLoad()
    results["device"] = {
        "runtime": manifest["runtime"],
        "version": version(manifest["runtime"]),
        "precision": "f32",
        "threads": manifest["threads"],
        "device": args.device,
        "batch": manifest["batch"],
        "input_shapes": manifest["input_shapes"],
        "cores": host.cores(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")  # noqa: UP017 - Python 3.10
    environment = results["environment"] = {"date": now}

    def note(key: str, ms: float) -> None:
        nonlocal done, saved
        samples.setdefault(key, []).append(float(f"{ms:.6g}"))
        done += 1
        say(f"measuring {100 * done // total:3d} %")
        if time.monotonic() - saved > SAVE_EVERY_S:
            environment["other_load_cores"] = round(other.so_far(), 2)
            save(results, args.out)
            saved = time.monotonic()

    host.keep_memory()
    with host.pinned(manifest["threads"] == 1) as core:
        environment["pinned_core"] = -1 if core is None else core
        extra = rounds.run(
            networks,
            {k: n for k, n in wanted.items() if k in networks},
            runs=manifest["runs"],
            warmup=manifest["warmup"],
            seed=manifest["seed"],
            canary=manifest["canary"],
            note=note,
        )
    environment["other_load_cores"] = round(other.so_far(), 2)
    if len(extra) >= 4:
        environment["canary_drift_pct"] = round(rounds.drift_pct(extra), 2)
    save(results, args.out)


def earlier(path: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """What an earlier start left, or an empty results file."""
    fresh = {"schema": 1, "manifest": manifest, "samples_ms": {}}
    if not os.path.exists(path):
        return fresh
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
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(results, file)
    os.replace(path + ".part", path)


if __name__ == "__main__":
    sys.exit(main())
