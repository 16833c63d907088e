"""Does int8 pay on this processor? The zoo's networks, in float and in int8, in the same rounds.

    python benchmarks/int8.py [--size 96] [--rounds 30] [--runtimes onnxruntime,openvino]
        [--networks NAME,...] [--recipes]

Prints the ratio of int8 to float latency with the 95 % interval of its median. --recipes adds, on
ONNX Runtime, what happens without our recipe: its default of signed activations (S8S8), and without
`quant_pre_process`, which leaves the exporter's Identity nodes in the way. Weights are random and
calibration is on noise: only times are of interest.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from proxylessnas import zoo
from proxylessnas.config import MeasureSettings
from proxylessnas.export.onnx import to_onnx
from proxylessnas.export.quiet import quietly
from proxylessnas.hardware.host import cpu_model, integer_instructions
from proxylessnas.hardware.precisions import paired_ratio
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.runtimes.base import Session
from proxylessnas.hardware.timing import disturbance, measure_sessions
from proxylessnas.io.console import Reporter, output, say, table_of
from proxylessnas.spaces import build

RECIPES = {"S8S8": (QuantType.QInt8, True), "no pre-process": (QuantType.QUInt8, False)}


class Noise(CalibrationDataReader):  # type: ignore[misc]
    """Two inputs."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        random = np.random.default_rng(0)
        feeds = [{"input": random.standard_normal(shape).astype(np.float32)} for _ in range(2)]
        self.feeds = iter(feeds)

    def get_next(self) -> Any:
        return next(self.feeds, None)


def other_recipe(content: bytes, shape: tuple[int, ...], name: str, folder: str) -> Path:
    """The network quantised otherwise than we do, as a file."""
    activations, prepared = RECIPES[name]
    plain, path = Path(folder, "plain.onnx"), Path(folder, f"{name}.onnx")
    with quietly():
        if prepared:
            model = onnx.load_model_from_string(content)
            quant_pre_process(model, plain, skip_symbolic_shape=True)
        else:
            plain.write_bytes(content)
        quantize_static(
            plain,
            path,
            Noise(shape),
            quant_format=QuantFormat.QDQ,
            activation_type=activations,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
    return path


def sessions_of(
    name: str, size: int, runtimes: list[str], recipes: bool, stack: ExitStack
) -> dict[str, Session]:
    """The network in all ways that are compared: `RUNTIME f32`, `RUNTIME int8`, and recipes."""
    side = min(size, zoo.NETWORKS[name].input_shape[1])  # CIFAR's network has a size of its own
    network, inputs = build(zoo.load(name)).eval(), (torch.randn(1, 3, side, side),)
    sessions = {
        f"{runtime} {precision}": make(runtime, precision=precision).load(network, inputs)
        for runtime in runtimes
        for precision in ("f32", "int8")
    }
    if recipes:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        content, shape = to_onnx(network, inputs), tuple(inputs[0].shape)
        for recipe in RECIPES:
            path = other_recipe(content, shape, recipe, folder)
            sessions[recipe] = make("onnxruntime").load_file(path)
    for session in sessions.values():
        stack.callback(session.close)
    return sessions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--runtimes", default="onnxruntime,openvino")
    parser.add_argument("--networks", default=",".join(zoo.NETWORKS))
    parser.add_argument("--recipes", action="store_true")
    args = parser.parse_args()
    runtimes = args.runtimes.split(",")
    recipes = list(RECIPES) if args.recipes else []
    settings = MeasureSettings(network_rounds=args.rounds)
    table = table_of("network", [f"{runtime} f32 ms" for runtime in runtimes] + runtimes + recipes)
    measurements, reporter = [], Reporter()
    for name in args.networks.split(","):
        with ExitStack() as stack, reporter.bar(name) as update:
            sessions = sessions_of(name, args.size, runtimes, bool(recipes), stack)
            visits = dict.fromkeys(sessions, args.rounds)
            measured = measure_sessions(sessions, visits, settings, seed=0, progress=update)
        plain = [f"{measured[f'{runtime} f32'].median_ms:.2f}" for runtime in runtimes]
        ratios = [
            str(paired_ratio(measured[f"{runtime} int8"], measured[f"{runtime} f32"]))
            for runtime in runtimes
        ]
        others = [
            str(paired_ratio(measured[recipe], measured["onnxruntime f32"])) for recipe in recipes
        ]
        table.add_row(name, *plain, *ratios, *others)
        reporter.say(f"{name}: {' | '.join([*plain, *ratios, *others])}")
        measurements += list(measured.values())
    output().print(table)
    words = ", ".join(integer_instructions()) or "no integer instructions"
    say(f"{args.size} px, one thread, {cpu_model()} ({words}); int8 over float32, paired rounds")
    if disturbed := disturbance(measurements):
        say(f"meanwhile {disturbed}")


if __name__ == "__main__":
    main()
