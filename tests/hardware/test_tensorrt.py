"""TensorRT's runtime on a stand-in for its package: the calls of its documentation, on the CPU.

The stand-in computes with ONNX Runtime what an engine would, from and to the addresses it is given.
"""

from __future__ import annotations

import ctypes
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from proxylessnas.errors import MeasurementError
from proxylessnas.export.compare import eager_outputs
from proxylessnas.export.onnx import to_onnx
from proxylessnas.export.onnx_session import open_session
from proxylessnas.export.precision import noisy_feeds, quantised
from proxylessnas.hardware import runtimes
from proxylessnas.spaces.blocks import ConvBN, Head

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Tensor(types.SimpleNamespace):
    name: str
    shape: tuple[int, ...]
    dtype = "FLOAT"


class Network:
    def __init__(self) -> None:
        self.content, self.inputs = b"", list[Tensor]()

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]


class Parser:
    num_errors = 1

    def __init__(self, network: Network, logger: object) -> None:
        self.network = network

    def parse(self, content: bytes) -> bool:
        self.network.content = content
        try:
            graph = onnx.load_model_from_string(content).graph
        except Exception:
            return False
        for value in graph.input:
            dims = value.type.tensor_type.shape.dim
            shape = tuple(-1 if d.dim_param else d.dim_value for d in dims)
            self.network.inputs.append(Tensor(name=value.name, shape=shape))
        return True

    def get_error(self, index: int) -> str:
        return "In node 0: UNSUPPORTED_NODE"


class Config:
    def __init__(self) -> None:
        self.flags: list[str] = ["TF32"]

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def clear_flag(self, flag: str) -> None:
        self.flags.remove(flag)

    def add_optimization_profile(self, profile: Profile) -> None:
        self.profile = profile


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        assert least == best == most and min(best) > 0
        self.shapes[name] = tuple(best)


class Builder:
    built: ClassVar[list[tuple[bytes, list[str], dict[str, tuple[int, ...]]]]] = []

    def __init__(self, logger: object) -> None: ...

    def create_network(self, flags: int) -> Network:
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        self.built.append((network.content, config.flags, config.profile.shapes))
        return network.content


class Engine:
    def __init__(self, content: bytes) -> None:
        self.session = open_session(content)
        self.reads = [node.name for node in self.session.get_inputs()]
        self.names = [*(node.name for node in self.session.get_outputs()), *self.reads]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name in self.reads else "OUTPUT"

    def get_tensor_dtype(self, name: str) -> str:
        return "FLOAT"

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        feed = {n: np.zeros(s, np.float32) for n, s in self.shapes.items()}
        names = [node.name for node in self.engine.session.get_outputs()]
        outputs = dict(zip(names, self.engine.session.run(None, feed), strict=True))
        self.shapes[name] = outputs[name].shape
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def memory(self, name: str) -> Any:
        size = int(np.prod(self.shapes[name]))
        pointer = ctypes.cast(self.addresses[name], ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (size,)).reshape(self.shapes[name])

    def execute_async_v3(self, stream: int) -> bool:
        feed = {name: self.memory(name) for name in self.engine.reads}
        names = [node.name for node in self.engine.session.get_outputs()]
        for name, array in zip(names, self.engine.session.run(None, feed), strict=True):
            self.memory(name)[...] = array
        return True


class Loader:
    def __init__(self, logger: object) -> None: ...

    def deserialize_cuda_engine(self, plan: bytes) -> Engine:
        return Engine(plan)


def logger(level: int) -> object:
    return object()


class Stream:
    cuda_stream = 0

    def __init__(self, device: object) -> None: ...

    def synchronize(self) -> None: ...


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    flags = types.SimpleNamespace(TF32="TF32", FP16="FP16", INT8="INT8")
    trt = types.ModuleType("tensorrt")
    logger.ERROR = 0  # type: ignore[attr-defined]
    parts = {"Logger": logger, "Builder": Builder, "OnnxParser": Parser, "Runtime": Loader}
    parts |= {"BuilderFlag": flags, "TensorIOMode": types.SimpleNamespace(INPUT="INPUT")}
    trt.__dict__.update(parts, nptype=lambda kind: np.float32)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "10.3.0")
    trt.__spec__ = types.SimpleNamespace(name="tensorrt")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.delitem(sys.modules, f"{runtimes.__name__}.tensorrt", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Orin")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    Builder.built = []
    yield
    sys.modules.pop(f"{runtimes.__name__}.tensorrt", None)


def make(precision: str = "f32") -> Any:
    with pytest.warns(UserWarning, match="untested on a device"):
        runtime = runtimes.make("tensorrt", precision=precision)
    runtime.device = torch.device("cpu")  # type: ignore[attr-defined]
    return runtime


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(ConvBN(3, 8, 3, 2), Head(8, 16, 5)).eval()


@pytest.mark.parametrize(
    ("precision", "flags"), [("f32", []), ("fp16", ["FP16"]), ("int8", ["INT8"])]
)
def test_computes_what_eager_computes_in_its_precision(precision: str, flags: list[str]) -> None:
    runtime, module = make(precision), network()
    session = runtime.load(module, (IMAGE,))
    (got,), (expected,) = session.outputs(), eager_outputs(module, (IMAGE,))
    assert abs(got - expected).max() < (0.1 if precision == "int8" else 1e-4) * abs(expected).max()
    (got,) = session.run([IMAGE.numpy()[::-1].copy()])
    assert abs(got[::-1] - expected).max() < 0.1 * abs(expected).max()
    assert session.timed(2) > 0
    content, set_flags, shapes = Builder.built[-1]
    assert set_flags == flags and shapes == {}  # without TF32
    described = runtime.describe()
    assert (described["device"], described["precision"]) == ("Orin", precision)
    assert described["version"] == "10.3.0"
    if precision == "int8":  # TensorRT takes signed activations without zero points alone
        graph = onnx.load_model_from_string(content).graph
        zeros = [w for w in graph.initializer if "zero_point" in w.name]
        assert zeros and not any(onnx.numpy_helper.to_array(w).any() for w in zeros)
        assert {w.data_type for w in zeros} == {onnx.TensorProto.INT8}


def test_an_open_batch_of_a_file_is_fixed(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(to_onnx(network(), (IMAGE,)))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    session = make().load_file(path, batch=4)
    assert session.outputs()[0].shape == (4, 5)
    assert Builder.built[-1][2] == {"input": (4, 3, 16, 16)}
    assert session.file == "input 4x3x16x16 f32, weights f32"
    with pytest.raises(MeasurementError, match="file of f32, of which int8 is not made for tens"):
        make("int8").load_file(path)
    feeds = noisy_feeds({"input": IMAGE.numpy()})
    content = quantised(to_onnx(network(), (IMAGE,)), feeds, reduce_range=False, symmetric=True)
    path.write_bytes(content)
    assert make("int8").load_file(path, batch=2).precision == "int8"


def test_what_cannot_be_built_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x00" * 64)
    with pytest.raises(MeasurementError, match=r"cannot load .*broken\.onnx") as caught:
        make().load_file(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(MeasurementError, match=r"tensorrt computes in f32 and fp16 and int8"):
        runtimes.make("tensorrt", precision="bf16")


def test_without_a_device_the_kit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MeasurementError, match=r"no CUDA device here.*--export-kit"):
        runtimes.make("tensorrt")
