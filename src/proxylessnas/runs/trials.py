"""What a network will be worth once it is fine-tuned, told from a short fine-tuning."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

from torch import nn

from proxylessnas.runs.specialised import SpecialisedProblem
from proxylessnas.session.memory import fit_memory
from proxylessnas.session.session import Session
from proxylessnas.training.callbacks import ProgressBar
from proxylessnas.training.evaluate import Score, evaluate
from proxylessnas.training.loop import run_loop
from proxylessnas.training.train import Training

EPOCHS = 1  # a network cut deeply is worth little before it, and most of what it will be after


def tried(session: Session, problem: SpecialisedProblem, network: nn.Module) -> Score:
    """The validation score of a copy that was fine-tuned for a while on the other images."""
    config = session.config
    job = Training(
        network=session.machine.place(copy.deepcopy(network)),
        task=problem.training_task(config),
        train=problem.batches("teach", config),
        settings=replace(config.train, epochs=EPOCHS, keep_best="never", patience=None),
        seed=config.seed,
        machine=session.machine,
        ranks=session.ranks,
        stage="trial",
    )
    before = partial(fit_memory, job, "train", config.memory)
    with session.reporter.bar("a short fine-tuning") as update:
        run_loop(job, callbacks=[ProgressBar(update)], before=before)
    scoring = problem.batches("scoring", config)
    return evaluate(job.network.eval(), problem.task, scoring, session.machine, ranks=session.ranks)
