"""Batches whose images are mixed in pairs, and their labels with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from proxylessnas.errors import ConfigError
from proxylessnas.io.importing import optional
from proxylessnas.training.task import split

Mix = Callable[[Any], Any]
KINDS = {"mixup": "MixUp", "cutmix": "CutMix"}


def make_mix(kind: str, share: float, model: nn.Module) -> Mix | None:
    """Mixup (Zhang et al., 2018) or CutMix (Yun et al., 2019) of a batch (images, labels).

    The labels become shares [batch, classes]. What is drawn comes from torch's global generator.
    share: α of the Beta distribution that the mixing share is drawn from.
    model: its last linear layer says how many classes there are.

    Raises:
        ConfigError: the model has no linear layer. MissingDependency: torchvision is missing.
    """
    if kind == "none":
        return None
    v2 = optional("torchvision.transforms.v2", "torchvision", f"train.mix {kind}")
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise ConfigError(f"train.mix is {kind}, but the model has no linear layer: use none")
    transform = getattr(v2, KINDS[kind])(alpha=share, num_classes=linear[-1].out_features)

    def mix(batch: Any) -> Any:
        images, labels = split(batch)
        fits = isinstance(images, Tensor) and isinstance(labels, Tensor) and labels.dim() == 1
        if not fits or images.dim() != 4:
            raise ConfigError(
                f"train.mix is {kind}, which takes images [batch, channels, height, width] with "
                "labels [batch]; use none for other batches"
            )
        return transform(images, labels)

    return mix
