"""Minutes to numbers of epochs: a budget is fitted once, after measuring, and recorded."""

from __future__ import annotations

import time
from dataclasses import replace

from proxylessnas.config import RunConfig, parse_minutes
from proxylessnas.core.costs import Costs
from proxylessnas.core.search import Search
from proxylessnas.errors import ConfigError
from proxylessnas.hardware.costs import largest_network
from proxylessnas.io.console import duration
from proxylessnas.session.session import Session
from proxylessnas.session.tuning import SEARCH_SHARE
from proxylessnas.training.autotune import PROBE_STEPS
from proxylessnas.training.device import wait

RESERVE = 0.12  # for scoring, the final measurement and the noise of the estimate


def fit_budget(session: Session, spent: float) -> RunConfig:
    """The settings with epochs of search and training that fill what is left of the budget.

    The ratio of warm-up to search stays as configured. Needs the latency table.
    spent: seconds since the command began.

    Raises:
        ConfigError: the budget is too short for an epoch of each.
    """
    config = session.config
    if config.budget is None:
        return config
    seconds = _step_seconds(session)
    weight, architecture, spent = session.ranks.of_main(lambda: (*seconds, spent))
    left = (parse_minutes(config.budget) * 60 - spent) * (1 - RESERVE)
    s, t = config.search, config.train
    steps = len(session.problem.batches("search", config))
    per_search = steps * (
        s.warmup_epochs * weight + s.epochs * (weight + architecture / s.arch_every)
    )
    scale = left * SEARCH_SHARE / per_search
    images = len(session.problem.batches("train", config)) * t.batch_size
    per_epoch = images * weight / s.batch_size * _macs_to_train(session)
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


def _step_seconds(session: Session) -> tuple[float, float]:
    """(weight step, architecture step), means over fair gates, the first step left out."""
    config, problem = session.config, session.problem
    supernet, task = problem.spare(config)
    probe = Search.from_settings(
        replace(config.search, objective="constraint"),
        costs=Costs.free(*supernet.mask.shape),
        train=problem.batches("search", config),
        valid=problem.batches("valid", config),
        supernet=supernet,
        task=task,
        seed=config.seed,
        machine=session.machine,
        ranks=session.ranks,
    )
    probe.prepare()  # for good: the probe ends here
    probe.weight_step()
    probe.architecture_step()
    widest = supernet.mask.shape[1]
    times = [time.perf_counter()]
    for count, step in ((widest, probe.weight_step), (PROBE_STEPS, probe.architecture_step)):
        wait()
        times[-1] = time.perf_counter() if len(times) == 1 else times[-1]
        for _ in range(count):
            probe.step += 1
            step()
        wait()
        times.append(time.perf_counter())
    return (times[1] - times[0]) / widest, (times[2] - times[1]) / PROBE_STEPS


def _macs_to_train(session: Session) -> float:
    """MACs of all networks to be trained, as a share of a mean network's of the space.

    A training step costs about a weight step of the same images and as many MACs.
    """
    costs = session.unlimited_costs
    largest = costs.cost_of("macs", largest_network(session.supernet, costs))
    share = 1.0 if session.target_ms is None else session.target_ms / session.largest["latency"]
    target = largest * min(1.0, share)
    uniform = session.supernet.mask.double()
    uniform = uniform / uniform.sum(1, keepdim=True)
    mean = float(costs.expected(uniform)[costs.index("macs")])
    return (2 * target + largest if session.config.baselines else target) / mean
