"""One network in several precisions, the whole and block by block, in the same rounds.

Whether int8 is faster depends on the processor, on its runtime and on the network: on some CPUs it
is slower than float. What one visit of a round measures in one precision is paired with what the
same round measures in another, so that a slow moment of the machine falls on both.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.config import MeasureSettings
from proxylessnas.errors import MeasurementError, foreign
from proxylessnas.export.onnx_blocks import block_files
from proxylessnas.hardware.measure import opened
from proxylessnas.hardware.plan import Measurable
from proxylessnas.hardware.runtimes import Runtime
from proxylessnas.hardware.runtimes.base import FloatShare, Session
from proxylessnas.hardware.timing import Measurement, ProgressCallback, measure_sessions

WHOLE = "the whole network"
WORTH = 0.98  # a ratio from here on pays nothing


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A latency over another, of the same rounds; low, high: 95 % of the median's error."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def paired_ratio(one: Measurement, other: Measurement) -> Ratio:
    """The latency of `one` over that of `other`, round by round.

    Raises:
        MeasurementError: they were not measured in the same rounds.
    """
    if len(one.samples_ms) != len(other.samples_ms):
        raise MeasurementError("two measurements of other rounds cannot be paired")
    ratios = [a / b for a, b in zip(one.samples_ms, other.samples_ms, strict=True)]
    middle = statistics.median(ratios)
    deviation = 1.4826 * statistics.median(abs(r - middle) for r in ratios)
    error = 1.96 * 1.2533 * deviation / math.sqrt(len(ratios))
    return Ratio(value=middle, low=middle - error, high=middle + error)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A network, or a block of one, in every precision.

    measured: precision -> measurement. floats: of the whole network in int8, what computes in
    float after all, see `Session.float_share`; None where the runtime does not tell.
    """

    name: str
    measured: Mapping[str, Measurement]
    floats: FloatShare | None = None

    def ratio(self, precision: str, over: str) -> Ratio:
        return paired_ratio(self.measured[precision], self.measured[over])


def compare_precisions(
    network: nn.Module | Path,
    inputs: tuple[Tensor, ...],
    runtimes: Mapping[str, Runtime],
    settings: MeasureSettings,
    *,
    seed: int,
    progress: ProgressCallback | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    blocks: bool = True,
) -> list[Compared]:
    """The whole network first, then its blocks, if they are asked for.

    The blocks of an ONNX file are what its nodes' names tell, with their reorders at the ends.

    runtimes: precision -> the runtime that computes in it. inputs: of a file, of its batch.
    settings: `network_rounds` for all, runs and warmup. shapes: see `measure_networks`.

    Raises:
        MeasurementError: a runtime cannot run it, or a file is of one precision alone.
    """
    subjects = {WHOLE: Measurable("the network", network, inputs, shapes or {})}
    sessions: dict[tuple[str, str], Session] = {}
    with ExitStack() as stack:
        if blocks and isinstance(network, nn.Module):
            subjects |= blocks_of(network, inputs)
        elif blocks and isinstance(network, Path) and network.suffix == ".onnx" and not shapes:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            with foreign(MeasurementError, f"the blocks of {network} cannot be told apart"):
                files = block_files(network, folder)
            subjects |= {n: Measurable(f"the block {n!r}", f, inputs) for n, f in files.items()}
        for precision, runtime in runtimes.items():
            loaded = stack.enter_context(
                opened(runtime, subjects.items(), count=len(subjects), progress=progress)
            )
            for name, session in loaded.items():
                if session.precision and session.precision != precision:
                    raise MeasurementError(
                        f"{network} is a file of {session.precision}, which cannot be measured in "
                        f"{precision}: leave --precision out, or give the float network"
                    )
                sessions[name, precision] = session
        whole = sessions.get((WHOLE, "int8"))
        floats = None if whole is None else whole.float_share()
        keys = {f"{name} in {precision}": (name, precision) for name, precision in sessions}
        named = {key: sessions[pair] for key, pair in keys.items()}
        visits = dict.fromkeys(named, settings.network_rounds)
        measured = measure_sessions(named, visits, settings, seed=seed, progress=progress)
    by_pair = {keys[key]: m for key, m in measured.items()}
    return [
        Compared(
            name=name,
            measured={
                p: replace(
                    by_pair[name, p],
                    environment={**by_pair[name, p].environment, "precision": p},
                )
                for p in runtimes
            },
            floats=floats if name == WHOLE else None,
        )
        for name in subjects
    ]


# --- the blocks ---


def blocks_of(network: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Measurable]:
    """The network's blocks by name, with the inputs that they have within it.

    A block is a child of the network, or of a plain list or sequence of larger parts in it. Blocks
    that take other than tensors, or run more than once, are left out.
    """
    calls: dict[str, list[tuple[Any, ...]]] = {}
    modules = dict(_expanded("", network))

    def remembered(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: Any) -> None:
            calls.setdefault(name, []).append((*arguments, *keywords.values()))

        return hook

    hooks = [
        module.register_forward_pre_hook(remembered(name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        with torch.no_grad():
            network.eval()(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: Measurable(f"the block {name!r}", modules[name], of_call[0])
        for name, of_call in calls.items()
        if len(of_call) == 1
        and all(isinstance(x, Tensor) for x in of_call[0])
        and _computes(modules[name])
    }


def _expanded(name: str, module: nn.Module) -> Sequence[tuple[str, nn.Module]]:
    """The module, or the blocks of which it is a plain list."""
    children = list(module.named_children())
    plain = not name or type(module) in (nn.Sequential, nn.ModuleList)
    if not children or not plain or not any(list(child.children()) for _, child in children):
        return [(name, module)]
    return [
        block
        for child_name, child in children
        for block in _expanded(f"{name}.{child_name}" if name else child_name, child)
    ]


def _computes(module: nn.Module) -> bool:
    """Whether it has weights: an identity takes no time, and a ratio of nothings says nothing."""
    return any(True for _ in module.parameters())
