"""A runtime for tests: latencies follow from MACs and layers, and no time passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from proxylessnas.errors import MeasurementError, foreign
from proxylessnas.export.compare import eager_outputs
from proxylessnas.export.onnx_session import feed_of, named_inputs, open_session
from proxylessnas.hardware.count import count_macs
from proxylessnas.hardware.runtimes.base import Array, Session, Shape, description, full_name
from proxylessnas.hardware.runtimes.files import checked_file
from proxylessnas.seeds import derive_seed

MS_PER_MAC = 5e-8
MS_PER_LAYER = 0.01
SPEED = {"f32": 1.0, "int8": 0.5}  # share of the latency in float32
MS_PER_CALL = 0.004  # once a session: the sum of blocks is more than the whole


@dataclass(kw_only=True)
class FakeRuntime:
    """Deterministic latencies; noise, slowness and failures only where asked for.

    noise: relative standard deviation of every timed run. slowdown: factor of all latencies.
    fails: a word in the class name of a module that cannot be loaded.
    stops_after: timed runs after which Ctrl-C is pressed. seed: of the noise.
    timed_runs, loaded: how many there were so far.
    """

    threads: int = 1
    noise: float = 0.0
    slowdown: float = 1.0
    fails: str | None = None
    stops_after: int | None = None
    seed: int = 0
    device: str = "fake device"
    version: str = "1"
    precision: str = "f32"
    name: str = field(default="fake", init=False)
    timed_runs: int = field(default=0, init=False)
    loaded: int = field(default=0, init=False)

    def describe(self) -> dict[str, str | int]:
        return description(self, version=self.version, device=self.device, precision=self.precision)

    def load(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Session:
        if self.fails and any(self.fails in type(m).__name__ for m in module.modules()):
            raise MeasurementError(f"the fake runtime was told to fail on {self.fails}")
        layers = sum(isinstance(m, nn.Linear | nn.modules.conv._ConvNd) for m in module.modules())
        return FakeSession(self, latency_ms(count_macs(module, inputs), layers), module, inputs)

    def load_file(
        self, path: str | Path, *, batch: int = 1, shapes: Mapping[str, Shape] | None = None
    ) -> Session:
        return FakeSession(self, latency_ms(*_onnx_work(path, batch)), file=Path(path))


def make_fake(*options: str, threads: int = 1, precision: str = "f32") -> FakeRuntime:
    """The runtime `fake`, which takes no options; in int8 it is twice as fast."""
    full_name("fake", options, ())
    if precision not in SPEED:
        raise MeasurementError(f"the fake runtime computes in f32 and int8, not in {precision}")
    return FakeRuntime(threads=threads, precision=precision)


class FakeSession(Session):
    """timed() returns what the clock of the fake device says."""

    def __init__(
        self,
        runtime: FakeRuntime,
        latency_ms: float,
        module: nn.Module | None = None,
        inputs: tuple[Tensor, ...] = (),
        file: Path | None = None,
    ) -> None:
        self.content = None if file is None else file.read_bytes()
        self.latency_ms = latency_ms * runtime.slowdown * SPEED[runtime.precision]
        self.runtime = runtime
        self.module, self.inputs = module, inputs
        runtime.loaded += 1
        stream = derive_seed(runtime.seed, "fake noise", runtime.loaded)
        self.random = np.random.default_rng(stream)

    def __call__(self) -> None: ...

    def run(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        if self.content is None:
            return super().run(arrays)
        opened = open_session(self.content)  # its time is made up, and what it computes is not
        return tuple(opened.run(None, feed_of(opened, named_inputs(arrays))))

    def outputs(self) -> tuple[Array, ...]:
        if self.module is None:
            raise MeasurementError("the fake runtime does not compute a file's outputs")
        return tuple(eager_outputs(self.module, self.inputs))

    def timed(self, repeat: int) -> float:
        runtime = self.runtime
        if runtime.timed_runs == runtime.stops_after:
            raise KeyboardInterrupt
        runtime.timed_runs += 1
        factor = max(0.1, 1 + runtime.noise * self.random.standard_normal())
        return repeat * factor * self.latency_ms / 1e3


def latency_ms(macs: int, layers: int) -> float:
    return MS_PER_CALL + MS_PER_MAC * macs + MS_PER_LAYER * layers


def _onnx_work(path: str | Path, batch: int) -> tuple[int, int]:
    """(MACs, weighted layers) of an ONNX file, so that a file costs as much as its module."""
    import onnx

    content = checked_file(path, ".onnx", "the fake runtime").read_bytes()
    with foreign(MeasurementError, f"{path} is not an ONNX file"):
        graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content)).graph
    if not graph.node:
        raise MeasurementError(f"{path} is not an ONNX file: it holds no graph")
    weights = {w.name: list(w.dims) for w in graph.initializer}
    shapes = {
        v.name: [d.dim_value or batch for d in v.type.tensor_type.shape.dim]
        for v in (*graph.value_info, *graph.output)
    }
    macs = layers = 0
    for node in graph.node:
        weight = weights.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type not in ("Conv", "Gemm", "MatMul") or weight is None:
            continue
        outputs = shapes[node.output[0]]
        # A convolution's weight is [out, in a group, height, width], a linear layer's [out, in].
        width = weight[0] if node.op_type == "Conv" else outputs[-1]
        macs += math.prod(weight) // width * math.prod(outputs)
        layers += 1
    return macs, layers
