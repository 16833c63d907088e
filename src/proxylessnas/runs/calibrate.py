"""What is chosen by trying it on this machine, once, and then recorded in config.yaml.

The memory format (on a GPU the precision and compilation too) is whichever makes weight steps
faster here. A budget in minutes becomes step counts. From then on the run repeats by its config,
whatever the machine does.
"""

from __future__ import annotations

import copy
import operator
import random
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from proxylessnas.config import (
    MachineSettings,
    RunConfig,
    SearchSettings,
    from_namespace,
    parse_minutes,
)
from proxylessnas.core.costs import Costs
from proxylessnas.core.estimators import Random
from proxylessnas.core.objective import Alone
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import Supernet
from proxylessnas.data.batches import LoaderBatches, Stream
from proxylessnas.errors import ConfigError
from proxylessnas.io.console import Reporter, duration
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.runs.run import Run
from proxylessnas.runs.stages import search_with
from proxylessnas.spaces import complete_settings
from proxylessnas.training.autotune import PROBE_STEPS, best, may_compile, may_speed_up, variants_of
from proxylessnas.training.device import make_machine, wait
from proxylessnas.training.faults import explained
from proxylessnas.training.kernels import gains
from proxylessnas.training.ranks import ALONE, Ranks
from proxylessnas.training.task import Task

SEARCH_SHARE = 0.5  # of what a budget leaves after measuring; the rest trains
RESERVE = 0.12  # for scoring, the final measurement and the noise of the estimate
WORTH_A_TRIAL = 12  # times as many weight steps as trying all variants takes


