"""A verdict at the end of a run: what a person needs to know before the network is used."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from image_folders import make_folder
from torch import Tensor, nn

from proxylessnas.cli.main import main
from proxylessnas.data.batches import LoaderBatches
from proxylessnas.report.verdict import Figures, judge, wilson
from proxylessnas.training.evaluate import evaluate
from proxylessnas.training.task import Task

PHOTOS = ("ants", "bees")


def figures(counts: Sequence[Sequence[int]], **more: object) -> Figures:
    """Of a classifier with these test images by [true class][answer]."""
    total = sum(map(sum, counts))
    classes = PHOTOS if len(counts) == 2 else tuple(map(str, range(len(counts))))
    values = {
        "accuracy": sum(counts[k][k] for k in range(len(counts))) / total,
        "loss": 0.5 * math.log(len(counts)),
        "examples": total,
        "classes": classes,
        "counts": counts,
        "training_accuracy": 0.99,
        "epochs": 4.0,
        **more,
    }
    return Figures(**values)  # type: ignore[arg-type]


def test_a_network_that_answers_one_class_to_every_image_is_not_recommended() -> None:
    """245 photos: 45.75 % where the majority class has 54.2 %."""
    verdict = judge(figures([[70, 0], [83, 0]], training_accuracy=0.47, could_be=True))
    assert verdict.majority == pytest.approx(83 / 153) and verdict.majority_class == "bees"
    (problem,) = verdict.problems
    assert "answers 'ants' to every image" in problem
    assert "has not learned its training images either (47.0 % in 4 epochs)" in problem
    assert "--pretrained efficientnet_lite0" in problem and "--train.epochs 12" in problem
    assert verdict.recall == {"ants": 1.0, "bees": 0.0}


@pytest.mark.parametrize("classes", [2, 10])
def test_guessing_is_not_recommended(classes: int) -> None:
    """10.00 % of ten classes, 50.00 % of two."""
    each = [[100 // classes] * classes for _ in range(classes)]
    (problem,) = judge(figures(each, training_accuracy=1 / classes)).problems
    assert "no better than always answering" in problem
    assert "--budget" in problem and "--pretrained" not in problem  # gray, or tiny


def test_what_is_known_by_heart_is_another_cause() -> None:
    (problem,) = judge(figures([[25, 25], [25, 25]], training_accuracy=1.0)).problems
    assert "knows its training images by heart (100.0 %)" in problem


def test_a_pretrained_network_is_not_told_to_begin_with_trained_weights() -> None:
    (problem,) = judge(figures([[25, 25], [25, 25]], pretrained=True, could_be=True)).problems
    assert "--pretrained" not in problem and "--teach.epochs" in problem


@pytest.mark.parametrize("loss", [9.85, math.inf, math.nan])
def test_a_loss_that_blew_up_is_the_cause_that_is_named(loss: float) -> None:
    """9.85 where guessing has ln 10."""
    tenth = [[10] + [0] * 9 for _ in range(10)]
    (problem,) = judge(figures(tenth, loss=loss, training_accuracy=0.1)).problems
    assert "blew up" in problem and "that of guessing 2.3" in problem
    assert "--train.learning-rate" in problem


def test_a_high_loss_of_a_good_network_is_no_problem() -> None:
    assert judge(figures([[90, 10], [5, 95]], loss=3.0)).problems == ()


def test_few_test_images_cannot_tell_and_the_verdict_says_so() -> None:
    """65 % of 20 images may be 43 to 82: no better than a majority of 50 %, as far as one knows."""
    (problem,) = judge(figures([[6, 4], [3, 7]])).problems
    assert "20 test images are too few to tell 65.0 % (43.3 to 81.9 %)" in problem
    assert judge(figures([[600, 400], [300, 700]])).problems == ()


def test_a_good_majority_hides_a_class_that_is_never_recognised() -> None:
    """Of 1,000 images ten are of a class that no answer names."""
    counts = [[500, 0, 0], [10, 480, 0], [6, 4, 0]]
    verdict = judge(figures(counts))
    assert verdict.problems == ()
    (remark,) = verdict.remarks
    assert "never recognises '2'" in remark


@pytest.mark.parametrize(
    ("steps", "straightness", "entropy", "words"),
    [
        (4, 3.9, 0.48, "4 architecture steps are too few"),  # read as half decided
        (336, 0.88, 0.95, "took alpha no further than chance would"),
        (42, 0.9, 0.68, "took alpha no further than chance would"),
        (5000, 1.5, 0.985, "took alpha no further"),  # straight, but it barely moved
        (336, 34.0, 0.06, ""),
        (280, 1.3, 0.8, ""),
    ],
)
def test_a_search_that_decided_nothing_is_told_by_its_steps_and_not_by_entropy(
    steps: int, straightness: float, entropy: float, words: str
) -> None:
    good = figures(
        [[90, 10], [5, 95]],
        architecture_steps=steps,
        straightness=straightness,
        entropy=entropy,
        candidates=7,
    )
    problems = judge(good).problems
    assert len(problems) == bool(words)
    assert words in "".join(problems)


def test_a_search_that_needed_no_alpha_is_not_judged_by_it() -> None:
    """A prior from trained weights, or scores alone."""
    assert judge(figures([[90, 10], [5, 95]], architecture_steps=2, candidates=7)).problems == ()


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (0, 0, 0.0, 1.0)],
)
def test_the_interval_is_wilson_s(right: int, of: int, low: float, high: float) -> None:
    assert wilson(right / max(1, of), of) == pytest.approx((low, high), abs=1e-4)


def test_more_classes_than_are_counted_are_judged_against_chance() -> None:
    verdict = judge(
        Figures(accuracy=0.5, loss=2.0, examples=5000, classes=tuple(map(str, range(2000))))
    )
    assert (verdict.majority, verdict.recall, verdict.problems) == (None, {}, ())
    assert verdict.chance == 1 / 2000


def test_answers_are_counted_by_class_batch_after_batch() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    logits = torch.eye(3)[[0, 1, 1, 2, 0]]
    labels = torch.tensor([0, 1, 2, 2, 1])
    batches = [(logits[:2], labels[:2]), (logits[2:], labels[2:])]
    score = evaluate(Same(), Task.classification(), LoaderBatches(batches, name="test"), classes=3)
    assert score.confusion is not None
    assert score.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert score.accuracy == pytest.approx(3 / 5)


# --- of real runs ---


def test_a_run_keeps_the_facts_and_prints_them(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Summary and confusion agree with one another; the table of ten classes is printed."""
    facts = json.loads((finished_run / "summary.json").read_text())
    confusion = json.loads((finished_run / "confusion.json").read_text())
    counts, verdict = confusion["counts"], facts["verdict"]
    right = sum(counts[k][k] for k in range(10))
    assert facts["test_accuracy"] == pytest.approx(right / facts["test_images"])
    assert sum(map(sum, counts)) == facts["test_images"]
    assert verdict["recall"] == {
        name: row[k] / sum(row)
        for k, (name, row) in enumerate(zip(confusion["classes"], counts, strict=True))
    }
    assert 0 <= facts["training_accuracy"] <= 1
    run = shutil.copytree(finished_run, tmp_path / "run")
    assert main(["run", "--resume", f"--out={run}", "--quiet"]) == 0
    said = capsys.readouterr().out
    images = facts["test_images"]
    interval = rf"test accuracy: [\d.]+ % of {images} images \(95 %: [\d.]+ to [\d.]+\)"
    assert re.search(interval, said)
    assert "by chance 10.0 %" in said and "always" in said and "on training images" in said
    assert "recall" in said
    assert all(f"before you use it: {problem}" in said for problem in verdict["problems"])
    assert ("deploy it" in said) == (not verdict["problems"])


def test_noise_is_not_delivered_as_a_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of which nothing can be learned: no word of deploying, the cause and the remedy."""
    data = make_folder(tmp_path / "photos", PHOTOS, count=40, size=lambda i: (64, 64))
    words = [
        *("run", f"--data={data}", "--space=macro", "--runtime=fake", f"--out={tmp_path}/run"),
        "--space-settings={widths: [16], depths: [1], stem: 16, head: 16}",
        *("--search.warmup-epochs=1", "--search.epochs=1", "--train.epochs=1", "--quiet"),
        *("--derive.top-k=1", "--machine.threads=1", "--measure.networks=3"),
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "before you use it: it " in said and "deploy it" not in said
    assert "--pretrained efficientnet_lite0" in said or "too few to tell" in said
