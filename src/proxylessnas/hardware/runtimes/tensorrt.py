"""TensorRT on an NVIDIA device, through its Python package; untested on a device.

Written after the documentation of TensorRT 10 and tested on a stand-in for it. A device that is
elsewhere (a Jetson, say) is measured by a kit: `measure --export-kit --runtime tensorrt`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorrt as trt
import torch
from torch import Tensor, nn

from proxylessnas.errors import MeasurementError, foreign
from proxylessnas.export.onnx import to_onnx
from proxylessnas.export.onnx_session import named_inputs
from proxylessnas.export.precision import noisy_feeds, quantised
from proxylessnas.hardware.networks import stand_in
from proxylessnas.hardware.runtimes.base import Array, OfPackage, Session, Shape
from proxylessnas.hardware.runtimes.files import (
    FileInput,
    checked_file,
    full_shapes,
    in_words,
    weights_of,
)

UNTESTED = "the runtime tensorrt is untested on a device: compare its first figures with trtexec's"
LOGGER = trt.Logger(trt.Logger.ERROR)


class TensorRt(OfPackage):
    """tensorrt: float32 (without TF32), fp16 or int8 on the first NVIDIA device."""

    base = package = "tensorrt"
    precisions = ("f32", "fp16", "int8")

    def __init__(self, *options: str, threads: int = 1, precision: str = "f32") -> None:
        super().__init__(*options, threads=threads, precision=precision)
        if not torch.cuda.is_available():
            raise MeasurementError(
                "tensorrt: PyTorch finds no CUDA device here; of a device that is elsewhere: "
                "proxylessnas measure --export-kit kit.zip --runtime tensorrt"
            )
        self.device = torch.device("cuda")
        warnings.warn(UNTESTED, stacklevel=2)

    def device_name(self) -> str:
        return torch.cuda.get_device_name()

    def load(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Session:
        arrays = named_inputs([x.detach().cpu().numpy() for x in inputs])
        content = to_onnx(module, inputs)
        if self.precision == "int8":  # of which TensorRT reads the scales in the file
            feeds = noisy_feeds(arrays)
            content = quantised(content, feeds, reduce_range=False, symmetric=True)
        with foreign(MeasurementError, "tensorrt cannot run the network"):
            return _Session(self._built(*_parsed(content), {}), arrays, self.device)

    def load_file(
        self, path: str | Path, *, batch: int = 1, shapes: Mapping[str, Shape] | None = None
    ) -> Session:
        path = checked_file(path, ".onnx", "tensorrt")
        with foreign(MeasurementError, f"tensorrt cannot load {path}"):
            builder, network = _parsed(path.read_bytes())
            inputs = [_file_input(network.get_input(i)) for i in range(network.num_inputs)]
            full = full_shapes(inputs, batch, shapes or {}, str(path))
            weights = weights_of(path)
            if self.precision == "int8" and weights != "int8":
                raise MeasurementError(
                    f"{path} is a file of {weights}, of which int8 is not made for tensorrt: "
                    "measure the network itself"
                )
            arrays = {x.name: stand_in(full[x.name], x.dtype) for x in inputs}
            session = _Session(self._built(builder, network, full), arrays, self.device)
        session.precision = weights
        session.file = in_words(inputs, full, weights)
        return session

    def _built(self, builder: Any, network: Any, shapes: Mapping[str, Shape]) -> Any:
        """The engine of a network; shapes: of its inputs, of which dimensions may be open."""
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape, shape, shape)
        config.add_optimization_profile(profile)
        config.clear_flag(trt.BuilderFlag.TF32)
        for precision, flag in (("fp16", trt.BuilderFlag.FP16), ("int8", trt.BuilderFlag.INT8)):
            if precision == self.precision:
                config.set_flag(flag)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ValueError("no engine can be built of it")
        return trt.Runtime(LOGGER).deserialize_cuda_engine(plan)


def _parsed(content: bytes) -> tuple[Any, Any]:
    """A builder, and the network of an ONNX file."""
    builder = trt.Builder(LOGGER)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, LOGGER)
    if not parser.parse(content):
        reasons = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise ValueError("; ".join(reasons) or "its parser refuses the file")
    return builder, network


def _file_input(node: Any) -> FileInput:
    return FileInput(name=node.name, shape=tuple(node.shape), dtype=trt.nptype(node.dtype).__name__)


class _Session(Session):
    """An engine with its inputs and outputs in the device's memory."""

    def __init__(self, engine: Any, arrays: Mapping[str, Array], device: torch.device) -> None:
        self.engine, self.context = engine, engine.create_execution_context()
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.tensors: dict[str, Tensor] = {}
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        reads = {n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT}
        for name in sorted(names, key=lambda name: name not in reads):
            if name in reads:
                self.tensors[name] = torch.from_numpy(arrays[name]).to(device).contiguous()
                self.context.set_input_shape(name, tuple(self.tensors[name].shape))
            else:  # its shape follows from the inputs'
                dtype = getattr(torch, trt.nptype(engine.get_tensor_dtype(name)).__name__)
                shape = tuple(self.context.get_tensor_shape(name))
                self.tensors[name] = torch.empty(shape, dtype=dtype, device=device)
            self.context.set_tensor_address(name, self.tensors[name].data_ptr())
        self.reads = reads
        torch.cuda.synchronize()
        self()

    def __call__(self) -> None:
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise MeasurementError("tensorrt did not run the network")
        self.stream.synchronize()

    def run(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        for name, array in named_inputs(arrays).items():
            if name in self.reads:
                self.tensors[name].copy_(torch.from_numpy(array))
        torch.cuda.synchronize()
        return self.outputs()

    def outputs(self) -> tuple[Array, ...]:
        self()
        return tuple(x.cpu().numpy() for n, x in self.tensors.items() if n not in self.reads)
