"""The stages before the search of `--pretrained`: a teacher, and candidates cut from it."""

from __future__ import annotations

import time
from typing import Any

from torch import nn

from proxylessnas.pretrained.candidates import PHOTOS, BlockFits, block_inputs
from proxylessnas.pretrained.classifier import LinearFit
from proxylessnas.pretrained.networks import bottleneck
from proxylessnas.pretrained.scores import replacement_scores
from proxylessnas.pretrained.space import space_around
from proxylessnas.pretrained.teach import Teacher, taught, with_linear_classifier
from proxylessnas.runs.specialised import (
    CANDIDATES,
    LINEAR,
    SCORES,
    TEACHER,
    SpecialisedProblem,
    images_of,
)
from proxylessnas.session.finishing import has_time, once_more
from proxylessnas.session.fitting import fit
from proxylessnas.session.pipeline import stop_if_asked
from proxylessnas.session.problem import Part
from proxylessnas.session.session import Session
from proxylessnas.spaces.blocks import WithClassifier
from proxylessnas.training.task import Task, balanced_weights

PARTS: tuple[Part, Part] = ("teach", "scoring")  # that the teacher learns, and is scored on


def prepare(session: Session, problem: SpecialisedProblem) -> None:
    """What the search needs: a teacher and its candidates, as far as that is not done."""
    for name, stage in (("teach", teach), ("candidates", cut)):
        stop_if_asked(session)
        if not session.records.done(name):
            fit(session, name)
            stage(session, problem)


def teach(session: Session, problem: SpecialisedProblem) -> None:
    """A linear classifier in closed form, then fine-tuning; the better one is the teacher."""
    name = session.config.teacher_name
    title = f"{name} learns {len(problem.data.info.classes)} classes"
    with session.records.stage("teach", title, session.callbacks) as facts:
        network, fit = linear_classifier(session, problem)
        teacher = _fine_tuned(session, problem, network, fit)
        session.reporter.say(f"  majority class {100 * fit.majority:.1f} %, {teacher.sentence}")
        facts |= {
            "majority_class": max(range(len(fit.counts)), key=lambda label: fit.counts[label]),
            "linear_valid_accuracy": teacher.linear_accuracy,
            "teacher_valid_accuracy": teacher.accuracy,
            "best_step": teacher.best_step,
        }
        session.store.save_tensors(TEACHER, teacher.network.state_dict())
        facts["files"] = [TEACHER, LINEAR]


def linear_classifier(
    session: Session, problem: SpecialisedProblem
) -> tuple[WithClassifier, LinearFit]:
    """The trained network with a classifier of the user's classes in closed form, which is kept."""
    network = problem.new_teacher()
    session.machine.place(network)
    with session.reporter.bar("features") as update:
        fit = with_linear_classifier(
            network,
            problem.plain_images(session.config),
            len(problem.data.info.classes),
            session.machine,
            images=problem.data.size("search"),
            after_batch=update,
        )
    session.store.save_tensors(LINEAR, {"weight": fit.weight, "bias": fit.bias})
    session.machine.place(network)
    return network, fit


def _fine_tuned(
    session: Session, problem: SpecialisedProblem, network: WithClassifier, fit: LinearFit
) -> Teacher:
    """Once as the settings say; where that led away from the linear classifier, once more.

    Activations under frozen statistics have another scale on images unlike those that the weights
    were trained on, and so have gradients: cut to a norm they teach (docs/log.md). What is trained
    later is steadied alike.
    """

    def learn(stage: str) -> Teacher:
        config, settings = session.config, session.config.teach
        weights = balanced_weights(fit.counts) if settings.class_weights == "balanced" else None
        task = Task.classification(settings.label_smoothing, weights)
        train, valid = (problem.batches(part, config) for part in PARTS)
        job = session.training(network, task, train, settings, stage="teach", valid=valid)
        session.drive(stage, job, "teaching")
        return taught(job, fit)

    start = time.monotonic()
    teacher = learn("teach")
    steady = session.config.teach.clip_norm or not has_time(session, time.monotonic() - start)
    if teacher.best_step > 0 or steady:
        return teacher
    return once_more(session, ("teach", "train"), "the linear classifier", learn)


def cut(session: Session, problem: SpecialisedProblem) -> None:
    """Candidates of every block, fitted by least squares, and what each alone is worth."""
    with session.records.stage("candidates", "cut by least squares", session.callbacks) as facts:
        facts |= session.ranks.of_main(lambda: _cut(session, problem))
        facts["files"] = [CANDIDATES, SCORES]


def _cut(session: Session, problem: SpecialisedProblem) -> dict[str, Any]:
    teacher, photos = problem.teacher(), problem.plain_images(session.config)
    held_out = problem.held_out(session.config)
    start = time.monotonic()
    inputs = block_inputs(teacher, images_of(photos, PHOTOS, skip=held_out))
    named: list[dict[str, nn.Module]] = []
    ridge = session.config.candidates.ridge
    with session.reporter.bar("cutting") as update:
        for index, (block, x) in enumerate(zip(teacher.blocks, inputs, strict=True)):
            fits = None if bottleneck(block) is None else BlockFits(block, x, ridge=ridge)
            named.append({} if fits is None else fits.candidates())
            update(index + 1, len(inputs))
    cut_s = time.monotonic() - start
    with session.reporter.bar("scoring") as update:
        photos_held_out = images_of(photos, held_out)
        scores = replacement_scores(teacher, named, photos_held_out, progress=update)
    session.store.save_tensors(CANDIDATES, space_around(teacher, named).state_dict())
    session.store.write_json(SCORES, scores)
    count = sum(map(len, named))
    score_s = time.monotonic() - start - cut_s
    session.reporter.say(
        f"  {count} candidates of {len(named)} blocks: fitted in {cut_s:.0f} s, each alone scored "
        f"on {held_out} photos in {score_s:.0f} s"
    )
    return {"candidates": count, "held_out": held_out, "cut_s": cut_s, "score_s": score_s}
