"""The classifier in closed form against solving the regression, image by image left out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from proxylessnas.errors import DataError
from proxylessnas.pretrained.classifier import LinearFit, Moments, fit_classifier


def data(images: int, width: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Classes around centres of their own; every class has two images at least."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    centres = torch.randn(classes, width, generator=generator)
    return centres[labels] + torch.randn(images, width, generator=generator) + 3, labels


def fit(features: Tensor, labels: Tensor, classes: int, **options: object) -> LinearFit:
    moments = Moments(features.shape[1], classes, len(features))
    for part, target in zip(features.split(7), labels.split(7), strict=True):
        moments.add(part, target)
    return fit_classifier(moments, **options)  # type: ignore[arg-type]


def solved(features: Tensor, labels: Tensor, classes: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Weights [features, classes] and bias by the normal equations; the bias is not shrunk."""
    x = torch.cat((features.double(), torch.ones(len(features), 1)), 1)
    y = functional.one_hot(labels, classes).double()
    penalty = ridge * torch.eye(x.shape[1], dtype=torch.float64)
    penalty[-1, -1] = 0
    solution = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
    return solution[:-1], solution[-1]


def unit(features: Tensor) -> float:
    """The mean eigenvalue of the scatter, which a ridge is a share of."""
    centred = features.double() - features.double().mean(0)
    return float((centred * centred).sum()) / features.shape[1]


@given(st.integers(12, 40), st.integers(2, 30), st.integers(2, 4), st.sampled_from([1e-3, 0.1, 3]))
@settings(max_examples=30, deadline=None)
def test_weights_solve_the_regression(images: int, width: int, classes: int, ridge: float) -> None:
    """With more images than features and with fewer."""
    features, labels = data(images, width, classes)
    found = fit(features, labels, classes, ridges=[ridge])
    weight, bias = solved(features, labels, classes, ridge * unit(features))
    expected = found.temperature * (features.double() @ weight + bias)
    actual = functional.linear(features, found.layer().weight, found.layer().bias)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-3)


def test_left_out_outputs_are_those_of_a_fit_without_the_image() -> None:
    features, labels = data(25, 6, 3)
    found = fit(features, labels, 3, ridges=[0.2])
    outputs = []
    for index in range(len(features)):
        rest = torch.arange(len(features)) != index
        # The ridge stays what it is for all images.
        weight, bias = solved(features[rest], labels[rest], 3, 0.2 * unit(features))
        outputs.append(features[index].double() @ weight + bias)
    left_out = torch.stack(outputs)
    loss = functional.cross_entropy(found.temperature * left_out, labels)
    assert found.loss == pytest.approx(float(loss), rel=1e-6)
    assert found.accuracy == float((left_out.argmax(1) == labels).double().mean())


def test_the_ridge_with_the_least_left_out_loss_is_chosen() -> None:
    features, labels = data(60, 50, 2)
    ridges = [1e-4, 1e-2, 1.0, 100.0]
    losses = {ridge: fit(features, labels, 2, ridges=[ridge]).loss for ridge in ridges}
    assert fit(features, labels, 2, ridges=ridges).ridge == min(losses, key=lambda r: losses[r])


def test_few_images_of_many_features_are_classified() -> None:
    """2 classes of 60 images, 1,280 features: an unregularised fit would be of no use."""
    features, labels = data(120 + 400, 1280, 2)
    found = fit(features[:120] / 5, labels[:120], 2)
    outputs = functional.linear(features[120:] / 5, found.weight, found.bias)
    assert float((outputs.argmax(1) == labels[120:]).double().mean()) > 0.9
    assert found.accuracy > 0.9


def test_logits_are_calibrated() -> None:
    """The loss of fresh images is about that of the left-out ones, and no other scale is better."""
    features, labels = data(2400, 8, 4)
    found = fit(features[:1200], labels[:1200], 4)
    outputs = functional.linear(features[1200:], found.weight, found.bias)
    losses = [float(functional.cross_entropy(s * outputs, labels[1200:])) for s in (0.5, 1, 2)]
    assert losses[1] == min(losses) == pytest.approx(found.loss, rel=0.2)


def test_memory_does_not_grow_with_the_images() -> None:
    """Of 100,000 images only moments and a few thousand features are kept."""
    moments = Moments(4, 3, 100_000)
    for _ in range(100):
        moments.add(*data(1000, 4, 3))
    kept = sum(len(features) for features, _ in moments.kept)
    assert 3000 < kept <= 4200 and moments.seen == 100_000
    assert fit_classifier(moments).accuracy > 0.6


def test_absent_and_single_classes() -> None:
    features, labels = data(20, 5, 2)
    found = fit(features, labels, 4)  # two of four classes have no image
    assert found.counts == (10, 10, 0, 0) and found.majority == 0.5
    assert bool(torch.isfinite(found.weight).all())
    with pytest.raises(DataError, match="at least two classes"):
        fit(features, torch.zeros_like(labels), 2)
    with pytest.raises(DataError, match="cannot be fitted"):
        fit(features[:2], labels[:2], 2)
