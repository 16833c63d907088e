"""From one finished search to another limit: α learns on, on the weights as they are.

α that was learned under one limit decodes badly far from it, and the weights are what takes
the time; so architecture steps alone are taken under the new one, minutes instead of hours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from proxylessnas.core.costs import Costs
from proxylessnas.core.estimators import RewardOf, estimator_of
from proxylessnas.core.objective import make_objective
from proxylessnas.core.search import ARCH_TRAVEL, Search
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import UserError
from proxylessnas.training.faults import MAX_BAD_STEPS, Recovery, explained

RECALLED = 1e-3  # of the most probable candidate's: the least with which one learns on


@torch.inference_mode(False)
@torch.enable_grad()
def learned_on(
    search: Search,
    costs: Costs,
    *,
    steps: int,
    reward: RewardOf | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Search:
    """A search with an α of its own, by so many steps further than `search`'s.

    The weights are `search`'s and stay. Where α never learned, or the objective is not the
    constraint (the others have a price, not a limit), there is nothing to learn: no steps.

    Raises:
        UserError: a loss that is not finite again and again, or too little memory.
    """
    mine, settings = search.supernet, search.settings
    if settings.objective != "constraint" or not search.estimator.learns:
        steps = 0
    supernet = Supernet(mine.model, space=mine.space, settings=mine.settings, input=mine.input)
    supernet.mask = mine.mask.clone()
    # The rates are those of so many steps, whatever the search's own were.
    objective = (
        make_objective(replace(settings, multiplier_learning_rate=None), costs, steps)
        if steps
        else None
    )
    estimator = estimator_of(settings, costs, reward) if steps else None
    other = replace(
        search,
        supernet=supernet,
        costs=costs,
        objective=objective or search.objective,
        estimator=estimator or search.estimator,
        machine=replace(search.machine, compile=False),  # minutes, for a few hundred steps
    )
    with torch.no_grad():
        supernet.alpha.copy_(_drawn_together(mine) if steps else mine.alpha)
    other.step, other.recovery = search.step, Recovery(returns=search.recovery.returns)
    other.streams_after(search.train_stream.taken, search.valid_stream.taken)
    if steps:
        other.objective.load(search.objective.state())
        other.estimator.load(search.estimator.state())
        other.arch_rate = ARCH_TRAVEL / steps
        _learn(other, steps, progress)
    return other


def _learn(search: Search, steps: int, progress: Callable[[int, int], object]) -> None:
    """Architecture steps alone."""
    modes = {module: module.training for module in search.model.modules()}
    search.model.train()
    undo = search.prepare()
    try:
        for done in range(steps):
            with explained(lambda: search.batch, search.retry):
                search.architecture_step()
            if search.recovery.lost:
                raise UserError(f"{search.recovery.last} {MAX_BAD_STEPS} times in a row")
            search.step += 1
            progress(done + 1, steps)
    finally:
        undo()
        for module, training in modes.items():
            module.training = training


def _drawn_together(supernet: Supernet) -> Tensor:
    """α in the same order, with no probability far below `RECALLED`.

    A candidate's gradient is in proportion to its probability, so what was decided would stay.
    """
    alpha, mask = supernet.alpha.detach(), supernet.mask
    most = alpha.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    least = alpha.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    scale = (-math.log(RECALLED) / (most - least).clamp_min(1e-12)).clamp_max(1.0)
    return alpha * scale
