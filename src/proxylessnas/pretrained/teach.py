"""The teacher: a pretrained network specialised to a data set at its full size.

First a linear classifier on the frozen features, in closed form (`classifier`). Then fine-tuning
of everything from there with frozen statistics of batch normalisation: an ordinary `Training`,
which ends with the best weights on the validation part. Those from before the first step are among
them, so that a wrong rate leaves the linear classifier and never less.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from proxylessnas.data import Batches, Images
from proxylessnas.errors import DataError
from proxylessnas.pretrained.classifier import LinearFit, collect_moments, fit_classifier
from proxylessnas.pretrained.networks import Pretrained, for_gray
from proxylessnas.spaces.blocks import WithClassifier
from proxylessnas.training.device import Machine
from proxylessnas.training.train import Training


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """What teaching led to; accuracies are shares in [0, 1] on the validation part.

    best_step: steps of fine-tuning after which the network was best; 0: the linear classifier.
    """

    network: WithClassifier
    linear: LinearFit
    linear_accuracy: float
    accuracy: float
    best_step: int

    @property
    def sentence(self) -> str:
        """What happened, for people."""
        linear = f"linear classifier {100 * self.linear_accuracy:.1f} %"
        if self.best_step == 0:
            return (
                f"{linear}; fine-tuning never got beyond it on the validation part, so the linear "
                "classifier is the teacher (a lower teach.learning_rate may help)"
            )
        return f"{linear}, fine-tuned {100 * self.accuracy:.1f} % of the validation part"


def matched(pretrained: Pretrained, data: Images) -> tuple[Pretrained, Images]:
    """The network and the data made for each other.

    The data get the mean and the standard deviation that the weights were trained with; for gray
    images the network takes one channel, see `networks.for_gray`.

    Raises:
        DataError: the images have another number of channels.
    """
    channels, wanted = data.info.shape[0], pretrained.input.shape[0]
    if channels == 1 and wanted == 3:
        pretrained = for_gray(pretrained)
    elif channels != wanted:
        raise DataError(
            f"the images have {channels} channels, and {pretrained.name} takes {wanted}: give "
            f"images of {wanted}"
        )
    info = replace(data.info, mean=pretrained.input.mean, std=pretrained.input.std)
    return pretrained, replace(data, info=info)


def gentle(data: Images) -> str:
    """The data's augmentation, but photos are cut by a few pixels and not to any part of theirs.

    In the few epochs of a fine-tuning a box of 8 % of a photo is mostly a photo of something else.
    """
    augmentation = data.augmentation
    if augmentation.move == "crop":
        augmentation = replace(augmentation, move="shift")
    return augmentation.text


def with_linear_classifier(
    network: WithClassifier, batches: Batches, classes: int, machine: Machine, **how: Any
) -> LinearFit:
    """Replace the network's classifier by the one in closed form for these images.

    how: see `collect_moments`.

    Raises:
        DataError: there are too few images or classes.
    """
    fit = fit_classifier(collect_moments(network, batches, classes, machine, **how))
    network.replace_classifier(fit.layer())
    return fit


def taught(training: Training, fit: LinearFit) -> Teacher:
    """The result of a fine-tuning that ended."""
    best = training.best
    assert (
        best is not None and best.step is not None and isinstance(training.network, WithClassifier)
    )
    return Teacher(
        network=training.network.eval(),
        linear=fit,
        linear_accuracy=best.first[0],
        accuracy=best.score[0],
        best_step=best.step,
    )
