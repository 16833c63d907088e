"""From one finished search to another limit: α learns on, on the weights as they are.

α that was learned under one limit decodes badly far from it, and the weights are what takes
the time; so architecture steps alone are taken under the new one, minutes instead of hours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from proxylessnas.core.costs import Costs
from proxylessnas.core.estimators import RewardOf, estimator_of
from proxylessnas.core.objective import make_objective
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import Supernet
from proxylessnas.training.callbacks import Callback
from proxylessnas.training.faults import Recovery
from proxylessnas.training.loop import run_loop

RECALLED = 1e-3  # of the most probable candidate's: the least with which one learns on


@torch.inference_mode(False)
@torch.enable_grad()
def adapt(
    search: Search,
    costs: Costs,
    *,
    steps: int,
    reward: RewardOf | None = None,
    callbacks: Sequence[Callback] = (),
) -> Search:
    """A search with an α of its own, by so many architecture steps further than `search`'s.

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
    rates = replace(settings, multiplier_learning_rate=None, arch_learning_rate=None)
    adapted = replace(
        search,
        supernet=supernet,
        costs=costs,
        settings=rates,
        schedule=Schedule.architecture_alone(steps, start=search.step),
        objective=make_objective(rates, costs, steps) if steps else search.objective,
        estimator=estimator_of(settings, costs, reward) if steps else search.estimator,
        machine=replace(search.machine, compile=False),  # minutes, for a few hundred steps
    )
    with torch.no_grad():
        supernet.alpha.copy_(_softened(mine) if steps else mine.alpha)
    adapted.step, adapted.recovery = search.step, Recovery(returns=search.recovery.returns)
    adapted.streams_after(search.train_stream.taken, search.valid_stream.taken)
    if steps:
        adapted.objective.load(search.objective.state())
        adapted.estimator.load(search.estimator.state())
        run_loop(adapted, callbacks=callbacks)
    return adapted


def _softened(supernet: Supernet) -> Tensor:
    """α in the same order, with no probability far below `RECALLED`.

    A candidate's gradient is in proportion to its probability, so what was decided would stay.
    """
    alpha, mask = supernet.alpha.detach(), supernet.mask
    most = alpha.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    least = alpha.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    scale = (-math.log(RECALLED) / (most - least).clamp_min(1e-12)).clamp_max(1.0)
    return alpha * scale
