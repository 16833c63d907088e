"""How long steps and stages take, before they are done: what a budget is divided by.

A few steps are timed; the rest follows from them and from the settings.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from proxylessnas.config import MeasureSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.estimators import estimator_of
from proxylessnas.core.search import Search
from proxylessnas.data.image_batches import ImageBatches
from proxylessnas.session.budget import Budget
from proxylessnas.session.finishing import TRAINING_IMAGES, new_network, new_training
from proxylessnas.session.memory import fit_memory
from proxylessnas.session.problem import Part
from proxylessnas.session.session import Session
from proxylessnas.session.trials import on_copies, share_of_batch, trial_batch, undisturbed
from proxylessnas.training.device import wait
from proxylessnas.training.train import Training

TRIAL = 0.05  # of a budget, that timing steps of one kind may take
# Seconds in which a runtime takes a candidate, and a whole network; those of exporting.
CANDIDATE, NETWORK, EXPORT = 0.1, 0.5, 3.0


# --- steps, timed ---


def time_steps(session: Session, budget: Budget) -> None:
    """Note the seconds of a weight step, of an architecture step, and of an image in evaluation."""

    def timed() -> dict[str, float]:
        settings = replace(session.config.search, objective="constraint")
        make = partial(estimator_of, settings, Costs.free(*session.supernet.mask.shape))
        with undisturbed(session):
            job = on_copies(session, trial_batch(session), make)(session.config.machine)
            job.prepare()  # for good: the trial ends here
            widest = int(session.supernet.mask.sum(1).max())
            # In as many steps each candidate runs once; its first time takes several times as long.
            most = TRIAL * budget.total
            weight = mean_seconds(job.weight_step, widest, job, warmup=widest, most=most)
            architecture = mean_seconds(job.architecture_step, 2, job, most=most)
        scale = 1 / share_of_batch(session)
        image = weight * scale / session.config.search.batch_size / 3  # without the way back
        return {"weight": weight * scale, "architecture": architecture * scale, "image": image}

    budget.speeds = session.ranks.of_main(timed)


def mean_seconds(
    step: Callable[[], object],
    count: int,
    job: Search | Training,
    *,
    warmup: int = 1,
    most: float = math.inf,
) -> float:
    """Of `count` steps, after some to warm up.

    most: seconds that this may take; where two steps take more, the faster one has to do.
    """
    times: list[float] = []
    while len(times) < warmup + count and (len(times) < 2 or sum(times) < most):
        wait()
        start = time.perf_counter()
        step()
        job.step += 1
        wait()
        times.append(time.perf_counter() - start)
    timed = times[warmup:]
    return sum(timed) / len(timed) if timed else min(times)


def seconds_of_training_step(session: Session) -> float:
    """A step of the derived network's training, with the batches that it will see."""
    network = copy.deepcopy(new_network(session))
    with torch.random.fork_rng(devices=[]):
        job = new_training(session, "train", network)
        undo = job.prepare()
        fit_memory(job, "train", session.config.memory)
        seconds = mean_seconds(job.take_step, 3, job)
        undo()
    return seconds


# --- stages, estimated ---


def table_seconds(session: Session, speeds: dict[str, float], m: MeasureSettings) -> float:
    """Of the stage `measure` with these settings."""
    if session.config.table is not None:
        return 0.0
    widest, milliseconds = session.supernet.mask.shape[1], network_ms(session, speeds)
    visits = m.rounds * (m.runs + m.warmup) * widest * milliseconds / 1000
    networks = (m.networks + m.validation) * measuring_seconds(session, milliseconds, speeds)
    return CANDIDATE * len(session.trace.units) + visits + networks


def network_ms(session: Session, speeds: dict[str, float]) -> float:
    """About what a network takes on the runtime, before any was measured."""
    threads = (session.config.machine.threads or 1) / session.config.measure.threads
    return 1000 * speeds["image"] * session.config.measure.batch * max(1.0, threads)


def measuring_seconds(
    session: Session, milliseconds: float | None, speeds: dict[str, float]
) -> float:
    """Of one whole network."""
    m = session.config.measure
    each = network_ms(session, speeds) if milliseconds is None else milliseconds
    return NETWORK + m.network_rounds * (m.runs + m.warmup) * each / 1000


def end_seconds(session: Session, speeds: dict[str, float]) -> float:
    """Of evaluation and export, which nothing shortens."""
    images = images_of(session, "test") + min(TRAINING_IMAGES, images_of(session, "calibration"))
    networks, evaluation = 3 if session.config.baselines else 1, images * speeds["image"]
    return (
        EXPORT + networks * evaluation + (networks + 1) * measuring_seconds(session, None, speeds)
    )


def images_of(session: Session, part: Part) -> int:
    """Images of a part; budgets are for problems of images alone."""
    batches = session.problem.batches(part, session.config)
    assert isinstance(batches, ImageBatches)
    return len(batches.rows)


def score_images_of(session: Session) -> int:
    """Images that a network is scored on in `derive`."""
    images = images_of(session, "scoring")
    return min(images, session.config.derive.score_images or images)
