"""What a finished run's figures say of its network, judged as a person would who knows the field.

Facts in, facts out: nothing here runs a network or reads a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Z = 1.96  # standard deviations of a 95 % interval
EVERY = 0.99  # share of the answers that counts as all of them
BLOWN_UP = 2.0  # losses of guessing
BARELY_MOVED = 0.97  # mean entropy of alpha
COMPARED_ROUNDS = 6  # architecture steps, as multiples of a choice's candidates, that decide at all
FEW = 5  # images of a class: fewer say nothing of its recall


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of a network with its training and its search.

    accuracy, loss: on the test part, of `examples` images. counts: [true class][answer], images of
    the test part; empty where they were not counted. training_accuracy: on training images, without
    augmentation. epochs: of the training. pretrained: whether it began with trained weights, and
    could_be: whether such take these images. candidates: of the largest choice.
    entropy, straightness: of α, see `core.search`; None where α was no matter of this search.
    directory: the run's, for commands.
    """

    accuracy: float
    loss: float
    examples: int
    classes: Sequence[str]
    counts: Sequence[Sequence[int]] = ()
    training_accuracy: float | None = None
    epochs: float = 0.0
    pretrained: bool = False
    could_be: bool = False
    candidates: int = 0
    architecture_steps: int = 0
    entropy: float | None = None
    straightness: float | None = None
    directory: str = "RUN_DIR"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a person needs to know.

    interval: of the accuracy, 95 % of such intervals hold the true one. chance: the accuracy of
    guessing. majority: of always answering `majority_class`, the test part's largest.
    recall: by class, None where the test part has no image of it.
    problems: why the network should not be used yet, a line each with its cause and what to do.
    remarks: what else to know.
    """

    interval: tuple[float, float]
    chance: float
    majority: float | None = None
    majority_class: str = ""
    recall: dict[str, float | None]
    problems: tuple[str, ...]
    remarks: tuple[str, ...]


def judge(figures: Figures) -> Verdict:
    """The verdict on a classifier."""
    images = [sum(row) for row in figures.counts]
    largest = max(range(len(images)), key=images.__getitem__, default=None)
    majority = None if largest is None else images[largest] / max(1, sum(images))
    name = "" if largest is None else figures.classes[largest]
    recall = {
        figures.classes[k]: row[k] / images[k] if images[k] else None
        for k, row in enumerate(figures.counts)
    }
    chance = 1 / max(1, len(figures.classes))
    interval = wilson(figures.accuracy, figures.examples)
    useless = _useless(figures, majority or chance, name)
    problems = (useless, _undecided(figures))
    remarks = () if useless else (_unrecognised(figures, images, recall),)
    return Verdict(
        interval=interval,
        chance=chance,
        majority=majority,
        majority_class=name,
        recall=recall,
        problems=tuple(filter(None, problems)),
        remarks=tuple(filter(None, remarks)),
    )


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of so many (Wilson, 1927), which is right near 0 and 1 too."""
    if not count:
        return 0.0, 1.0
    spread = Z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Rival:
    """A network made by hand: its accuracy, and on how many of the test images the network that
    was found is right where this one errs (won), and the other way round (lost)."""

    accuracy: float
    won: int
    lost: int

    def points(self, examples: int) -> tuple[float, float]:
        """(lead of the network that was found over this one, its 95 % interval's half), in points.

        On the same images, so only those count on which one alone is right: the interval for
        matched pairs of Bonett and Price (2012), which adds one to either count.
        """
        won, lost, n = self.won + 1, self.lost + 1, examples + 2
        error = math.sqrt((won + lost - (won - lost) ** 2 / n) / n / n)
        return 100 * (self.won - self.lost) / max(1, examples), 100 * Z * error


def paid(by_hand: Mapping[str, Rival], examples: int) -> str:
    """Whether a search was worth it, against networks of the same latency made by hand.

    by_hand: by name, at least one. examples: test images, the same for all.
    """
    name, best = max(by_hand.items(), key=lambda item: item[1].accuracy)
    points, noise = best.points(examples)
    rival = _percent(best.accuracy)
    against = f"{name.replace('_', ' ')}, the best by hand at its latency ({rival})"
    if abs(points) <= noise:
        return (
            f"the search: {points:+.1f} points against {against}; {examples:,} test images tell "
            f"no difference under {noise:.1f}"
        )
    if points > 0:
        return f"the search paid: {points:+.1f} points (± {noise:.1f}) against {against}"
    return f"the search did not pay: {points:+.1f} points (± {noise:.1f}) against {against}"


