"""A run from trained weights within a budget: its stages' settings fitted to their seconds.

A budget only takes away: where there is time, stages are as long as without one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch

from proxylessnas.config import RunConfig, TrainSettings
from proxylessnas.hardware.host import crowd
from proxylessnas.pretrained.candidates import SHARES as SHARES_OF_CHANNELS
from proxylessnas.runs.any_model import ModelProblem
from proxylessnas.runs.defaults import RATE_STEPS
from proxylessnas.runs.specialised import SpecialisedProblem
from proxylessnas.session.budget import Budget
from proxylessnas.session.durations import (
    CANDIDATE,
    NETWORK,
    mean_seconds,
    seconds_of_training_step,
)
from proxylessnas.session.fitting import LEAST_ROUNDS, Fit, fit_measure, reserve_least
from proxylessnas.session.memory import fit_memory
from proxylessnas.session.session import Session
from proxylessnas.surgery.space import Space
from proxylessnas.training.ranks import ALONE

AnySettings = TypeVar("AnySettings", bound=TrainSettings)

# The networks compared by hand are two, trained as long as the one that was found.
SHARES = {"teach": 0.26, "candidates": 0.12, "measure": 0.04, "search": 0.15, "train": 0.14}
# Of any model: "candidates" are fitted, scored and chosen from.
MODEL_SHARES = {"measure": 0.1, "teach": 0.28, "candidates": 0.24, "train": 0.14}
BY_HAND = 0.3
LAYERS = 4  # of one choice of any model, that are measured alone
LEAST_STEPS, LEAST_PHOTOS = 30, 32  # of every training, and of scores
PASSES = 80  # of the teacher over a photo that scores all candidates: about half a pass for each
ROUNDS, COMPARED = 3, 160  # of scores of any model's candidates; networks that are compared
# Seconds of cutting, measuring, deriving and exporting each, on a machine of two cores.
FIXED = 12.0


def shares(config: RunConfig) -> dict[str, float]:
    """Of every stage that is fitted; baselines take theirs where they are wanted."""
    road = SHARES if config.model is None else MODEL_SHARES
    return road | ({"by-hand": BY_HAND} if config.baselines else {})


def begin_within(session: Session, problem: SpecialisedProblem, budget: Budget) -> None:
    """Time a few steps, and refuse a budget in which nothing useful can be done.

    What has fixed seconds takes longer where other programs have the cores, as they had so far.

    Raises:
        BudgetError: how long the least useful run takes.
    """
    config, size = session.config, problem.data.size

    def timed() -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):
            teacher = session.machine.place(problem.new_teacher())
            settings = replace(config.teach, keep_best="never")
            train = problem.batches("teach", config)
            job = session.training(teacher, problem.task, train, settings, ranks=ALONE)
            undo = job.prepare()
            fit_memory(job, "teach", config.memory)
            step = mean_seconds(job.take_step, 3, job)
            undo()
        image = step / config.teach.batch_size / 3  # no way back
        return {"step": step, "image": image, "crowd": crowd()}

    budget.speeds = session.ranks.of_main(timed)
    speeds = budget.speeds
    step, image, fixed = speeds["step"], speeds["image"], FIXED * speeds["crowd"]
    training = LEAST_STEPS * step
    least = {
        "teach": training + size("search") * image,
        "candidates": fixed + PASSES * LEAST_PHOTOS * image,
        "measure": fixed,
        "search": training,
        "train": fixed + training,
        "the end": fixed + 3 * size("test") * image,  # baselines only where there is time
    }
    if config.model is not None:
        del least["search"]  # by gates, which it has not
    reserve_least(session, budget, least, "take fewer pixels (--image-size)")


def _fit_teach(session: Session, seconds: float, speeds: dict[str, float]) -> RunConfig:
    """What the features of the linear classifier leave."""
    problem, config = session.problem, session.config
    assert isinstance(problem, SpecialisedProblem)
    features = problem.data.size("search") * speeds["image"]
    length = len(problem.batches("teach", config))
    return replace(
        config, teach=_within(config.teach, (seconds - features) / speeds["step"], length)
    )


def _fit_candidates(session: Session, seconds: float, speeds: dict[str, float]) -> RunConfig:
    config = session.config
    photos = int(max(LEAST_PHOTOS, (seconds - FIXED * speeds["crowd"]) / speeds["image"] / PASSES))
    most = config.candidates.score_images
    return replace(config, candidates=replace(config.candidates, score_images=min(photos, most)))


def _fit_search(session: Session, seconds: float, speeds: dict[str, float]) -> RunConfig:
    """Rounds of scores in the first half of the time, architecture steps in the rest."""
    problem, config = session.problem, session.config
    assert isinstance(problem, SpecialisedProblem)
    each = PASSES * problem.held_out(config) * speeds["image"]
    rounds = min(config.candidates.score_rounds, int(seconds / 2 / each))
    length = len(problem.batches("search", config))
    steps = max(LEAST_STEPS, (seconds - rounds * each) / speeds["step"])
    return replace(
        config,
        candidates=replace(config.candidates, score_rounds=rounds),
        search=replace(config.search, epochs=min(config.search.epochs, steps / length)),
    )


def _fit_train(session: Session, seconds: float, speeds: dict[str, float]) -> RunConfig:
    config = session.config
    step = session.ranks.of_main(lambda: seconds_of_training_step(session))
    length = len(session.problem.batches("train", config))
    return replace(config, train=_within(config.train, seconds / step, length))


def _within(settings: AnySettings, steps: float, length: int) -> AnySettings:
    """Settings of at most so many steps; fewer want a lower rate, see `defaults`."""
    before = settings.epochs * length
    steps = max(min(steps, before), min(LEAST_STEPS, before))
    slower = min(1.0, steps / RATE_STEPS) / min(1.0, before / RATE_STEPS)
    return replace(
        settings,
        epochs=steps / length,
        warmup_epochs=settings.warmup_epochs * steps / before,
        learning_rate=settings.learning_rate * slower,
    )


def _fit_model_measure(session: Session, seconds: float, speeds: dict[str, float]) -> RunConfig:
    """Fewer visits to the whole networks, and to the layers alone."""
    m, space = session.config.measure, _space_of(session)
    networks = 3 * len(SHARES_OF_CHANNELS) + len(space.levels) + 2  # two random ones a share
    layers = len(space.names) * LAYERS
    pass_s = speeds["image"] * m.batch * (m.runs + m.warmup)
    visits = (networks * m.network_rounds + len(SHARES_OF_CHANNELS) * m.rounds) * pass_s
    share = max(0.0, seconds - networks * NETWORK - layers * CANDIDATE) / max(visits, 1e-9)
    if share >= 1:
        return session.config
    rounds, network_rounds = (
        min(count, max(LEAST_ROUNDS, round(count * share)))
        for count in (m.rounds, m.network_rounds)
    )
    measure = replace(m, rounds=rounds, network_rounds=network_rounds, networks=networks)
    return replace(session.config, measure=measure)


def _fit_model_candidates(session: Session, seconds: float, speeds: dict[str, float]) -> RunConfig:
    config, space = session.config, _space_of(session)
    # Passes share their beginning: about half of one for each candidate.
    passes = ROUNDS * sum(map(len, space.candidates)) / 2 + COMPARED
    photos = int(max(LEAST_PHOTOS, (seconds - FIXED * speeds["crowd"]) / speeds["image"] / passes))
    photos = min(photos, config.candidates.score_images)
    return replace(config, candidates=replace(config.candidates, score_images=photos))


def _space_of(session: Session) -> Space:
    assert isinstance(session.problem, ModelProblem)
    return session.problem.found(session).blank


MODEL_FITS: dict[str, Fit] = {
    "measure": _fit_model_measure,
    "teach": _fit_teach,
    "candidates": _fit_model_candidates,
    "train": _fit_train,
}
FITS: dict[str, Fit] = {
    "teach": _fit_teach,
    "candidates": _fit_candidates,
    "measure": fit_measure,
    "search": _fit_search,
    "train": _fit_train,
}
