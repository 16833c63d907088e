"""Classifying image files with a trained network of a run directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from proxylessnas.architecture import Architecture
from proxylessnas.data import read_image
from proxylessnas.errors import ConfigError, RunError
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.spaces import build


def predict(
    path: Path, images: Sequence[str], top: int = 3, space: str | None = None
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """(image, [(class, probability), ...]) for each image, the most probable first.

    space: the `module:factory` that may be imported, where the network is built by one.

    Raises:
        RunError: the run has no trained network. DataError: an image cannot be read.
    """
    if top < 1:
        raise ConfigError(f"top is {top}; it must be at least 1")
    directory = RunDirectory(path)
    if not directory.has("architecture.json") or not directory.has("weights.safetensors"):
        raise RunError(f"{path} holds no trained network: finish proxylessnas run --out {path}")
    architecture = Architecture.load(directory.file("architecture.json"))
    info = architecture.input
    if info is None or len(info.shape) != 3 or not info.mean:
        raise RunError(f"{path}/architecture.json does not say how images become inputs")
    network = build(architecture, allow=[space] if space else [])
    directory.load_weights("weights.safetensors", network)
    network.eval()
    for image in images:
        with torch.inference_mode():
            logits = network(read_image(image, info))
        values, order = logits.softmax(1)[0].topk(min(top, logits.shape[1]))
        named = len(info.classes) == logits.shape[1]
        names = (info.classes[i] if named else str(i) for i in order.tolist())
        yield image, list(zip(names, values.tolist(), strict=True))