def accuracy_words(accuracy: float, images: int) -> str:
    """`70.31 % of 64 images (95 %: 58.2 to 80.1)`."""
    low, high = wilson(accuracy, images)
    return (
        f"{100 * accuracy:.2f} % of {images:,} images (95 %: {100 * low:.1f} to {100 * high:.1f})"
    )


# --- what is wrong ---


def _useless(f: Figures, baseline: float, name: str) -> str:
    """Why the network is not shown to be better than one answer for all images."""
    low, high = wilson(f.accuracy, f.examples)
    if low > baseline:
        return ""
    rival = f"always answering {name!r}" if name else "guessing"
    guessing = math.log(max(2, len(f.classes)))
    if not f.loss <= BLOWN_UP * guessing:  # it may be no number
        return (
            f"the training blew up: its loss is {f.loss:.3g}, that of guessing {guessing:.3g}; "
            f"take a lower rate: proxylessnas train {f.directory} --train.learning-rate 0.01"
        )
    if f.accuracy > baseline:
        return (
            f"{f.examples:,} test images are too few to tell {_percent(f.accuracy)} ("
            f"{100 * low:.1f} to {_percent(high)}) from {rival} ({_percent(baseline)}); test on "
            "more: a larger test part, or --loading.test-fraction"
        )
    same = _one_answer(f)
    does = f"it answers {same!r} to every image" if same else "it is no better than chance"
    if name and not same:
        does = f"it is no better than {rival} ({_percent(baseline)})"
    return f"{does}{_cause(f, baseline)}; {_remedy(f)}"


def _one_answer(f: Figures) -> str:
    """The class that every image is taken for, if there is one."""
    answers = [sum(column) for column in zip(*f.counts, strict=True)]
    for name, count in zip(f.classes, answers, strict=False):
        if count >= EVERY * max(1, sum(answers)):
            return name
    return ""


def _cause(f: Figures, baseline: float) -> str:
    if f.training_accuracy is None:
        return ""
    knows = _percent(f.training_accuracy)
    if f.training_accuracy > baseline + (1 - baseline) / 4:
        return f": it knows its training images by heart ({knows})"
    return f": it has not learned its training images either ({knows} in {f.epochs:.3g} epochs)"


def _remedy(f: Figures) -> str:
    longer = f"train longer: proxylessnas train {f.directory} --train.epochs {3 * f.epochs:.3g}"
    if f.pretrained:
        return f"teach it longer (--teach.epochs), or bring more images a class; or {longer}"
    if f.could_be:
        return f"begin with trained weights (--pretrained efficientnet_lite0), or {longer}"
    return f"{longer}, or allow a larger --budget"


def _undecided(f: Figures) -> str:
    """Why the search did not choose: too few steps, or steps that went nowhere.

    The entropy of α does not tell: α's rate suits the number of its steps, so that it falls in a
    few random steps as well.
    """
    if f.straightness is None or f.entropy is None:
        return ""
    few = f.architecture_steps < COMPARED_ROUNDS * f.candidates
    if not few and f.straightness >= 1 and f.entropy <= BARELY_MOVED:
        return ""
    why = "are too few" if few else "took alpha no further than chance would"
    return (
        f"the search decided nothing: its {f.architecture_steps} architecture steps {why}, so that "
        "the network is little better than a random one of its cost; give it more "
        "(--search.epochs, --budget) or begin with trained weights (--pretrained)"
    )


def _unrecognised(f: Figures, images: Sequence[int], recall: dict[str, float | None]) -> str:
    never = [n for n, count in zip(recall, images, strict=True) if count >= FEW and not recall[n]]
    if not never:
        return ""
    names = ", ".join(map(repr, never[:3])) + (f" and {len(never) - 3} more" if never[3:] else "")
    return f"it never recognises {names}; bring more of their images"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
