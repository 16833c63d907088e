"""What is chosen by trying it on this machine, once, and then recorded with the settings.

The memory format (on a GPU the precision and compilation too) is whichever makes weight steps
faster here. Trials take a hundredth of the search at most: on some images of a batch, and not at
all before a short search. From then on a run repeats by its settings, whatever the machine does.
"""

from __future__ import annotations

import operator
import time
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from proxylessnas.config import MachineSettings
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.supernet import Supernet
from proxylessnas.io.console import duration
from proxylessnas.session.session import Session
from proxylessnas.session.trials import (
    BUILT_IN,
    on_copies,
    share_of_batch,
    trial_batch,
    undisturbed,
)
from proxylessnas.training.autotune import (
    PROBE_STEPS,
    best,
    may_compile,
    may_speed_up,
    variants_of,
)
from proxylessnas.training.kernels import gains

WORTH_A_TRIAL = 100  # times as many weight steps as trying all variants takes


def tune(session: Session, planned: int | None = None) -> MachineSettings:
    """The machine settings with nothing left open; what pays is tried on copies.

    The memory format matters to images alone. What a trial cannot copy, such as a counter that
    the loss function keeps, sees its steps too.

    planned: weight steps of the search, where its settings do not say.
    """
    config, supernet = session.config, session.supernet
    machine = _explicit(config.machine, session.machine.device, supernet)
    built_in = config.space in BUILT_IN
    if _decided(machine):
        return _settled(machine)
    # Of other models all candidates are tried: some may fail in a format.
    rounds = PROBE_STEPS if built_in else int(supernet.mask.sum(1).max())
    steps = _steps(session) if planned is None else planned
    share = share_of_batch(session)
    if steps < WORTH_A_TRIAL * len(variants_of(machine)) * (rounds + 1) * share:
        return _settled(machine, built_in=built_in)
    batch = trial_batch(session)
    if not any(isinstance(x, Tensor) and x.dim() == 4 for x in pytree.tree_leaves(batch)):
        machine = replace(_settled(machine), autocast=machine.autocast, compile=machine.compile)
    if _decided(machine):
        return _settled(machine)
    session.reporter.say("trying how weight steps are fastest: memory format, precision, kernels")
    start = time.monotonic()

    def chosen() -> dict[str, Any]:
        with undisturbed(session):
            probe = on_copies(session, batch)
            lasts = partial(operator.mul, steps / share)
            return asdict(best(machine, probe, rounds=rounds, steps=steps, lasts=lasts))

    tried = MachineSettings(**session.ranks.of_main(chosen))  # rank 0's times are what counts
    session.reporter.say(
        f"  {tried.memory_format.replace('_', ' ')}, tried in {duration(time.monotonic() - start)}"
    )
    return tried


def untried_machine(session: Session) -> MachineSettings:
    """What `tune` takes where a trial does not pay."""
    machine = _explicit(session.config.machine, session.machine.device, session.supernet)
    return _settled(machine, built_in=session.config.space in BUILT_IN)


def _settled(machine: MachineSettings, *, built_in: bool = False) -> MachineSettings:
    """The settings with the plainest in the place of what is open.

    The spaces that are built in run in every format, and on CPUs channels_last was never slower,
    at times by a half faster (docs/log.md).
    """
    last = built_in and machine.device == "cpu"
    return replace(
        variants_of(machine)[-1 if last else 0],
        compile=bool(machine.compile),
        depthwise_strips=bool(machine.depthwise_strips),
        fused_batch_norm=bool(machine.fused_batch_norm),
    )


def _steps(session: Session) -> int:
    """Weight steps of the search."""
    batches = session.problem.batches("search", session.config)
    return Schedule.of(session.config.search, len(batches)).total


def _explicit(
    machine: MachineSettings, device: torch.device, supernet: Supernet
) -> MachineSettings:
    """The settings with the device and the threads that they come to here.

    What has nothing to work on in this model is off.
    """
    threads = machine.threads or torch.get_num_threads()
    machine = replace(machine, device=str(device), threads=threads)
    if machine.memory_format == "auto" and device.type == "cpu":
        if any(map(_ends_the_process, supernet.model.modules())):
            machine = replace(machine, memory_format="contiguous")
    strips, fuses = gains(supernet.model.modules())
    if machine.device != "cpu" or machine.autocast or machine.compile:
        strips = fuses = False
    fuses = fuses and machine.memory_format != "contiguous"
    return replace(
        machine,
        depthwise_strips=machine.depthwise_strips if strips else bool(machine.depthwise_strips),
        fused_batch_norm=machine.fused_batch_norm if fuses else bool(machine.fused_batch_norm),
    )


def _ends_the_process(module: nn.Module) -> bool:
    """Whether a layer's backward pass in channels_last is a segmentation fault of torch 2.

    That is a strided 1x1 convolution of few channels, on images of about 50 pixels and more.
    """
    if not isinstance(module, nn.Conv2d) or module.in_channels >= 16:
        return False
    return max(module.kernel_size) == 1 and max(module.stride) > 1


def _decided(machine: MachineSettings) -> bool:
    return len(variants_of(machine)) == 1 and not (may_compile(machine) or may_speed_up(machine))
