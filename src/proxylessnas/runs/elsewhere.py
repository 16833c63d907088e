"""The trained network of a run directory, used on images that are not the run's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from proxylessnas.architecture import Architecture, InputInfo
from proxylessnas.config import DataSettings
from proxylessnas.data import load_for, read_image
from proxylessnas.data.decode import allow_pixels
from proxylessnas.errors import ConfigError, DataError, RunError
from proxylessnas.hardware.runtimes import make
from proxylessnas.io.console import Reporter, say
from proxylessnas.report.verdict import accuracy_words
from proxylessnas.runs.any_model import narrowed_network
from proxylessnas.runs.defaults import MODEL
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.session.deploying import Deployed, int8_name
from proxylessnas.session.store import CONFIG
from proxylessnas.spaces import build
from proxylessnas.training.evaluate import Score, evaluate
from proxylessnas.training.task import Task

Probabilities = list[tuple[str, float]]  # of the most probable classes, these first


def trained_network(path: Path, space: str | None = None) -> tuple[nn.Module, InputInfo]:
    """The network of a finished run, and how images become its input.

    Of a run in int8 it is the int8 file that is run.

    space: the `module:factory` that may be imported, where the network is built by one.

    Raises:
        RunError: the run has no trained network.
    """
    directory = RunDirectory(path)
    if not directory.has("architecture.json") or not directory.has("weights.safetensors"):
        raise RunError(f"{path} holds no trained network: finish proxylessnas run --out {path}")
    architecture = Architecture.load(directory.file("architecture.json"))
    info = architecture.input
    if info is None or len(info.shape) != 3 or not info.mean:
        raise RunError(f"{path}/architecture.json does not say how images become inputs")
    if architecture.space == MODEL:
        tensors, _ = directory.load_tensors("weights.safetensors")
        network = narrowed_network(architecture, tensors, space)
    else:
        network = build(architecture, allow=[space] if space else [])
    directory.load_weights("weights.safetensors", network)
    if directory.has(CONFIG):
        config = directory.read_config()
        allow_pixels(config.loading.max_pixels)
        if config.precision == "int8":
            name, batch = int8_name(config.runtime), config.measure.batch
            if not directory.has(name):
                raise RunError(f"{path} has no {name} yet: finish proxylessnas run --resume")
            runtime = make(config.runtime, threads=config.measure.threads, precision="int8")
            network = Deployed(runtime.load_file(directory.file(name), batch=batch), batch)
    return network.eval(), info


def predict(
    path: Path, images: Sequence[str], top: int = 3, space: str | None = None
) -> Iterator[tuple[str, Probabilities | DataError]]:
    """(image, [(class, probability), ...]) for each image, the most probable first; or (image,
    error) for one that cannot be read.

    Raises:
        RunError: see `trained_network`.
    """
    if top < 1:
        raise ConfigError(f"top is {top}; it must be at least 1")
    network, info = trained_network(path, space)
    for image in images:
        try:
            inputs = read_image(image, info)
        except DataError as error:
            yield image, error
            continue
        with torch.inference_mode():
            logits = network(inputs)
        values, order = logits.softmax(1)[0].topk(min(top, logits.shape[1]))
        named = len(info.classes) == logits.shape[1]
        names = (info.classes[i] if named else str(i) for i in order.tolist())
        yield image, list(zip(names, values.tolist(), strict=True))


def evaluate_on(
    path: Path,
    data: str,
    settings: DataSettings,
    reporter: Reporter,
    space: str | None = None,
) -> Score:
    """Accuracy of a finished run on the test part of another data set of the same classes, or on
    all of its images where it has none; nothing of the run is changed.

    Raises:
        RunError: see `trained_network`. DataError: the classes differ, or images are damaged.
    """
    network, info = trained_network(path, space)
    reporter.say(f"data: {data}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(reporter.warnings_as_lines())
        update = stack.enter_context(reporter.bar("reading the data"))
        batches, said = load_for(data, settings, info, update)
        reporter.say(f"  {said}")
        update = stack.enter_context(reporter.bar("evaluating"))
        score = evaluate(network, Task.classification(), batches, after_batch=update)
    assert score.accuracy is not None  # of a classification
    say(f"accuracy on {data} {accuracy_words(score.accuracy, score.examples)}")
    return score
