"""What is chosen by trying it on this machine, once, and then recorded with the settings.

The memory format (on a GPU the precision and compilation too) is whichever makes weight steps
faster here. From then on a run repeats by its settings, whatever the machine does.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from proxylessnas.config import MachineSettings, parse_minutes
from proxylessnas.core.costs import Costs
from proxylessnas.core.estimators import Random
from proxylessnas.core.objective import Alone
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import Supernet
from proxylessnas.data import BatchStream, LoaderBatches
from proxylessnas.session.session import Session
from proxylessnas.training.autotune import (
    PROBE_STEPS,
    best,
    may_compile,
    may_speed_up,
    variants_of,
)
from proxylessnas.training.device import make_machine
from proxylessnas.training.faults import explained
from proxylessnas.training.kernels import gains

SEARCH_SHARE = 0.5  # of what a budget leaves after measuring; the rest trains
WORTH_A_TRIAL = 12  # times as many weight steps as trying all variants takes


def tune(session: Session) -> MachineSettings:
    """The machine settings with nothing left open; what pays is tried on copies.

    The memory format matters to images alone. What a trial cannot copy, such as a counter that
    the loss function keeps, sees its steps too.
    """
    config, supernet = session.config, session.supernet
    machine = _explicit(config.machine, session.machine.device, supernet)
    # The built-in spaces run in every format; of other models all candidates are tried.
    built_in = config.space in ("mobile", "macro", "tree")
    rounds = PROBE_STEPS if built_in else int(supernet.mask.sum(1).max())
    variants = variants_of(machine)
    plain = replace(
        variants[0],
        compile=bool(machine.compile),
        depthwise_strips=bool(machine.depthwise_strips),
        fused_batch_norm=bool(machine.fused_batch_norm),
    )
    steps = _planned_steps(session)
    short = 0 < steps < WORTH_A_TRIAL * len(variants) * (rounds + 1)
    if _decided(machine) or short:
        return plain
    with explained():
        batches = session.problem.batches("search", config)
        batch = BatchStream(batches, share=session.ranks.share).draw()
    if not any(isinstance(x, Tensor) and x.dim() == 4 for x in pytree.tree_leaves(batch)):
        machine = replace(plain, autocast=machine.autocast, compile=machine.compile)
    if _decided(machine):
        return plain
    session.reporter.say("trying how weight steps are fastest: memory format, precision, kernels")

    def chosen() -> dict[str, Any]:
        with _undisturbed(supernet):
            probe = _on_copies(session, batch)
            lasts = _duration_of(session, steps)
            return asdict(best(machine, probe, rounds=rounds, steps=steps, lasts=lasts))

    return MachineSettings(**session.ranks.of_main(chosen))  # rank 0's times are what counts


def _planned_steps(session: Session) -> int:
    """Weight steps of the search; 0 where a budget will say later."""
    if session.config.budget is not None:
        return 0
    batches = session.problem.batches("search", session.config)
    return Schedule.of(session.config.search, len(batches)).total


def _duration_of(session: Session, steps: int) -> Callable[[float], float]:
    """Seconds of the whole search, from the seconds of a weight step."""
    budget = session.config.budget
    if budget is not None:
        seconds = SEARCH_SHARE * 60 * parse_minutes(budget)
        return lambda _: seconds
    return partial(operator.mul, steps)


def _explicit(
    machine: MachineSettings, device: torch.device, supernet: Supernet
) -> MachineSettings:
    """The settings with the device and the threads that they come to here.

    What has nothing to work on in this model is off.
    """
    threads = machine.threads or torch.get_num_threads()
    machine = replace(machine, device=str(device), threads=threads)
    strips, fuses = gains(supernet.model.modules())
    if machine.device != "cpu" or machine.autocast or machine.compile:
        strips = fuses = False
    fuses = fuses and machine.memory_format != "contiguous"
    return replace(
        machine,
        depthwise_strips=machine.depthwise_strips if strips else bool(machine.depthwise_strips),
        fused_batch_norm=machine.fused_batch_norm if fuses else bool(machine.fused_batch_norm),
    )


def _decided(machine: MachineSettings) -> bool:
    return len(variants_of(machine)) == 1 and not (may_compile(machine) or may_speed_up(machine))


def _on_copies(session: Session, batch: Any) -> Callable[[MachineSettings], Search]:
    """Searches that may be spoiled, each with its own copy of everything."""
    settings = replace(session.config.search, objective="constraint")

    def probe(on: MachineSettings) -> Search:
        supernet, task = session.problem.spare(session.config)
        supernet.mask = session.supernet.mask.clone()
        one = LoaderBatches([pytree.tree_map_only(Tensor, Tensor.clone, batch)], name="train")
        return Search(
            supernet=supernet,
            task=task,
            train=one,
            valid=one,
            costs=Costs.free(*supernet.mask.shape),
            objective=Alone(),
            estimator=Random(),
            settings=settings,
            schedule=Schedule.of(settings, 1),
            seed=session.config.seed,
            machine=make_machine(on),
        )

    return probe


@contextmanager
def _undisturbed(supernet: Supernet) -> Iterator[None]:
    """Random generators and gradients as they were: a loss may reach the model past all copies."""
    parameters = list(supernet.model.parameters())
    gradients, python = [p.grad for p in parameters], random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
