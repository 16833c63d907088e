"""A linear classifier on frozen features, in closed form.

Ridge regression of the one-hot labels on the features: the weights that minimise
Σᵢ ‖Wᵀ(xᵢ − x̄) + ȳ − yᵢ‖² + λ‖W‖². Only moments of the features are collected, in float64, so that
100,000 images take no more memory than 100. Everything else follows from one eigendecomposition:
the weights for every λ, and what each image's output would be had it been left out,

    yᵢ − ŷᵢ₍₋ᵢ₎ = (yᵢ − ŷᵢ) / (1 − hᵢ),    hᵢ = 1/n + (xᵢ − x̄)ᵀ (S + λI)⁻¹ (xᵢ − x̄)

(Allen, 1974). λ is the one whose left-out outputs classify best, as logits of the best temperature:
outputs of a regression are no logits, and their scale would be wrong for a cross entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from proxylessnas.data import Batches
from proxylessnas.errors import DataError
from proxylessnas.spaces.blocks import WithClassifier
from proxylessnas.training.device import Machine
from proxylessnas.training.freezing import evaluating
from proxylessnas.training.task import split

RIDGES = tuple(10.0**exponent for exponent in torch.arange(-5, 2.01, 0.25).tolist())
TEMPERATURES = tuple(2.0**exponent for exponent in torch.arange(0, 8.01, 0.25).tolist())
SAMPLES = 4096  # images whose left-out outputs are computed
STEP_DOWN = 1e-9  # of the largest eigenvalue: below are directions that hold rounding alone


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearFit:
    """A classifier in closed form.

    weight: [classes, features]. bias: [classes]. Both float32, of logits.
    ridge: λ as a share of the mean eigenvalue. temperature: what outputs were multiplied with.
    accuracy, loss: of the left-out outputs (share in [0, 1], cross entropy in nats).
    counts: images of every class.
    """

    weight: Tensor
    bias: Tensor
    ridge: float
    temperature: float
    accuracy: float
    loss: float
    counts: tuple[int, ...]

    @property
    def majority(self) -> float:
        """The accuracy of always saying the most frequent class."""
        return max(self.counts) / sum(self.counts)

    def layer(self) -> nn.Linear:
        """The classifier as a module."""
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            layer.bias.copy_(self.bias)
        return layer


class Moments:
    """Sums over images: of features, of their products with each other and with the labels.

    samples: how many images' features are kept, evenly spaced among `total`, to be left out.
    """

    def __init__(self, width: int, classes: int, total: int, samples: int = SAMPLES) -> None:
        self.products = torch.zeros(width, width, dtype=torch.float64)
        self.sums = torch.zeros(classes, width, dtype=torch.float64)  # of each class
        self.counts = torch.zeros(classes, dtype=torch.float64)
        self.stride = max(1, -(-total // samples))
        self.seen = 0
        self.kept: list[tuple[Tensor, Tensor]] = []

    def add(self, features: Tensor, labels: Tensor) -> None:
        """features: [batch, width]. labels: int64 [batch]."""
        features = features.detach().cpu()
        labels = labels.cpu()
        doubled = features.double()
        self.products += doubled.T @ doubled
        self.sums.index_add_(0, labels, doubled)
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        first = -self.seen % self.stride
        self.kept.append((features[first :: self.stride].clone(), labels[first :: self.stride]))
        self.seen += len(labels)


def collect_moments(
    network: WithClassifier,
    batches: Batches,
    classes: int,
    machine: Machine | None = None,
    *,
    images: int | None = None,
    after_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Moments:
    """The moments of the network's features over an epoch of batches.

    images: how many the batches hold; default: the first batch's size times their number.
    """
    machine = machine or Machine()
    moments: Moments | None = None
    with evaluating(network):
        for index, batch in enumerate(batches.epoch(0)):
            inputs, labels = split(machine.put(batch))
            with machine.precision():
                features = network.features(inputs)
            if moments is None:
                total = images or len(labels) * len(batches)
                moments = Moments(features.shape[1], classes, total)
            moments.add(features.float(), labels)
            after_batch(index + 1, len(batches))
    assert moments is not None
    return moments


def fit_classifier(moments: Moments, ridges: Iterable[float] = RIDGES) -> LinearFit:
    """The classifier of least squares whose left-out outputs have the least cross entropy.

    Raises:
        DataError: fewer than two classes have images, or there is only one image a class.
    """
    count, counts = float(moments.counts.sum()), moments.counts
    present = int((counts > 0).sum())
    if present < 2 or count <= present:
        raise DataError(
            f"a classifier of {len(counts)} classes cannot be fitted to {int(count)} images of "
            f"{present}: give at least two classes and two images of each"
        )
    mean, prior = moments.sums.sum(0) / count, counts / count
    scatter = moments.products - count * torch.outer(mean, mean)
    # NumPy's does not give up where many eigenvalues are 0, of fewer images than features.
    values, vectors = map(torch.from_numpy, np.linalg.eigh(scatter.numpy()))
    positive = values > STEP_DOWN * values[-1].clamp_min(torch.finfo(torch.float64).tiny)
    values, vectors = values[positive], vectors[:, positive]
    # Σ (xᵢ − x̄)(yᵢ − ȳ)ᵀ in the eigenbasis, [directions, classes].
    rotated = vectors.T @ (moments.sums - torch.outer(counts, mean)).T
    left_out = _LeftOut(moments, mean, prior, values, vectors, rotated)
    unit = float(values.sum()) / len(scatter)
    loss, temperature, ridge = min((*left_out.score(ridge * unit), ridge) for ridge in ridges)
    weight = temperature * (vectors @ (rotated / (values + ridge * unit)[:, None])).T
    return LinearFit(
        weight=weight.float(),
        bias=(temperature * prior - weight @ mean).float(),
        ridge=ridge,
        temperature=temperature,
        accuracy=left_out.accuracy(ridge * unit),
        loss=loss,
        counts=tuple(int(n) for n in counts),
    )


class _LeftOut:
    """Outputs of images that were left out of the fit, for any ridge."""

    def __init__(
        self,
        moments: Moments,
        mean: Tensor,
        prior: Tensor,
        values: Tensor,
        vectors: Tensor,
        rotated: Tensor,
    ) -> None:
        features = torch.cat([kept for kept, _ in moments.kept]).double()
        self.labels = torch.cat([labels for _, labels in moments.kept])
        self.coordinates = (features - mean) @ vectors
        self.target = functional.one_hot(self.labels, len(prior)).double()
        self.values, self.rotated, self.prior = values, rotated, prior
        self.count = float(moments.counts.sum())

    def outputs(self, ridge: float) -> Tensor:
        """[samples, classes]"""
        shrunk = self.coordinates / (self.values + ridge)
        fitted = self.prior + shrunk @ self.rotated
        leverage = 1 / self.count + (shrunk * self.coordinates).sum(1, keepdim=True)
        error = (self.target - fitted) / (1 - leverage).clamp_min(1e-9)
        return self.target - error

    def score(self, ridge: float) -> tuple[float, float]:
        """(cross entropy at the best temperature, that temperature)."""
        outputs = self.outputs(ridge)
        return min(
            (float(functional.cross_entropy(scale * outputs, self.labels)), scale)
            for scale in TEMPERATURES
        )

    def accuracy(self, ridge: float) -> float:
        return float((self.outputs(ridge).argmax(1) == self.labels).double().mean())
