"""From one finished search to another limit: α learns on, on the weights as they are.

α that was learned under one limit decodes badly under a limit far from it. The weights take
most of a search's time and serve every limit, so architecture steps alone are taken under the
new limit: minutes instead of hours.
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

# The least probability with which a candidate learns on, as a share of the most probable one's.
RECALLED = 1e-3


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
    """A search with another α, `steps` architecture steps further than that of `search`.

    Both searches share their weights, which stay as they are, and `search` keeps its α. Where α
    never learned, or the objective is not the constraint, no steps are taken: the other
    objectives weigh a cost and know no limit.

    costs: those of `search` under other limits.

    Raises:
        UserError: a loss that is not finite again and again, or too little memory.
    """
    mine, settings = search.supernet, search.settings
    if settings.objective != "constraint" or not search.estimator.learns:
        steps = 0
    supernet = Supernet(mine.model, space=mine.space, settings=mine.settings, input=mine.input)
    supernet.mask = mine.mask.clone()
    # A rate that was set suits the whole search's steps; these few need faster ones.
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
    adapted.streams_after(search.train_stream.drawn, search.valid_stream.drawn)
    if steps:
        adapted.objective.load(search.objective.state())
        adapted.estimator.load(search.estimator.state())
        run_loop(adapted, callbacks=callbacks)
    return adapted


def _softened(supernet: Supernet) -> Tensor:
    """α in the same order, with no candidate's probability far below `RECALLED`."""
    # By equation 4 a candidate's gradient is proportional to its probability: a candidate that the
    # search gave up could not come back under a limit that wants it. Scaling a row keeps the order
    # of its candidates; lifting all of them to one floor forgot it (docs/log.md).
    alpha, mask = supernet.alpha.detach(), supernet.mask
    most = alpha.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    least = alpha.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    scale = (-math.log(RECALLED) / (most - least).clamp_min(1e-12)).clamp_max(1.0)
    return alpha * scale
