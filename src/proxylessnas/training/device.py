"""Where tensors live, in which memory format and precision; chosen once, then recorded."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from proxylessnas.config import MachineSettings
from proxylessnas.errors import ConfigError
from proxylessnas.io.process import keep_freed_memory, usable_cpus
from proxylessnas.training.kernels import speed_up
from proxylessnas.training.kernels.fitting import apart

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Machine:
    """Where tensors live and how they compute."""

    device: torch.device = CPU
    channels_last: bool = False
    autocast: bool = False
    compile: bool = False
    depthwise_strips: bool = False
    fused_batch_norm: bool = False

    @property
    def is_apart(self) -> bool:
        """Whether the device computes by itself while the host goes on: asking it means waiting."""
        return self.device.type != "cpu"

    def put(self, batch: Any) -> Any:
        """A batch on the device, images in the chosen memory format, without waiting."""
        return pytree.tree_map_only(Tensor, self._put, batch)

    def _put(self, tensor: Tensor) -> Tensor:
        as_images = self.channels_last and tensor.dim() == 4
        memory_format = torch.channels_last if as_images else torch.preserve_format
        if self.device.type == "cuda" and not tensor.is_cuda:
            tensor = tensor.pin_memory()  # or the copy would wait for the device after all
        return tensor.to(self.device, non_blocking=True, memory_format=memory_format)

    def place(self, model: nn.Module) -> nn.Module:
        model.to(self.device)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        return model

    def prepare(
        self,
        model: nn.Module,
        candidates: Sequence[nn.Module] = (),
        *,
        frozen_statistics: bool = False,
    ) -> Callable[[], None]:
        """Let the model train as this machine does best; returns what undoes it.

        frozen_statistics: normalisations keep the statistics they have, see `kernels.folding`.

        Its weights, its state and copies of it, as `derive` makes them, know nothing of that.

        Raises:
            ConfigError: no kernel can be compiled here.
        """
        # What is compiled keeps the calls it was compiled with, and cannot be folded.
        compiled = [] if frozen_statistics else self._compiled(candidates)
        inside = {m for candidate in compiled for m in candidate.modules()}
        others = [m for m in model.modules() if m not in inside]
        slow_down = speed_up(
            others,
            depthwise_strips=self.depthwise_strips,
            fused_batch_norm=self.fused_batch_norm,
            frozen_statistics=frozen_statistics,
        )
        for candidate in compiled:
            candidate.compile(**apart())

        def undo() -> None:
            slow_down()
            for candidate in compiled:
                candidate._compiled_call_impl = None

        return undo

    def _compiled(self, candidates: Sequence[nn.Module]) -> list[nn.Module]:
        """Those that torch.compile compiles, each by itself, if this machine does that.

        The gates between them stay plain Python. What has no parameter computes next to nothing and
        stays as it is.
        """
        if not self.compile:
            return []
        free = [c for c in candidates if c._compiled_call_impl is None]
        return [c for c in free if any(True for _ in c.parameters())]

    def seed(self, seed: int) -> None:
        """Seed the generators that the model draws from here.

        `torch.manual_seed` would seed those of every kind of device, and for those that are
        not there keep a formatted stack: a millisecond or two of each step.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast)


def make_machine(settings: MachineSettings) -> Machine:
    """The machine that the settings name; what they leave open is contiguous and float32 here.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"machine.device is {name}, but torch sees no GPU; use cpu or auto")
    for switch in ("depthwise_strips", "fused_batch_norm"):
        if getattr(settings, switch) and not name.startswith("cpu"):
            raise ConfigError(
                f"machine.{switch} is true, but it works on CPUs alone and machine.device is "
                f"{name}; leave it out"
            )
    if settings.threads is not None:
        if settings.threads > usable_cpus():
            warnings.warn(
                f"machine.threads is {settings.threads}, and there are {usable_cpus()} cores: more "
                "threads than cores make every step slower",
                stacklevel=2,
            )
        torch.set_num_threads(settings.threads)
    keep_freed_memory()
    return Machine(
        device=torch.device(name),
        channels_last=settings.memory_format == "channels_last" or bool(settings.fused_batch_norm),
        autocast=bool(settings.autocast),
        compile=bool(settings.compile),
        depthwise_strips=bool(settings.depthwise_strips),
        fused_batch_norm=bool(settings.fused_batch_norm),
    )


def wait() -> None:
    """Until the GPU has done what it was given: its clock runs by itself."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def fastest(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Seconds of each variant: medians of interleaved runs, after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        for name, variant in variants.items():
            wait()
            start = clock()
            variant()
            wait()
            if round_:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}
