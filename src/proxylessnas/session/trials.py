"""Searches that may be spoiled: steps that are taken to see how long steps take here."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from proxylessnas.config import MachineSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.estimators import Estimator, Random
from proxylessnas.core.objective import Alone
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.search import Search
from proxylessnas.data import BatchStream, LoaderBatches
from proxylessnas.session.session import Session
from proxylessnas.training import freezing
from proxylessnas.training.device import make_machine
from proxylessnas.training.faults import explained

BUILT_IN = ("mobile", "macro", "cell", "tree")  # spaces
TRIAL_PIXELS = 2**19  # of as many on, a step takes in proportion to its images, near enough


def share_of_batch(session: Session) -> float:
    """How much of a batch a trial takes: a few images, where they are large enough.

    The whole batch where it is not our own, of images, which alone we know how to cut, and on a
    GPU, which a few images do not fill.
    """
    if session.config.space not in BUILT_IN or session.machine.device.type != "cpu":
        return 1.0
    return min(1.0, _trial_images(session) / session.config.search.batch_size)


def _trial_images(session: Session) -> int:
    (images,) = session.inputs
    pixels: int = images.shape[-2] * images.shape[-1]
    return max(2, math.ceil(TRIAL_PIXELS / pixels))


def trial_batch(session: Session) -> Any:
    """`share_of_batch` of the first batch of the weight steps."""
    with explained():
        batches = session.problem.batches("search", session.config)
        batch = BatchStream(batches, share=session.ranks.share).draw()
    if share_of_batch(session) == 1:
        return batch
    images = _trial_images(session)
    return pytree.tree_map_only(Tensor, lambda tensor: tensor[:images], batch)


def on_copies(
    session: Session, batch: Any, estimator: Callable[[], Estimator] = Random
) -> Callable[[MachineSettings], Search]:
    """Searches on one batch, each with its own copy of everything."""
    settings = replace(session.config.search, objective="constraint")
    held = set(session.problem.task.modules().values())

    def trial(on: MachineSettings) -> Search:
        supernet, task = session.problem.spare(session.config)
        supernet.mask = session.supernet.mask.clone()
        # What the copies share with the session is no copy, and must not learn.
        beside = task.modules_beside(supernet.model)
        beside = {name: m for name, m in beside.items() if m not in held}
        one = LoaderBatches([pytree.tree_map_only(Tensor, Tensor.clone, batch)], name="train")
        return Search(
            supernet=supernet,
            task=task,
            train=one,
            valid=one,
            costs=Costs.free(*supernet.mask.shape),
            objective=Alone(),
            estimator=estimator(),
            settings=settings,
            schedule=Schedule.of(settings, 1),
            seed=session.config.seed,
            machine=make_machine(on),
            beside=beside,
        )

    return trial


def undisturbed(session: Session) -> AbstractContextManager[None]:
    """Within the block a loss may reach the session's model, and its own modules, past all copies.

    See `training.freezing.undisturbed`.
    """
    held = session.problem.task.modules().values()
    return freezing.undisturbed([*session.supernet.model.modules(), *held])
