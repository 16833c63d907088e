"""Which way of computing makes weight steps fastest here, found by trying.

A probe makes a search that may be spoiled, on a machine with the settings to be tried. Its steps
are timed by `clock`, in seconds.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Protocol

import torch

from proxylessnas.config import MachineSettings
from proxylessnas.training.device import fastest, wait


class Probed(Protocol):
    """What a trial takes steps of: a search that may be spoiled."""

    step: int
    supernet: Any

    def prepare(self) -> object: ...

    def weight_step(self) -> object: ...


Probe = Callable[[MachineSettings], Probed]
Clock = Callable[[], float]

FORMATS: tuple[Literal["contiguous"], Literal["channels_last"]] = ("contiguous", "channels_last")
PROBE_STEPS = 3
# Of a compiled candidate: weights learning, weights frozen, no gradient at all; each for whole
# batches and for the last, smaller one.
GRAPHS = 6
WORTH_SPLITTING, WORTH_FUSING = 200.0, 1500.0  # seconds of weight steps; trials take 1 and 15
NOISE = 0.98  # what is called faster takes less than this share of the time
WORTH_COMPILING = 1800.0  # seconds of weight steps: compiling takes minutes by itself


def best(
    machine: MachineSettings,
    probe: Probe,
    *,
    rounds: int,
    steps: int,
    lasts: Callable[[float], float],
) -> MachineSettings:
    """The settings with everything that they leave open decided, one after the other."""
    chosen = quickest(machine, probe, rounds=rounds)
    chosen = layers(chosen, probe, lasts=lasts, rounds=rounds)
    return compiling(chosen, probe, steps=steps)


def quickest(
    machine: MachineSettings, probe: Probe, *, rounds: int, clock: Clock = time.perf_counter
) -> MachineSettings:
    """The settings, with what they leave open chosen so that weight steps are fastest here.

    That is the memory format, and on a GPU the precision: few CPUs gain by bfloat16, and
    theirs is set by hand.

    As many rounds as there are candidates run them all. A variant in which one fails (a `view`
    of channels_last, a loss that bfloat16 forbids) is out; where all are, the search itself will
    say what is wrong.
    """
    variants = variants_of(machine)
    if len(variants) == 1:
        return variants[0]
    trials = {str(i): Trial(_uncompiled(probe, on)) for i, on in enumerate(variants)}
    seconds = _timed(trials, rounds=rounds, clock=clock)
    running = [i for i, trial in trials.items() if not trial.failed] or ["0"]
    return variants[int(min(running, key=lambda i: seconds[i]))]


def variants_of(machine: MachineSettings) -> list[MachineSettings]:
    """What `quickest` can choose where the settings leave something open; the plainest first."""
    variants = [replace(machine, autocast=bool(machine.autocast))]
    if machine.memory_format == "auto":
        formats = FORMATS[1:] if machine.fused_batch_norm else FORMATS
        variants = [replace(m, memory_format=layout) for layout in formats for m in variants]
    if machine.autocast is None and machine.device.startswith("cuda"):
        variants += [replace(m, autocast=True) for m in variants]
    return variants


def layers(
    machine: MachineSettings,
    probe: Probe,
    *,
    lasts: Callable[[float], float],
    rounds: int = PROBE_STEPS,
    clock: Clock = time.perf_counter,
) -> MachineSettings:
    """The settings with `depthwise_strips` and `fused_batch_norm` decided: what makes steps faster.

    lasts: seconds of the whole search, of the seconds of a weight step; where it is shorter than
    what makes a trial worth it, nothing is tried. rounds: as in `quickest`.
    """
    found = replace(
        machine,
        depthwise_strips=bool(machine.depthwise_strips),
        fused_batch_norm=bool(machine.fused_batch_norm),
    )
    if not may_speed_up(machine):
        return found
    length = lasts(_timed({"": Trial(_uncompiled(probe, found))}, clock=clock)[""])
    if machine.depthwise_strips is None and length >= WORTH_SPLITTING:
        found = _faster(found, replace(found, depthwise_strips=True), probe, rounds, clock)
    fuses = machine.memory_format == "channels_last" and length >= WORTH_FUSING
    if machine.fused_batch_norm is None and fuses:
        found = _faster(found, replace(found, fused_batch_norm=True), probe, rounds, clock)
    return found


def _faster(
    plain: MachineSettings, other: MachineSettings, probe: Probe, rounds: int, clock: Clock
) -> MachineSettings:
    trials = {"plain": Trial(_uncompiled(probe, plain)), "other": Trial(_uncompiled(probe, other))}
    seconds = _timed(trials, rounds=rounds, clock=clock)
    gained = seconds["other"] < NOISE * seconds["plain"]
    return other if gained and not trials["other"].failed else plain


def _uncompiled(probe: Probe, on: MachineSettings) -> Callable[[], Probed]:
    """Compiling candidates takes minutes, and would fall into what is timed."""
    return partial(probe, replace(on, compile=False))


def may_speed_up(machine: MachineSettings) -> bool:
    """Whether something is left open."""
    return machine.depthwise_strips is None or machine.fused_batch_norm is None


def may_compile(machine: MachineSettings) -> bool:
    """On GPUs alone: on CPUs it gained nothing (docs/log.md), and is set by hand."""
    return machine.compile is None and machine.device.startswith("cuda")


def compiling(
    machine: MachineSettings, probe: Probe, *, steps: int, clock: Clock = time.perf_counter
) -> MachineSettings:
    """The settings with `compile` decided: whether it saves more seconds than it takes.

    One candidate of every choice is compiled and its steps are timed beside eager
    ones; compiling the others is taken to cost as much each. What fails stays eager.

    steps: weight steps of the whole search.
    """
    plain = replace(machine, compile=bool(machine.compile))
    if not may_compile(machine) or not steps:
        return plain
    eager = Trial(partial(_one_path, probe, plain))
    if _timed({"": eager}, clock=clock)[""] * steps < WORTH_COMPILING or not eager.job:
        return plain
    compiled = Trial(partial(_one_path, probe, replace(machine, compile=True)))
    start = clock()
    compiled()
    wait()
    cost = (clock() - start) * eager.job.supernet.mask.shape[1] * GRAPHS
    seconds = _timed({"eager": eager, "compiled": compiled}, clock=clock)
    saved = (seconds["eager"] - seconds["compiled"]) * steps
    return replace(machine, compile=not compiled.failed and saved > cost)


def _one_path(probe: Probe, on: MachineSettings) -> Probed:
    """A search over the largest candidate of every choice alone."""
    job = probe(on)
    supernet = job.supernet
    only = torch.zeros_like(supernet.mask)
    for row, largest in zip(only, supernet.largest(), strict=True):
        row[largest] = True
    supernet.mask = only
    return job


def _timed(
    trials: Mapping[str, Trial], *, rounds: int = PROBE_STEPS, clock: Clock
) -> dict[str, float]:
    """Seconds of a step of each."""
    gc.collect()  # searches refer to themselves: those of the trials before would stay for a while
    with warnings.catch_warnings():  # of losses that are not finite; the search gives them again
        warnings.simplefilter("ignore")
        return fastest(trials, rounds=rounds, clock=clock)


class Trial:
    """Weight steps of a search that is made for it; it stops at its first failure."""

    def __init__(self, make: Callable[[], Probed]) -> None:
        self.make, self.failed = make, False
        self.job: Probed | None = None

    def __call__(self) -> None:
        if self.failed:
            return
        try:
            if self.job is None:
                self.job = self.make()
                self.job.prepare()  # for good
            self.job.weight_step()
            self.job.step += 1
        except Exception:  # whatever a model raises in one way of computing and not in another
            self.failed, self.job = True, None
