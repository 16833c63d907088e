"""ExecuTorch with XNNPACK: PyTorch's own runtime for phones, here on this CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.errors import MeasurementError, foreign
from proxylessnas.export.executorch import is_int8, loaded, to_executorch
from proxylessnas.export.executorch_nodes import float_nodes
from proxylessnas.export.precision import noisy_inputs
from proxylessnas.export.quiet import quietly
from proxylessnas.hardware.networks import stand_in
from proxylessnas.hardware.runtimes.base import Array, FloatShare, OfPackage, Session, Shape
from proxylessnas.hardware.runtimes.files import FileInput, checked_file, full_shapes, in_words
from proxylessnas.io.native import native_away


class ExecuTorch(OfPackage):
    """executorch: float32 or int8 on the CPU. An export of a network takes half a minute."""

    base = package = "executorch"

    def load(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Session:
        noise = noisy_inputs(inputs) if self.precision == "int8" else None
        content = to_executorch(module, inputs, noise)
        with foreign(MeasurementError, "executorch cannot run the network"), native_away():
            return _Session(content, inputs, self.threads)

    def load_file(
        self, path: str | Path, *, batch: int = 1, shapes: Mapping[str, Shape] | None = None
    ) -> Session:
        path = checked_file(path, ".pte", "executorch")
        with foreign(MeasurementError, f"executorch cannot load {path}"), native_away():
            content = path.read_bytes()
            in_int8, inputs = is_int8(content), _inputs(loaded(content))
        if self.precision == "int8" and not in_int8:
            raise MeasurementError(
                f"{path} does not say that it is in int8, which a .pte file is made in: export "
                "the network anew, or leave --precision out"
            )
        full = full_shapes(inputs, batch, shapes or {}, str(path))
        tensors = tuple(torch.from_numpy(stand_in(full[x.name], x.dtype)) for x in inputs)
        with foreign(MeasurementError, f"executorch cannot run {path}"), native_away():
            session = _Session(content, tensors, self.threads)
        session.precision = "int8" if in_int8 else ""
        session.file = in_words(inputs, full, session.precision)
        return session


def _inputs(method: Any) -> list[FileInput]:
    """The inputs of a file, which has no names for them."""
    metadata = method.metadata
    metas = [metadata.input_tensor_meta(i) for i in range(metadata.num_inputs())]
    kinds = {6: "float32", 3: "int32", 4: "int64", 0: "uint8", 1: "int8", 5: "float16"}
    return [
        FileInput(name=f"input_{i}", shape=tuple(meta.sizes()), dtype=kinds[int(meta.dtype())])
        for i, meta in enumerate(metas)
    ]


@dataclass
class _Pool:
    """The pool of threads, which is one for the process and by default as large as the machine.

    A method holds a pointer to the pool that it was loaded with: of another one it crashes, as soon
    as somebody else has the memory.

    resets: how often the pool became another one.
    """

    threads: int = 0
    resets: int = 0

    def of(self, threads: int) -> int:
        """Which pool this is, made so large where it is not."""
        if self.threads != threads:
            from executorch.extension.pybindings import portable_lib

            with quietly():  # in a notebook, too, where it writes by Python's stream
                portable_lib._unsafe_reset_threadpool(threads)
            self.threads, self.resets = threads, self.resets + 1
        return self.resets


_POOL = _Pool()


class _Session(Session):
    def __init__(self, content: bytes, inputs: tuple[Tensor, ...], threads: int) -> None:
        self.content, self.threads, self.pool = content, threads, -1
        self.inputs = [x.detach().cpu().contiguous() for x in inputs]
        self()

    def __call__(self) -> None:
        self._execute(self.inputs)

    def _execute(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """On the pool of this session's threads, with a method that was loaded on it."""
        pool = _POOL.of(self.threads)
        if self.pool != pool:
            self.method, self.pool = loaded(self.content), pool
        outputs: Sequence[Tensor] = self.method.execute(inputs)
        return outputs

    def float_share(self) -> FloatShare | None:
        nodes = float_nodes(self.content)
        return None if nodes is None else {name: (count, None) for name, count in nodes.items()}

    def run(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        tensors = [torch.from_numpy(array) for array in arrays]
        return tuple(value.numpy().copy() for value in self._execute(tensors))

    def outputs(self) -> tuple[Array, ...]:
        return tuple(value.numpy().copy() for value in self._execute(self.inputs))
