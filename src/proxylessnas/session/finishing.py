"""The stages `train` and `evaluate`, and baselines: a derived network to its accuracy."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture
from proxylessnas.core.decode import Indices
from proxylessnas.errors import RunError
from proxylessnas.hardware.limiting import largest_network
from proxylessnas.report.verdict import accuracy_words
from proxylessnas.seeds import derive_seed
from proxylessnas.selection.propose import binding_cost, sample_within
from proxylessnas.session.budget import Pace
from proxylessnas.session.deploying import as_deployed, check_quantise, running, scored
from proxylessnas.session.mistakes import MISTAKES, Mistakes
from proxylessnas.session.quantising import quantise
from proxylessnas.session.records import BASELINES
from proxylessnas.session.session import Session
from proxylessnas.session.store import STEADY
from proxylessnas.training.evaluate import Score, recalibrate
from proxylessnas.training.train import Training

T = TypeVar("T")
CONFUSION = "confusion.json"
MOST_CLASSES = 1000  # whose answers are counted by class
TRAINING_IMAGES = 2000  # that tell the accuracy on training images, and renew statistics
FEW_STEPS = 300
STEADY_NORM = 2.0  # that gradients are cut to where a fine-tuning led away


def train(session: Session) -> nn.Module:
    """The derived network on all training images, from scratch or from inherited weights."""
    return train_network(session, "train", new_network(session), "weights.safetensors")


def new_network(session: Session) -> nn.Module:
    """The derived network as its training begins."""
    session.records.require("derive")
    network = _fresh(session, session.load_architecture("architecture.json"))
    if session.config.train.inherit:
        session.store.load_weights("inherited.safetensors", network)
    return network


def train_baseline(session: Session, name: str, indices: Sequence[int]) -> nn.Module:
    """Another network of the space, trained the same way; its files are called by the name."""
    architecture = session.described(indices)
    session.store.write(f"architecture-{name}.json", architecture.to_json().encode())
    network = _fresh(session, architecture)
    return train_network(session, f"train-{name}", network, f"weights-{name}.safetensors")


def _fresh(session: Session, architecture: Architecture) -> nn.Module:
    torch.manual_seed(derive_seed(session.config.seed, "training weights"))
    return session.problem.network(architecture, session.config)


def train_network(session: Session, stage: str, network: nn.Module, file: str) -> nn.Module:
    """Train a network in place; its weights go to `file`."""
    job = new_training(session, stage, network)
    images = (
        "the training images without the validation part" if job.best else "all training images"
    )
    title = f"{session.config.train.epochs:.4g} epochs on {images}"
    with session.records.stage(stage, title, session.callbacks) as facts:
        pace, total, start = _pace(session, stage, job), job.total, time.monotonic()
        session.drive(stage, job, "training", *pace)
        if pace and job.total != total:  # the settings say what was done
            longer = replace(session.config.train, epochs=job.total / len(job.train))
            session.settle(replace(session.config, train=longer))
            session.store.write_config(session.config)
        _renew_statistics(session, network, job.step)
        if stage == "train" and session.config.train.inherit and job.best is None:
            seconds = time.monotonic() - start
            facts["led_away"] = _steadied(session, network, seconds)
        session.store.save_tensors(file, network.state_dict())
        facts["files"] = [file]
    return network


def _steadied(session: Session, network: nn.Module, seconds: float) -> bool:
    """Whether fine-tuning led away from the inherited weights: it is done again, or undone.

    Again with gradients cut to a norm, if they were not and there is time; where that does not help
    either, the network has the weights that it inherited.

    seconds: that the fine-tuning took.
    """
    begin = new_network(session)
    least = _least_score(session, begin)
    if not _score(session, network).value < least:
        return False

    def learn(stage: str) -> None:
        network.load_state_dict(begin.state_dict())
        session.drive(stage, new_training(session, "train", network), "training")

    if not session.config.train.clip_norm and has_time(session, seconds):
        once_more(session, ("train",), "the weights that it began with", learn)
        if not _score(session, network).value < least:
            return True
    session.reporter.say("  fine-tuning led away from the weights that it began with: those stay")
    network.load_state_dict(begin.state_dict())
    return True


def once_more(session: Session, stages: Sequence[str], origin: str, learn: Callable[[str], T]) -> T:
    """A fine-tuning that led away, again with gradients cut, which the settings of `stages` say.

    stages: the fine-tuning's, and those that are steadied alike. origin: what it led away from.
    """
    session.reporter.say(
        f"  fine-tuning led away from {origin}: once more, with gradients cut to a norm of "
        f"{STEADY_NORM:g}"
    )
    config = session.config
    steady = {name: replace(getattr(config, name), clip_norm=STEADY_NORM) for name in stages}
    session.settle(replace(config, **steady))
    result = learn(stages[0] + STEADY)
    session.store.write_config(session.config)
    return result


def _least_score(session: Session, begin: nn.Module) -> float:
    """The validation score under which a network is worse than `begin` by more than the noise.

    A trained network has learned these images, and the one before it has not.
    """
    score = _score(session, begin)
    value = score.value
    return value - math.sqrt(max(0.0, value * (1 - value)) / max(1, score.examples))


def _score(session: Session, network: nn.Module) -> Score:
    return scored(session, session.machine.place(network).eval(), "scoring")


def has_time(session: Session, seconds: float) -> bool:
    """Whether the budget, where there is one, has so many seconds to spare."""
    budget = session.budget
    return budget is None or session.ranks.of_main(lambda: budget.spare > seconds)


def _pace(session: Session, stage: str, job: Training) -> list[Pace]:
    """What keeps the network's own training within its budget."""
    budget, config = session.budget, session.config
    if budget is None or stage not in budget.fitted or config.baselines or session.ranks.world > 1:
        return []
    return [Pace(budget, stage, job, grows=not config.is_specialised)]


