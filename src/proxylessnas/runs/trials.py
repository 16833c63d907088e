"""Trainings of copies, beside the run's own: of what is compared with the network that is found.

`tried` tells what a network will be worth once it is fine-tuned, from a short fine-tuning.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

from torch import nn

from proxylessnas.config import TrainSettings
from proxylessnas.data import Batches
from proxylessnas.runs.specialised import SpecialisedProblem
from proxylessnas.session.fitting import fitted
from proxylessnas.session.memory import fit_memory
from proxylessnas.session.session import Session
from proxylessnas.training.callbacks import ProgressBar
from proxylessnas.training.evaluate import Score, evaluate
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import Task
from proxylessnas.training.train import Training

SHARE = 1 / 3  # of the fine-tuning: a network cut deeply is worth little before it, then most


def training_of_copy(
    session: Session,
    network: nn.Module,
    task: Task,
    train: Batches,
    settings: TrainSettings,
    stage: str,
) -> Training:
    """The training of a copy of a network, which is no stage of the run: it is not recorded."""
    network = session.machine.place(copy.deepcopy(network))
    return session.training(network, task, train, settings, stage=stage)


def learned(session: Session, job: Training) -> nn.Module:
    """The network of a training to its end, in evaluation mode."""
    before = partial(fit_memory, job, "train", session.config.memory)
    with session.reporter.bar(f"training {job.stage}") as update:
        run_loop(job, callbacks=[ProgressBar(update)], before=before)
    return job.network.eval()


def tried(session: Session, problem: SpecialisedProblem, network: nn.Module) -> Score:
    """The validation score of a copy that was fine-tuned for a while on the other images."""
    config, budget = session.config, session.budget
    if budget is not None:
        config, _ = fitted(session, budget, "train")
    settings = replace(
        config.train, epochs=SHARE * config.train.epochs, keep_best="never", patience=None
    )
    task, train = problem.training_task(config), problem.batches("teach", config)
    network = learned(session, training_of_copy(session, network, task, train, settings, "trial"))
    scoring = problem.batches("scoring", config)
    return evaluate(network, problem.task, scoring, session.machine, ranks=session.ranks)
