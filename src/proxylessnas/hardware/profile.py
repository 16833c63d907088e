"""The second way to a latency table: ONNX Runtime's own time of every node.

A few homogeneous networks (candidate 0 everywhere, candidate 1 everywhere, ...) hold every
candidate between them. The exporter names every node after its module, and the runtime's
profile says how long each node took inside the whole network, with the caches as they are
there. What the runtime spends between nodes is missing, and the fit to whole networks puts
it back. Whole networks are measured beside, in the same rounds, without a profile.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from proxylessnas.config import MeasureSettings
from proxylessnas.core.supernet import Residual, Supernet
from proxylessnas.errors import MeasurementError
from proxylessnas.export.onnx import to_onnx
from proxylessnas.export.quiet import one_thread
from proxylessnas.hardware.measure import describe, earlier, load
from proxylessnas.hardware.nodes import node_times
from proxylessnas.hardware.plan import assemble, known_samples, make_plan
from proxylessnas.hardware.runtimes.base import Session
from proxylessnas.hardware.runtimes.onnxruntime import OnnxRuntime, feed_of
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.timing import Measurement, Progress, measure_all
from proxylessnas.hardware.trace import Trace, trace


def profile_table(
    supernet: Supernet,
    example_inputs: tuple[Tensor, ...],
    settings: MeasureSettings,
    *,
    seed: int,
    progress: Progress | None = None,
    path: Path | None = None,
    force: bool = False,
) -> LatencyTable:
    """A table like `measure_table`'s for ONNX Runtime, its blocks from per-node profiles.

    path, force: as of `measure_table`; but it takes a minute, and what is broken off begins anew.

    Raises:
        MeasurementError: a mixed operation is called with inputs of different shapes, or the
            profile does not name the nodes of a candidate.
    """
    runtime = OnnxRuntime(threads=settings.threads)
    with one_thread():
        found = trace(supernet, example_inputs)
        plan = make_plan(supernet, found, settings, seed=seed)
    device = {**describe(runtime, example_inputs), "method": "profile"}
    before = earlier(path, device, force=force)
    known = known_samples(before, plan)
    if before is not None and all(len(known.get(k, ())) >= n for k, n in plan.visits.items()):
        return before
    networks = [key for key in plan.visits if key not in found.units]
    widest = max(map(len, supernet.candidates))
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        sessions: dict[str, Session] = {}
        for key in networks:
            with one_thread():
                sessions[key] = load(key, plan, supernet, found, runtime)
            stack.callback(sessions[key].close)
        profiled = []
        for j in range(widest):
            indices = [min(j, len(c) - 1) for c in supernet.candidates]
            with one_thread():
                module = supernet.derive(indices).eval()
                os.mkdir(f"{folder}/{j}")
                session = _Profiled(module, found.inputs, runtime, f"{folder}/{j}")
            sessions[f"profile {j}"] = session
            profiled.append((indices, session))
        measured = measure_all(
            sessions,
            rounds={k: plan.visits.get(k, settings.rounds) for k in sessions},
            runs=settings.runs,
            warmup=settings.warmup,
            seed=seed,
            progress=progress,
            canary=plan.canary,
            threads=settings.threads,
        )
        result = {key: measured[key] for key in networks}
        environment = measured["profile 0"].environment
        for indices, session in profiled:
            for key, samples in _units(supernet, found, indices, session, settings.runs).items():
                seen = (*result[key].samples_ms, *samples) if key in result else tuple(samples)
                result[key] = Measurement(samples_ms=seen, environment=environment)
    table = assemble(plan, device, result, before)
    if path is not None:
        table.save(path)
    return table


class _Profiled(Session):
    """A session that keeps every node's time, and which inferences were the timed ones."""

    def __init__(
        self, module: nn.Module, inputs: tuple[Tensor, ...], runtime: OnnxRuntime, folder: str
    ) -> None:
        self._session = runtime.open(to_onnx(module, inputs), profile=f"{folder}/profile")
        self._feed = feed_of(self._session, [x.cpu().numpy() for x in inputs])
        self.count, self.timed_runs = 0, list[int]()

    def __call__(self) -> None:
        self._session.run(None, self._feed)
        self.count += 1

    def timed(self, repeat: int) -> float:
        self.timed_runs.extend(range(self.count, self.count + repeat))
        return super().timed(repeat)

    def outputs(self) -> tuple[np.ndarray[Any, Any], ...]:
        return tuple(self._session.run(None, self._feed))

    def runs(self) -> list[dict[str, float]]:
        """Of every timed inference: node -> ms. Ends the profile."""
        runs = node_times(self._session)
        return [
            {f"{name} {i}": ms for i, (name, _, ms) in enumerate(runs[k])} for k in self.timed_runs
        ]


def _units(
    supernet: Supernet,
    found: Trace,
    indices: Sequence[int],
    session: _Profiled,
    runs_a_visit: int,
) -> dict[str, list[float]]:
    """Key -> a sample in ms for every visit, of the candidates in one homogeneous network."""
    settling = 3  # timed runs of `rounds.settle`
    runs = session.runs()[settling:]
    samples: dict[str, list[float]] = {}
    for m, (name, j) in enumerate(zip(supernet.names, indices, strict=True)):
        keys = found.keys[m][j]
        if not keys:
            continue
        if len(set(keys)) > 1:
            raise MeasurementError(
                f"the mixed operation {name!r} is called with inputs of different shapes, which a "
                "profile cannot tell apart: measure its blocks alone"
            )
        scope = scope_of(supernet.model, name)
        times = [_inside(run, scope) / len(keys) for run in runs]
        if not times or min(times) <= 0:
            raise MeasurementError(
                f"the profile of onnxruntime names no node of {name!r} (under {scope!r}): "
                "measure its blocks alone"
            )
        visits = [times[i : i + runs_a_visit] for i in range(0, len(times), runs_a_visit)]
        samples.setdefault(keys[0], []).extend(statistics.median(visit) for visit in visits)
    return samples


def _inside(run: Mapping[str, float], scope: str) -> float:
    return sum(ms for node, ms in run.items() if node.startswith(scope))


def scope_of(model: nn.Module, name: str) -> str:
    """The exporter's prefix of the nodes of a unit: `blocks.1.branch` -> `/blocks/blocks.1/`.

    Containers that are never called, as ModuleList, have no scope of their own; a number is
    appended to the name of what it is a part of. Where a `Residual` owns the mixed operation,
    the unit is the `Residual`.
    """
    parts = name.split(".")
    parent = model.get_submodule(".".join(parts[:-1]))
    if isinstance(parent, Residual):
        parts = parts[:-1]
    words: list[str] = []
    module, label = model, ""
    for part in parts:
        module = module.get_submodule(part)
        label = f"{label}.{part}" if part.isdigit() and label else part
        if not isinstance(module, nn.ModuleList | nn.ModuleDict):
            words.append(label)
    return "/" + "/".join(words) + "/"
