"""Evaluating one network, and renewing its batch-normalisation statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from proxylessnas.data import Batches
from proxylessnas.training.device import Machine
from proxylessnas.training.faults import explained
from proxylessnas.training.freezing import evaluating, frozen_buffers
from proxylessnas.training.ranks import ALONE, Ranks, running_statistics
from proxylessnas.training.task import TEMPERATURES, Task, batch_size, call, counted, scalar, split


@dataclass(frozen=True)
class Score:
    """loss: mean over the examples. accuracy: share in [0, 1], None where it has no meaning.

    calibrated_loss: the loss with logits divided by the best of `TEMPERATURES`, one for all; the
    loss where there are no logits. calibrated_losses: the same of each batch.
    confusion: examples by [true class][answer], int64, where they were counted.
    """

    loss: float
    accuracy: float | None
    examples: int
    calibrated_loss: float = math.nan
    calibrated_losses: tuple[float, ...] = ()
    confusion: Tensor | None = field(default=None, compare=False)

    @property
    def value(self) -> float:
        """What a person asks for: the accuracy, or else the negative loss; higher is better."""
        return -self.loss if self.accuracy is None else self.accuracy

    @property
    def rank(self) -> tuple[float, tuple[float, ...]]:
        """What networks are chosen by: the negative calibrated loss, and that of each batch.

        An answer is right or wrong, so that accuracies of few images are mostly chance; and among
        good networks the loss tells better which is the best once trained. How sure inherited
        weights are does not matter: training will teach that (docs/log.md).
        """
        return -self.calibrated_loss, tuple(-loss for loss in self.calibrated_losses)


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations that keep statistics."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@torch.no_grad()
def evaluate(
    network: nn.Module,
    task: Task,
    batches: Batches,
    machine: Machine | None = None,
    *,
    examples: int | None = None,
    classes: int = 0,
    ranks: Ranks = ALONE,
    after_batch: Callable[[int, int], None] = lambda done, total: None,
    see: Callable[[Any, Any, Any], None] = lambda inputs, target, output: None,
) -> Score:
    """Loss and accuracy over one pass, in evaluation mode; about `examples` of them.

    classes: how many there are, if answers are to be counted by class. see: is shown every batch.

    Of several ranks each takes every so-manieth batch, and all return the score of all.
    """
    machine = machine or Machine()
    # Of each batch: correct, examples, loss, and that at each temperature.
    temperatures = 0 if task.at_temperatures is None else len(TEMPERATURES)
    seen = torch.zeros(len(batches), 3 + temperatures, dtype=torch.float64)
    confusion = torch.zeros(classes, classes, dtype=torch.float64)  # [true, answer]
    beside = task.modules_beside(network).values()
    with evaluating(network, *beside), frozen_buffers(beside), explained():
        for index, batch in _every(batches, ranks, examples):
            inputs, target = split(machine.put(batch))
            with machine.precision():
                output = call(network, inputs)
                losses = [scalar(task.loss(output, target))]
                if task.at_temperatures is not None:
                    losses += task.at_temperatures(output, target)
            size = batch_size(target, inputs)
            correct = 0.0 if task.correct is None else counted(task.correct(output, target))
            row = [correct, size, *(float(loss) * size for loss in losses)]
            seen[index] = torch.tensor(row, dtype=torch.float64)
            if classes and task.answers is not None:
                pairs = (target * classes + task.answers(output)).cpu()
                confusion += pairs.bincount(minlength=classes**2).view(classes, classes)
            see(inputs, target, output)
            after_batch(index + 1, len(batches))
    ranks.sum([seen, confusion])
    seen = seen[seen[:, 1] > 0]
    right, examples = seen[:, :2].sum(0).tolist()
    calibrated = seen[:, 3:] if temperatures else seen[:, 2:]
    calibrated = calibrated[:, calibrated.sum(0).argmin()]
    return Score(
        loss=float(seen[:, 2].sum()) / examples,
        accuracy=None if task.correct is None else right / examples,
        examples=int(examples),
        calibrated_loss=float(calibrated.sum()) / examples,
        calibrated_losses=tuple((calibrated / seen[:, 1]).tolist()),
        confusion=confusion.long() if classes and task.answers is not None else None,
    )


def _every(batches: Batches, ranks: Ranks, examples: int | None) -> Iterator[tuple[int, Any]]:
    """This rank's batches of about the first `examples`, with their numbers."""
    seen = 0
    rest = batches.epoch(0, ranks.rank, step=ranks.world)
    for done, batch in enumerate(rest):
        index = ranks.rank + done * ranks.world
        # As many were seen before this batch, the other ranks' being of the same size.
        if examples is not None and done and index * seen >= examples * done:
            return
        seen += batch_size(*reversed(split(batch)))
        yield index, batch


@torch.no_grad()
def recalibrate(
    network: nn.Module,
    batches: Batches,
    examples: int,
    machine: Machine | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Renew the BN statistics as plain averages over about `examples` training images.

    A supernet's statistics are a mixture over its paths; Once-for-All (Cai et al., 2020)
    renews them before every score. Of several ranks each takes every so-manieth batch.
    """
    machine = machine or Machine()
    norms = batch_norms(network)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    taken = torch.zeros((), dtype=torch.float64)
    with evaluating(network), explained():  # dropout off; the norms alone in training mode
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.training = True
        for _, batch in _every(batches, ranks, examples):
            inputs, _ = split(machine.put(batch))
            with machine.precision():
                call(network, inputs)
            taken += 1
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    if ranks.world > 1:  # averages over a rank's batches to the average over all
        statistics = running_statistics(norms)
        for statistic in statistics:
            statistic.mul_(float(taken))
        ranks.sum([taken, *statistics])
        for statistic in statistics:
            statistic.div_(float(taken))
