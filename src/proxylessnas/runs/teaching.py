"""The stages before the search of `--pretrained`: a teacher, and candidates cut from it."""

from __future__ import annotations

import time
from typing import Any

import torch

from proxylessnas.pretrained.candidates import PHOTOS, BlockFits, block_inputs
from proxylessnas.pretrained.classifier import collect_moments, fit_classifier
from proxylessnas.pretrained.networks import bottleneck
from proxylessnas.pretrained.scores import replacement_scores
from proxylessnas.pretrained.space import space_around
from proxylessnas.runs.specialised import CANDIDATES, TEACHER, SpecialisedProblem, images_of
from proxylessnas.session.session import Session
from proxylessnas.spaces.blocks import Network
from proxylessnas.training.evaluate import evaluate
from proxylessnas.training.train import Training

HELD_OUT = 256  # photos that candidates are scored on, and not fitted to


def teach(session: Session, problem: SpecialisedProblem) -> None:
    """A linear classifier in closed form, then fine-tuning; the better of the two is the teacher.

    The statistics of normalisation stay the pretrained ones: a few thousand photos are too few to
    estimate others.
    """
    config, reporter = session.config, session.reporter
    with session.records.stage("teach", f"{config.pretrained}", session.callbacks) as facts:
        network = session.machine.place(problem.new_teacher())
        assert isinstance(network, Network)
        facts |= _fit_classifier(session, problem, network)
        job = Training(
            network=network,
            task=problem.task,
            train=problem.batches("teach", config),
            valid=problem.batches("scoring", config),
            settings=config.teach,
            seed=config.seed,
            machine=session.machine,
            ranks=session.ranks,
            stage="teach",
        )
        session.drive("teach", job, "teaching")
        facts |= _score(session, problem, network)
        kept = " (the linear classifier: fine-tuning did not improve it)"
        linear = facts["teacher_accuracy"] <= facts["linear_valid_accuracy"]
        reporter.say(
            f"  teacher {100 * facts['teacher_accuracy']:.1f} % of the validation part"
            + (kept if linear else "")
        )
        session.store.save_tensors(TEACHER, network.state_dict())
        facts["files"] = [TEACHER]


def _fit_classifier(
    session: Session, problem: SpecialisedProblem, network: Network
) -> dict[str, Any]:
    config = session.config
    batches = problem.plain_images(config)
    with session.reporter.bar("features") as update:
        moments = collect_moments(
            network,
            batches,
            len(problem.data.info.classes),
            session.machine,
            images=problem.data.size("search"),
            after_batch=update,
        )
    fit = fit_classifier(moments)
    network.classifier = fit.layer()
    session.machine.place(network)
    valid = _accuracy(session, problem, network)
    session.reporter.say(
        f"  majority class {100 * fit.majority:.1f} %, linear classifier {100 * valid:.1f} % of "
        f"the validation part ({100 * fit.accuracy:.1f} % left out of the training part)"
    )
    return {"majority_accuracy": fit.majority, "linear_valid_accuracy": valid}


def _accuracy(session: Session, problem: SpecialisedProblem, network: Network) -> float:
    scoring = problem.batches("scoring", session.config)
    score = evaluate(network, problem.task, scoring, session.machine, ranks=session.ranks)
    return score.accuracy or 0.0


def _score(session: Session, problem: SpecialisedProblem, network: Network) -> dict[str, Any]:
    return {"teacher_accuracy": _accuracy(session, problem, network)}


def cut(session: Session, problem: SpecialisedProblem) -> None:
    """Candidates of every block, fitted by least squares, and what each alone is worth."""
    with session.records.stage("candidates", "cut by least squares", session.callbacks) as facts:
        named, scores = session.ranks.of_main(lambda: _cut(session, problem)), None
        del named, scores
        facts["files"] = [CANDIDATES, "scores.json"]


def _cut(session: Session, problem: SpecialisedProblem) -> int:
    teacher, config = problem.teacher(), session.config
    batches = problem.plain_images(config)
    held_out = min(HELD_OUT, problem.data.size("search") // 4)
    start = time.monotonic()
    with torch.no_grad():
        inputs = block_inputs(teacher, images_of(batches, PHOTOS, skip=held_out))
    named: list[dict[str, Any]] = []
    with session.reporter.bar("cutting") as update:
        for index, (block, x) in enumerate(zip(teacher.blocks, inputs, strict=True)):
            layers = bottleneck(block)
            named.append(BlockFits(block, x).candidates() if layers is not None else {})
            update(index + 1, len(inputs))
    cut_s = time.monotonic() - start
    with session.reporter.bar("scoring") as update:
        photos = list(images_of(batches, held_out))
        scores = replacement_scores(teacher, named, photos, update)
    model = space_around(teacher, named)
    session.store.save_tensors(CANDIDATES, model.state_dict())
    session.store.write_json("scores.json", scores)
    count = sum(map(len, named))
    session.reporter.say(
        f"  {count} candidates of {len(named)} blocks, fitted in {cut_s:.0f} s, scored in "
        f"{time.monotonic() - start - cut_s:.0f} s"
    )
    return count