def new_training(session: Session, stage: str, network: nn.Module) -> Training:
    """The training of a network in place, at its first step."""
    problem, config = session.problem, session.config
    return session.training(
        network,
        problem.training_task(config),
        problem.batches("train", config),
        config.train,
        valid=problem.batches("scoring", config) if config.train.keeps_best else None,
        # Of the spaces here these run every layer on every batch; others may drop paths.
        may_skip=session.config.space not in ("mobile", "macro"),
        stage=stage,
    )


def _renew_statistics(session: Session, network: nn.Module, steps: int) -> None:
    """Statistics of batch normalisation from training images, where few steps have moved them.

    They are moving averages over about ten batches of augmented images, whose weights still moved.
    Trained weights that kept theirs keep them here too.
    """
    config = session.config
    if config.is_specialised or config.train.frozen_statistics or steps >= FEW_STEPS:
        return
    batches = session.problem.batches("calibration", config)
    recalibrate(network, batches, TRAINING_IMAGES, session.machine, session.ranks)


def trained_network(session: Session, name: str = "") -> nn.Module:
    """The network of this run (or of one of its baselines) with its trained weights."""
    suffix = f"-{name}" if name else ""
    architecture = session.load_architecture(f"architecture{suffix}.json")
    network = session.problem.network(architecture, session.config)
    session.store.load_weights(f"weights{suffix}.safetensors", network)
    return session.machine.place(network).eval()


def evaluate(session: Session, name: str = "") -> Score:
    """Accuracy on the test part, which nothing before has seen; of a baseline by its name.

    Of the network itself also which classes are taken for which (`confusion.json`), and the
    accuracy on training images, which tells learning too little from learning by heart.
    """
    check_quantise(session)
    stage = f"evaluate-{name}" if name else "evaluate"
    session.records.require(f"train-{name}" if name else "train")
    with (
        session.records.stage(stage, "the test part", session.callbacks) as facts,
        ExitStack() as stack,
    ):
        network, info = trained_network(session, name), session.problem.input()
        classes = [] if info is None or name else list(info.classes)
        counted = len(classes) if len(classes) <= MOST_CLASSES else 0
        mistakes = None if info is None or not counted else Mistakes(info)
        watched = {} if mistakes is None else {"see": mistakes}
        deployed = stack.enter_context(_shipped(session, network, name, facts))
        score = scored(session, deployed, "test", classes=counted, **watched)
        loss = score.loss if math.isfinite(score.loss) else None
        facts |= {"accuracy": score.accuracy, "loss": loss, "examples": score.examples}
        if score.confusion is not None:
            _keep_confusion(session, classes, score.confusion)
            facts["files"] = [*facts["files"], CONFUSION]
        if mistakes is not None:
            session.store.write_json(MISTAKES, mistakes.worst)
            session.right = torch.cat(mistakes.right) if mistakes.right else None
        if not name:
            known = scored(session, deployed, "calibration", examples=TRAINING_IMAGES)
            facts["training_accuracy"] = known.accuracy
        if session.is_int8:
            facts["float_accuracy"] = scored(session, network, "test").accuracy
    if score.accuracy is not None:
        words = f"  test accuracy {accuracy_words(score.accuracy, score.examples)}"
        if (in_float := facts.get("float_accuracy")) is not None:
            words += f" of the int8 file, {100 * in_float:.2f} % in float"
        session.reporter.say(words)
    return score


@contextmanager
def _shipped(
    session: Session, network: nn.Module, name: str, facts: dict[str, Any]
) -> Iterator[nn.Module]:
    """What is evaluated; of the run's own network in int8 the file stays in the store."""
    if name or not session.is_int8:
        with as_deployed(session, network) as deployed:
            yield deployed
        return
    content, in_int8 = quantise(session, network)
    facts |= in_int8
    with running(session.runtime, content, session.config.measure.batch) as deployed:
        yield deployed


def _keep_confusion(session: Session, classes: Sequence[str], confusion: Tensor) -> None:
    """A row a true class, with the images that were taken for each class."""
    rows = ",\n    ".join(json.dumps(row) for row in confusion.tolist())
    text = f'{{"classes": {json.dumps(classes)},\n "counts": [\n    {rows}\n]}}\n'
    session.store.write(CONFUSION, text.encode())


def baselines(session: Session) -> None:
    """The largest network and a random one of about the same latency, trained the same way."""
    session.records.require("derive")
    largest = largest_network(session.supernet, session.unlimited_costs)
    for name, indices in zip(BASELINES, (largest, _random_network(session)), strict=True):
        if not session.records.done(f"train-{name}"):
            train_baseline(session, name, indices)
        if not session.records.done(f"evaluate-{name}"):
            evaluate(session, name)


def _random_network(session: Session) -> Indices:
    """Uniform among the networks within 5 % under the limit; without a limit, among all."""
    costs, mask = session.costs, session.supernet.mask
    generator = torch.Generator().manual_seed(derive_seed(session.config.seed, "random baseline"))
    used = binding_cost(session.supernet, costs)
    k = costs.index(used or "latency")
    low, high = costs.range(mask)[k]
    for share in (0.05, 0.2, 1.0) if used else (1.0,):
        least = (1 - share) * min(float(costs.limits[k]), high)
        for indices in sample_within(mask, costs, generator):
            if costs.of(indices)[k] >= max(least, low):
                return indices
    raise RunError("no random network keeps the limit: the limit is at the space's very edge")
