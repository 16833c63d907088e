"""The teacher: never less than its linear classifier, and its statistics are the weights' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import load
from PIL import Image
from pretrained import SMALL, small_teacher, teach
from toys import snapshot

from proxylessnas.architecture import InputInfo
from proxylessnas.config import TeachSettings
from proxylessnas.data import ImageData
from proxylessnas.data.decode import normalised
from proxylessnas.errors import DataError
from proxylessnas.pretrained.networks import Pretrained, for_gray
from proxylessnas.pretrained.teach import matched
from proxylessnas.training.evaluate import evaluate
from proxylessnas.training.task import Task

INPUT = InputInfo(shape=(3, 16, 16), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
FEW = TeachSettings(epochs=2, batch_size=8)


def trained(info: InputInfo = INPUT) -> Pretrained:
    return Pretrained(network=small_teacher(), input=info, name="small")


def photos(root: Path, mode: str = "RGB", count: int = 30) -> ImageData:
    """Three classes of noisy images that differ in brightness and in the colour of a corner."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("dark", "red", "bright")):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 130, (16, 16, 3)) + 30 * label
            pixels[:8, :8, 0] += 60 * (label == 1)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)
            image.save(root / name / f"{i:03}.png")
    return load(root)


def test_a_teacher_is_better_than_the_majority_and_reports_what_it_is(tmp_path: Path) -> None:
    pretrained, data = trained(), photos(tmp_path)
    before = snapshot(pretrained.network)
    teacher = teach(pretrained, data, FEW)
    assert not any(not torch.equal(v, before[k]) for k, v in snapshot(pretrained.network).items())
    assert teacher.linear.accuracy > teacher.linear.majority
    assert teacher.accuracy >= teacher.linear_accuracy
    _, suited = matched(pretrained, data)
    score = evaluate(teacher.network, Task.classification(), suited.batches("valid", 8))
    assert score.accuracy == teacher.accuracy
    assert teacher.network.classifier.out_features == 3
    assert not teacher.network.training


def test_statistics_stay_those_of_the_weights_to_the_bit(tmp_path: Path) -> None:
    pretrained = trained()
    before = snapshot(pretrained.network)
    after = snapshot(teach(pretrained, photos(tmp_path), FEW).network)
    statistics = [k for k in before if "running" in k or "tracked" in k]
    assert statistics and all(torch.equal(before[k], after[k]) for k in statistics)


@pytest.mark.filterwarnings("ignore:.*not finite")
def test_a_wrong_rate_leaves_the_linear_classifier_and_says_so(tmp_path: Path) -> None:
    data = photos(tmp_path)
    settings = TeachSettings(epochs=2, batch_size=8, learning_rate=500.0, warmup_epochs=0)
    teacher = teach(trained(), data, settings)
    assert teacher.best_step == 0 and teacher.accuracy == teacher.linear_accuracy
    assert "the linear classifier is the teacher" in teacher.sentence
    features = {k: v for k, v in snapshot(teacher.network).items() if not k.startswith("head.4")}
    before = snapshot(small_teacher())
    assert all(torch.equal(v, before[k]) for k, v in features.items())
    assert torch.equal(teacher.network.classifier.weight, teacher.linear.weight)


def test_the_same_seed_teaches_the_same(tmp_path: Path) -> None:
    data = photos(tmp_path)
    first, second = (teach(trained(), data, FEW, seed=3) for _ in range(2))
    other = teach(trained(), data, FEW, seed=4)
    states = [snapshot(t.network) for t in (first, second, other)]
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert first.best_step == 0 or any(
        not torch.equal(v, states[2][k]) for k, v in states[0].items()
    )


def test_a_batch_larger_than_the_data_is_cut(tmp_path: Path) -> None:
    teach(trained(), photos(tmp_path, count=8), TeachSettings(epochs=1, batch_size=512))


# --- images that are not the checkpoint's ---


def test_data_are_normalised_as_the_weights_want(tmp_path: Path) -> None:
    _, data = matched(trained(), photos(tmp_path))
    assert (data.info.mean, data.info.std) == (INPUT.mean, INPUT.std)
    assert data.info.classes == ("bright", "dark", "red")


def test_a_network_for_gray_images_computes_as_if_they_were_expanded() -> None:
    alike = InputInfo(shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.4,) * 3)
    pretrained = trained(alike)
    pixels = torch.randint(0, 256, (2, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    gray = for_gray(pretrained)
    assert gray.input.shape == (1, 16, 16)
    expected = pretrained.network(normalised(pixels.expand(-1, 3, -1, -1), (0.5,) * 3, (0.4,) * 3))
    actual = gray.network(normalised(pixels, gray.input.mean, gray.input.std))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_where_channels_are_normalised_differently_only_the_border_differs() -> None:
    pretrained = trained()
    pixels = torch.randint(0, 256, (2, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    gray = for_gray(pretrained)
    colour = normalised(pixels.expand(-1, 3, -1, -1), INPUT.mean, INPUT.std)
    expected = pretrained.network.stem(colour)[:, :, 1:-1, 1:-1]
    actual = gray.network.stem(normalised(pixels, gray.input.mean, gray.input.std))
    torch.testing.assert_close(actual[:, :, 1:-1, 1:-1], expected, rtol=1e-4, atol=1e-4)


def test_gray_photos_are_taught(tmp_path: Path) -> None:
    teacher = teach(trained(), photos(tmp_path, "L"), FEW)
    assert teacher.network.stem(torch.zeros(1, 1, 16, 16)).shape[1] == SMALL.stem


def test_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    info = InputInfo(shape=(4, 16, 16), mean=(0.5,) * 4, std=(0.4,) * 4)
    with pytest.raises(DataError, match="3 channels, and small takes 4"):
        teach(trained(info), photos(tmp_path), FEW)
