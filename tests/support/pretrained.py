"""Small networks of inverted bottlenecks with statistics as if they were trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.architecture import Architecture, InputInfo
from proxylessnas.config import TeachSettings
from proxylessnas.data import Images
from proxylessnas.pretrained.networks import Pretrained
from proxylessnas.pretrained.teach import (
    Teacher,
    gentle,
    matched,
    taught,
    with_linear_classifier,
)
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.spaces import build, build_supernet
from proxylessnas.spaces.blocks import MBConv, Network
from proxylessnas.spaces.first_weights import initialise
from proxylessnas.spaces.inverted import BlockShape, InvertedSettings, build_network
from proxylessnas.training.device import Machine
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import Task
from proxylessnas.training.train import Training


def settled(module: nn.Module, generator: torch.Generator) -> None:
    """Give every normalisation statistics and an affine part that are not its first ones."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.running_mean, norm.bias):
                assert tensor is not None
                tensor.data.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
            for tensor in (norm.running_var, norm.weight):
                assert tensor is not None
                tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=generator))


def trained_block(
    *,
    channels: int = 6,
    inner: int = 12,
    kernel: int = 3,
    stride: int = 1,
    same: bool = False,
    size: int = 8,
) -> tuple[MBConv, Tensor]:
    """A block in evaluation mode, and inputs of it."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    block = MBConv(channels, channels, kernel=kernel, inner=inner, stride=stride, same=same)
    settled(block, generator)
    return block.eval(), torch.randn(20, channels, size, size, generator=generator)


SMALL = InvertedSettings(
    stem=8,
    blocks=(
        BlockShape(kernel=3, stride=1, out=8, inner=0, shortcut=0),
        BlockShape(kernel=5, stride=2, out=16, inner=48, shortcut=0),
        BlockShape(kernel=3, stride=1, out=16, inner=96, shortcut=1),
        BlockShape(kernel=5, stride=1, out=16, inner=96, shortcut=1),
    ),
    head=32,
    classes=5,
    same=True,
)


def small_teacher() -> Network:
    """Four blocks, five classes, images of 16 pixels or more; in evaluation mode."""
    torch.manual_seed(0)
    network = build_network(SMALL)
    initialise(network)
    nn.init.normal_(network.classifier.weight)  # outputs that tell images apart
    settled(network, torch.Generator().manual_seed(1))
    return network.eval()


def teach(
    pretrained: Pretrained,
    data: Images,
    settings: TeachSettings | None = None,
    *,
    seed: int = 0,
    machine: Machine | None = None,
    callbacks: Sequence[Any] = (),
) -> Teacher:
    """A pretrained network taught a data set, in memory; its own network is left as it is.

    Raises:
        DataError: the images do not suit the network, or are too few.
    """
    settings = TeachSettings() if settings is None else settings
    (pretrained, data), machine = matched(pretrained, data), machine or Machine()
    network = machine.place(copy.deepcopy(pretrained.network))
    size = min(settings.batch_size, data.size("search"))
    fit = with_linear_classifier(
        network,
        data.batches("search", size),
        len(data.info.classes),
        machine,
        images=data.size("search"),
    )
    train = data.batches(
        "search", size, augment=settings.augment or gentle(data), shuffle=True, seed=seed
    )
    valid = data.batches("valid", size)
    job = Training(
        network=network,
        task=Task.classification(settings.label_smoothing),
        train=train,
        settings=settings,
        seed=seed,
        machine=machine,
        stage="teach",
        valid=valid,
    )
    run_loop(job, callbacks=callbacks)
    return taught(job, fit)


TINY = {
    "input_shape": [3, 32, 32],
    "classes": 4,
    "stem": 8,
    "first": 8,
    "widths": [8, 16],
    "depths": [2, 2],
    "strides": [2, 1],
    "head": 32,
}


WORDS = [
    "--data=digits",
    "--image-size=32",
    "--runtime=fake",
    "--target-latency=0.8x",
    "--loading.limit=240",
    "--teach.epochs=1",
    "--train.epochs=1",
    "--measure.networks=4",
    "--derive.top-k=3",
    "--machine.threads=1",
    "--quiet",
]


def trained_run(path: Path) -> Path:
    """A run directory with a network of inverted bottlenecks; its weights are random."""
    directory = RunDirectory(path)
    supernet = build_supernet("mobile", TINY)
    chosen = [next(n for n in names if n != "zero") for names in supernet.candidates]
    architecture = Architecture(
        space="mobile",
        settings=supernet.settings,
        choices=dict(zip(supernet.names, chosen, strict=True)),
        input=InputInfo(shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3),
    )
    torch.manual_seed(0)
    directory.write("architecture.json", architecture.to_json().encode())
    directory.save_tensors("weights.safetensors", build(architecture).state_dict())
    return directory.path
