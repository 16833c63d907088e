"""The stages `train` and `evaluate`, and baselines: a derived network to its accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from proxylessnas.architecture import Architecture
from proxylessnas.core.decode import Indices, binding_cost, sample_within
from proxylessnas.errors import RunError
from proxylessnas.hardware.costs import largest_network
from proxylessnas.seeds import derive_seed
from proxylessnas.session.records import BASELINES
from proxylessnas.session.session import Session
from proxylessnas.training.evaluate import Score
from proxylessnas.training.evaluate import evaluate as evaluate_network
from proxylessnas.training.train import Training

TRAINING_IMAGES = 2000  # that tell the accuracy on training images


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
        session.drive(stage, job, "training")
        session.store.save_tensors(file, network.state_dict())
        facts["files"] = [file]
    return network


def new_training(session: Session, stage: str, network: nn.Module) -> Training:
    """The training of a network in place, at its first step."""
    problem, config = session.problem, session.config
    return Training(
        network=network,
        task=problem.training_task(config),
        train=problem.batches("train", config),
        valid=problem.batches("scoring", config) if config.train.keeps_best else None,
        settings=config.train,
        seed=session.config.seed,
        machine=session.machine,
        ranks=session.ranks,
        # Of the spaces here these run every layer on every batch; others may drop paths.
        may_skip=session.config.space not in ("mobile", "macro"),
        stage=stage,
    )


def trained_network(session: Session, name: str = "") -> nn.Module:
    """The network of this run (or of one of its baselines) with its trained weights."""
    suffix = f"-{name}" if name else ""
    architecture = session.load_architecture(f"architecture{suffix}.json")
    network = session.problem.network(architecture, session.config)
    session.store.load_weights(f"weights{suffix}.safetensors", network)
    return session.machine.place(network).eval()


def evaluate(session: Session, name: str = "") -> Score:
    """Accuracy on the test part, which nothing before has seen; of a baseline by its name."""
    stage = f"evaluate-{name}" if name else "evaluate"
    session.records.require(f"train-{name}" if name else "train")
    with session.records.stage(stage, "the test part", session.callbacks) as facts:
        with session.reporter.bar("evaluating") as update:
            score = evaluate_network(
                trained_network(session, name),
                session.problem.task,
                session.problem.batches("test", session.config),
                session.machine,
                ranks=session.ranks,
                after_batch=update,
            )
        facts |= {"accuracy": score.accuracy, "loss": score.loss, "examples": score.examples}
    if score.accuracy is not None:
        session.reporter.say(f"  test accuracy {100 * score.accuracy:.2f} %")
    return score


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
