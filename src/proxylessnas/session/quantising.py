"""The int8 file that a run ships: after training, or fine-tuned for it where that is better."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from proxylessnas.session.deploying import (
    calibration,
    fake_int8,
    int8_file,
    int8_name,
    reduces_range,
    running,
    scored,
)
from proxylessnas.session.session import Session

RATE = 0.1  # of the training's learning rate: the weights are good, and only their rounding is new


def quantise(session: Session, network: nn.Module) -> tuple[bytes, dict[str, Any]]:
    """The run's network in int8, which stays in the store, and what its record says.

    Raises:
        DataError, ExportError, MeasurementError: see `int8_file`; or the runtime cannot run it.
    """
    content, name = int8_file(session, network), int8_name(session.runtime.name)
    images = len(calibration(session)) * session.config.measure.batch
    facts: dict[str, Any] = {
        "files": [name],
        "calibration_images": images,
        "all_images": images < session.config.quantise.images,
        "float_blocks": session.config.quantise.float_blocks,
        "reduced_range": reduces_range(session),
    }
    if facts["all_images"]:
        session.reporter.say(
            f"  ranges of int8 are of all {images} training images that there are "
            f"(quantise.images: {session.config.quantise.images})"
        )
    if session.config.quantise.aware_epochs:
        content, facts["aware"] = _better(session, network, content)
    session.store.write(name, content)
    return content, facts


def _better(session: Session, network: nn.Module, content: bytes) -> tuple[bytes, dict[str, Any]]:
    """The file after quantisation-aware fine-tuning, or the one before where it scores higher."""
    tuned = int8_file(session, fine_tuned(session, network))
    before, after = _score(session, content), _score(session, tuned)
    kept = after > before
    values = f"{after:.4f} after it, {before:.4f} before"
    session.reporter.say(
        f"  quantisation-aware fine-tuning: validation score {values}: "
        + ("it stays" if kept else "the file without it stays")
    )
    facts = {"before": before, "after": after, "kept": kept}
    return tuned if kept else content, facts


def fine_tuned(session: Session, network: nn.Module) -> nn.Module:
    """A copy of the network, trained while it rounds as its int8 file does."""
    config, problem, fake = session.config, session.problem, fake_int8(session, network)
    settings = replace(
        config.train,
        epochs=config.quantise.aware_epochs,
        learning_rate=RATE * config.train.learning_rate,
        warmup_epochs=0.0,
        classifier_rate=1.0,
        average_decay=0.0,
        frozen_statistics=True,
        keep_best="never",
        patience=None,
    )
    train = problem.batches("train", config)
    job = session.training(fake, problem.training_task(config), train, settings, stage="evaluate")
    session.drive("evaluate", job, "fine-tuning for int8")
    return fake.network.eval()


def _score(session: Session, content: bytes) -> float:
    with running(session.runtime, content, session.config.measure.batch) as deployed:
        return scored(session, deployed, "scoring").value