def complete(run: Run) -> RunConfig:
    """The config with every automatic value made explicit, except the budget's."""
    config = run.config
    if not config.data:
        raise ConfigError("--data is missing: mnist5k, digits, a folder, a Hugging Face data set")
    run.runtime  # noqa: B018  # an unknown or missing one is refused before anything is read
    config = replace(
        config, space_settings=complete_settings(config.space, config.space_settings, run.input)
    )
    full = {**config.space_settings, **config.train.space_settings}
    complete_settings(config.space, full, None)  # for its error, before the search is paid for
    machine = _explicit(config.machine, run.machine.device, run.supernet)
    config = replace(config, machine=machine)
    # The built-in spaces do every format; another's candidates are all tried.
    rounds = run.supernet.mask.shape[1] if ":" in config.space else PROBE_STEPS

    # A budget's epochs are not known yet, so neither is whether compiling would pay.
    steps = len(run.batches("search", config.search.batch_size))
    steps = 0 if config.budget else Schedule.of(config.search, steps).total

    def lasts(step: float) -> float:
        budget = 60 * parse_minutes(config.budget) if config.budget else 0.0
        return SEARCH_SHARE * budget or steps * step

    share = replace(config.search, batch_size=config.search.batch_size // run.ranks.world)

    def probe(on: MachineSettings) -> Search:
        return _probe(run, replace(config, search=share, machine=on), ALONE)

    def found() -> dict[str, Any]:
        chosen = best(machine, probe, rounds=rounds, steps=steps, lasts=lasts)
        return asdict(replace(config, machine=chosen))

    # Rank 0 tries alone: the others' times would differ, and a failure of one stop all.
    return from_namespace(RunConfig, run.ranks.of_main(found))


def _explicit(
    machine: MachineSettings, device: torch.device, supernet: Supernet
) -> MachineSettings:
    """The settings with the device and the threads that they come to here.

    What has nothing to work on in this model is off.
    """
    threads = machine.threads or torch.get_num_threads()
    machine = replace(machine, device=str(device), threads=threads)
    splits, fuses = gains(supernet.model.modules())
    if machine.device != "cpu" or machine.autocast or machine.compile:
        splits = fuses = False
    fuses = fuses and machine.memory_format != "contiguous"
    return replace(
        machine,
        depthwise_strips=machine.depthwise_strips if splits else bool(machine.depthwise_strips),
        fused_batch_norm=machine.fused_batch_norm if fuses else bool(machine.fused_batch_norm),
    )


def settled(
    machine: MachineSettings,
    supernet: Supernet,
    task: Task,
    training: LoaderBatches,
    settings: SearchSettings,
    *,
    seed: int,
    reporter: Reporter,
    ranks: Ranks,
) -> MachineSettings:
    """The settings of a Python call, what they leave open tried on copies where it pays.

    The memory format matters to images alone. What a trial cannot copy, such as a counter that
    the loss function keeps, sees its steps too.
    """
    machine = _explicit(machine, make_machine(machine).device, supernet)
    widest = int(supernet.mask.sum(1).max())
    variants = variants_of(machine)
    plain = replace(
        variants[0],
        compile=bool(machine.compile),
        depthwise_strips=bool(machine.depthwise_strips),
        fused_batch_norm=bool(machine.fused_batch_norm),
    )
    steps = Schedule.of(settings, len(training)).total
    if _settled(machine) or steps < WORTH_A_TRIAL * len(variants) * (widest + 1):
        return plain
    with explained():
        batch = Stream(training).take()
    if not any(isinstance(x, Tensor) and x.dim() == 4 for x in pytree.tree_leaves(batch)):
        machine = replace(plain, autocast=machine.autocast, compile=machine.compile)
    if _settled(machine):
        return plain
    reporter.say("trying how weight steps are fastest: memory format, precision, kernels")
    probe = _on_copies(supernet, task, batch, settings, seed)

    def found() -> dict[str, Any]:
        # A loss function may reach the model that is to be searched, past all copies.
        before = [(p, p.grad) for p in supernet.model.parameters()]
        draws = random.getstate()
        with torch.random.fork_rng(devices=[]):
            lasts = partial(operator.mul, steps)
            chosen = best(machine, probe, rounds=widest, steps=steps, lasts=lasts)
        random.setstate(draws)
        for parameter, gradient in before:
            parameter.grad = gradient
        return asdict(chosen)

    return MachineSettings(**ranks.of_main(found))  # rank 0's times are what counts


def _settled(machine: MachineSettings) -> bool:
    return len(variants_of(machine)) == 1 and not (may_compile(machine) or may_speed_up(machine))


def _on_copies(
    supernet: Supernet, task: Task, batch: Any, settings: SearchSettings, seed: int
) -> Callable[[MachineSettings], Search]:
    """Searches that may be spoiled, each of its own copy of everything."""

    def probe(on: MachineSettings) -> Search:
        model, own = copy.deepcopy((supernet.model, task))  # a loss may hold the model
        copied = Supernet(model)
        copied.mask = supernet.mask.clone()
        one = LoaderBatches([pytree.tree_map_only(Tensor, Tensor.clone, batch)], name="train")
        return Search(
            schedule=Schedule.of(settings, 1),
            supernet=copied,
            task=own,
            train=one,
            valid=one,
            costs=Costs.free(*supernet.mask.shape),
            objective=Alone(),
            estimator=Random(),
            settings=settings,
            seed=seed,
            machine=make_machine(on),
        )

    return probe


def _probe(run: Run, config: RunConfig, ranks: Ranks) -> Search:
    """A search that may be spoiled: its own supernet, the run's data."""
    probe = Run(config, RunDirectory(run.directory.path, writes=False), run.reporter, ranks)
    probe.__dict__["data"] = run.data
    settings = replace(config.search, objective="constraint")
    probe.config = replace(config, search=settings)
    return search_with(probe, Costs.free(*probe.supernet.mask.shape))


def fit_budget(run: Run) -> RunConfig:
    """Epochs of search and training that fill what is left of the budget.

    The ratio of warm-up to search stays as configured. Needs the latency table.
    """
    config = run.config
    if config.budget is None:
        return config
    seconds = _step_seconds(run)
    spent = time.monotonic() - run.started
    weight, architecture, spent = run.ranks.of_main(lambda: (*seconds, spent))
    left = (parse_minutes(config.budget) * 60 - spent) * (1 - RESERVE)
    s, t = config.search, config.train
    steps = len(run.batches("search", s.batch_size))
    per_search = steps * (
        s.warmup_epochs * weight + s.epochs * (weight + architecture / s.arch_every)
    )
    scale = left * SEARCH_SHARE / per_search
    # A training step costs about a weight step of the same images and as many MACs.
    per_image = weight / s.batch_size / _mean_macs(run)
    networks = [_target_macs(run)]
    if config.baselines:
        networks += [_target_macs(run), run.largest_costs["macs"]]
    per_epoch = run.data.size("train") * per_image * sum(networks)
    epochs = left * (1 - SEARCH_SHARE) / per_epoch
    if scale * s.epochs < 0.5 or epochs < 0.5:
        least = (steps * (weight + architecture) + per_epoch) / (1 - RESERVE)
        raise ConfigError(
            f"the budget {config.budget} is too short: one epoch of search and one of training "
            f"need about {duration(max(1, least))} (minutes:seconds) "
            "beside the measuring; raise it, or lower --loading.limit or the space's widths"
        )
    search = replace(
        s,
        warmup_epochs=max(1, round(scale * s.warmup_epochs)) if s.warmup_epochs else 0,
        epochs=max(1, round(scale * s.epochs)),
    )
    return replace(config, search=search, train=replace(t, epochs=max(1, int(epochs))), budget=None)


def _step_seconds(run: Run) -> tuple[float, float]:
    """(weight step, architecture step), means over fair gates, the first step left out."""
    probe = _probe(run, run.config, run.ranks)
    probe.prepare()
    probe.weight_step()
    probe.architecture_step()
    widest = probe.supernet.mask.shape[1]
    wait()
    start = time.perf_counter()
    for _ in range(widest):
        probe.step += 1
        probe.weight_step()
    wait()
    middle = time.perf_counter()
    for _ in range(PROBE_STEPS):
        probe.step += 1
        probe.architecture_step()
    wait()
    end = time.perf_counter()
    return (middle - start) / widest, (end - middle) / PROBE_STEPS


def _mean_macs(run: Run) -> float:
    uniform = run.supernet.mask.double()
    costs = run.all_costs
    return float(costs.expected(uniform / uniform.sum(1, keepdim=True))[costs.index("macs")])


def _target_macs(run: Run) -> float:
    """About the MACs of a network at the limit: in proportion to the latency."""
    largest = run.largest_costs["macs"]
    if run.target_ms is None:
        return largest
    return largest * min(1.0, run.target_ms / run.largest_costs["latency"])
