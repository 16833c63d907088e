"""The last layer of a model of any kind, which learns the user's classes; its first, for gray."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.data.arguments import describe
from proxylessnas.errors import SupernetError, in_words
from proxylessnas.pretrained.any_model import LIBRARIES, Loaded, first_convolution
from proxylessnas.pretrained.networks import sum_channels
from proxylessnas.spaces.blocks import WithClassifier
from proxylessnas.training.freezing import evaluating, undisturbed


class Headed(WithClassifier):
    """A model of images whose output is that of a linear layer.

    path: of that layer.
    """

    def __init__(self, model: nn.Module, path: str) -> None:
        super().__init__()
        self.model, self.path = model, path

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out

    def features(self, x: Tensor) -> Tensor:
        read: list[Tensor] = []
        handle = self.classifier.register_forward_pre_hook(lambda _, args: read.append(args[0]))
        try:
            self.model(x)
        finally:
            handle.remove()
        return read[-1]

    @property
    def classifier(self) -> nn.Linear:
        layer = self.model.get_submodule(self.path)
        assert isinstance(layer, nn.Linear)
        return layer

    def replace_classifier(self, classifier: nn.Linear) -> None:
        self.model.set_submodule(self.path, classifier)


def headed(loaded: Loaded, images: Tensor) -> Headed:
    """The model with its last layer found.

    images: that it is tried on, [at least 2, channels, height, width].

    Raises:
        SupernetError: it fails on such images, does not return [batch, classes] in training too,
            or does not end in a linear layer.
    """
    model, name = loaded.model, loaded.name
    outputs: dict[str, Any] = {}
    handles = [
        layer.register_forward_hook(lambda _, __, out, path=path: outputs.__setitem__(path, out))
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and path
    ]
    try:
        with evaluating(model):
            output = model(images)
        found = dict(outputs)
        with undisturbed(model.modules()), torch.no_grad():
            learning = model.train()(images)
    except Exception as error:  # whatever the model's own code raises
        size, own = "x".join(map(str, images.shape[1:])), loaded.input.shape[-1]
        known = name.partition(":")[0] in LIBRARIES and images.shape[-1] != own
        hint = f"; it was made for {own} pixels: --image-size {own}" if known else ""
        raise SupernetError(f"{name} fails on images of {size}: {in_words(error)}{hint}") from error
    finally:
        for handle in handles:
            handle.remove()
    path = next((p for p, out in found.items() if out is output), None)
    wrong = [o for o in (output, learning) if not isinstance(o, Tensor) or o.dim() != 2]
    if wrong:
        raise SupernetError(
            f"{name} returns {describe(wrong[0])}, not logits [batch, classes]: photos are "
            "classified; other tasks are specialised by proxylessnas.specialise in Python"
        )
    if path is None:
        raise SupernetError(
            f"{name} does not end in a linear layer, which would learn your classes: give it one, "
            "or specialise it by proxylessnas.specialise in Python"
        )
    return Headed(model, path)


@torch.no_grad()
def for_gray(loaded: Loaded) -> Loaded:
    """The model for gray images, as if each were expanded to its three channels.

    As `networks.for_gray`, in the first convolution of three channels; a bias takes what the
    channels' means differ by.

    Raises:
        SupernetError: there is no such convolution.
    """
    info, model = loaded.input, loaded.model
    conv = first_convolution(model)
    if conv is None or conv.in_channels != len(info.mean) or conv.groups != 1:
        raise SupernetError(
            f"the images are gray, and {loaded.name} has no first convolution of three channels "
            "that could take them: give images in colour"
        )
    gray, moved = sum_channels(conv, info)
    if not math.isclose(float(moved.abs().max()), 0.0, abs_tol=1e-9):
        conv.bias = nn.Parameter(moved if conv.bias is None else conv.bias + moved)
    return replace(loaded, input=gray)
