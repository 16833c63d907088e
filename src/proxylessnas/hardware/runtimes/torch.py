"""Eager PyTorch on a CPU or on CUDA, BN folded into the convolutions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from proxylessnas.errors import MeasurementError, foreign
from proxylessnas.export.fold import fold
from proxylessnas.hardware.host import cpu_model
from proxylessnas.hardware.runtimes.base import Session, Shape, description, full_name

OPTIONS = ("channels_last", "cuda", "graph")


class TorchRuntime:
    """torch, torch:channels_last, torch:cuda, or torch:cuda,graph (CUDA graph replay)."""

    def __init__(self, *options: str, threads: int = 1) -> None:
        self.name = full_name("torch", options, OPTIONS)
        self.options, self.threads = options, threads
        self.device = torch.device("cuda" if "cuda" in options else "cpu")
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise MeasurementError("torch:cuda: this machine has no CUDA device; use torch")
        if "graph" in options and self.device.type != "cuda":
            raise MeasurementError("torch:graph is CUDA graph replay: write torch:cuda,graph")

    def describe(self) -> dict[str, str | int]:
        cuda = self.device.type == "cuda"
        device = torch.cuda.get_device_name() if cuda else cpu_model()
        return description(self, version=torch.__version__, device=device)

    def load(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Session:
        network = fold(module, len(inputs)).to(self.device)
        arguments = tuple(x.detach().to(self.device) for x in inputs)
        if "channels_last" in self.options:
            network = network.to(memory_format=torch.channels_last)
            arguments = tuple(
                x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
                for x in arguments
            )
        with foreign(MeasurementError, "torch cannot run it"):
            if self.device.type == "cuda":
                return _CudaSession(network, arguments, graph="graph" in self.options)
            session = _CpuSession(network, arguments, self.threads)
            session()
            return session

    def load_file(
        self, path: str | Path, *, batch: int = 1, shapes: Mapping[str, Shape] | None = None
    ) -> Session:
        raise MeasurementError(
            f"the runtime torch measures modules, not files such as {path}: "
            "use onnxruntime for a .onnx file"
        )


class _CpuSession(Session):
    def __init__(self, network: nn.Module, inputs: tuple[Tensor, ...], threads: int) -> None:
        self.network: Callable[..., Any] = network
        self.inputs, self.threads = inputs, threads

    def __call__(self) -> None:
        self._run()

    def _run(self) -> Any:
        with torch.inference_mode():
            return self.network(*self.inputs)

    def timed(self, repeat: int) -> float:
        before = torch.get_num_threads()
        if before == self.threads:
            return super().timed(repeat)
        torch.set_num_threads(self.threads)
        try:
            return super().timed(repeat)
        finally:
            torch.set_num_threads(before)

    def outputs(self) -> tuple[np.ndarray[Any, Any], ...]:
        leaves = pytree.tree_leaves(self._run())
        return tuple(v.cpu().numpy().copy() for v in leaves if isinstance(v, Tensor))


class _CudaSession(_CpuSession):
    """Timed by events around each inference, each synchronised."""

    def __init__(self, network: nn.Module, inputs: tuple[Tensor, ...], *, graph: bool) -> None:
        super().__init__(network, inputs, 1)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # a capture needs warm libraries on another stream
            for _ in range(3):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        if graph:
            self.graph = torch.cuda.CUDAGraph()
            with torch.inference_mode(), torch.cuda.graph(self.graph):
                self.captured = self.network(*self.inputs)
        torch.cuda.synchronize()

    def __call__(self) -> None:
        if self.graph is None:
            self._run()
        else:
            self.graph.replay()
        torch.cuda.synchronize()

    def timed(self, repeat: int) -> float:
        total_ms = 0.0
        for _ in range(repeat):
            self.start.record()
            if self.graph is None:
                self._run()
            else:
                self.graph.replay()
            self.end.record()
            self.end.synchronize()
            total_ms += self.start.elapsed_time(self.end)
        return total_ms / 1e3
