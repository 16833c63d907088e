"""How a split is made: stratified, and the test part does not depend on the user's seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from proxylessnas.data.source import Indices, Source
from proxylessnas.errors import DataError
from proxylessnas.seeds import derive_seed


def fixed_parts(source: Source, test_fraction: float) -> dict[str, Indices]:
    """Image numbers of train, test and, where the data set has its own, valid.

    test_fraction: held out of train where the data set has no test part; whatever the seed, so
        that accuracies of several seeds are of the same images.
    """
    parts = dict(source.parts)
    if "test" not in parts:
        train = parts["train"]
        rest, held_out = hold_out(
            source.labels[train],
            test_fraction,
            seed=0,
            name="test",
            classes=source.classes,
            stay=1 if "valid" in parts else 2,  # one of these becomes validation
        )
        parts |= {"train": train[rest], "test": train[held_out]}
    return {role: parts[role] for role in ("train", "test", "valid") if role in parts}


def limited_parts(
    source: Source, parts: Mapping[str, Indices], limit: int | None
) -> dict[str, Indices]:
    """At most `limit` images of each part, the classes in proportion; whatever the seed."""
    if limit is None:
        return dict(parts)
    least = 2 * len(source.classes)
    if limit < least:
        raise DataError(
            f"limit {limit} is too small for {len(source.classes)} classes; at least {least}"
        )
    limited = {}
    for role, numbers in parts.items():
        least = 2 if role == "train" else 1
        chosen = stratified_sample(
            source.labels[numbers], limit, seed=0, name=f"limit/{role}", least=least
        )
        limited[role] = numbers[chosen]
    return limited


def with_validation(
    parts: Mapping[str, Indices],
    labels: Indices,
    classes: Sequence[str],
    fraction: float,
    seed: int,
) -> dict[str, Indices]:
    """train = search + valid, and test.

    The architecture parameters learn from valid, the weights from search (section 3.2 of the
    paper); the derived network is trained on both. valid is the data set's own validation part,
    or else `fraction` of the training images, chosen by `seed`.
    """
    train = parts["train"]
    if "valid" in parts:
        search, valid = train, parts["valid"]
        train = np.concatenate([search, valid])
    else:
        rest, held_out = hold_out(
            labels[train], fraction, seed=seed, name="valid", classes=classes, stay=1
        )
        search, valid = train[rest], train[held_out]
    return {"train": train, "search": search, "valid": valid, "test": parts["test"]}


def hold_out(
    labels: Indices,
    fraction: float,
    *,
    seed: int,
    name: str,
    classes: Sequence[str],
    stay: int,
) -> tuple[Indices, Indices]:
    """Sorted positions (that stay, held out): `fraction` of the images, stratified.

    At least 1 image of every class is held out and at least `stay` stay.

    Raises:
        DataError: a class has fewer images than that.
    """
    numbers, sizes = np.unique(labels, return_counts=True)
    if sizes.min() < stay + 1:
        smallest = int(sizes.argmin())
        raise DataError(
            f"class {classes[numbers[smallest]]!r} has {sizes[smallest]} training images; at "
            f"least {stay + 1} are needed to hold out a {name} part (add images or remove the "
            "class)"
        )
    count = max(round(fraction * len(labels)), len(numbers))
    held_out = stratified_sample(labels, count, seed=seed, name=f"split/{name}", least=1)
    lacking = stay - np.bincount(labels) + np.bincount(labels[held_out], minlength=labels.max() + 1)
    for number in numbers[lacking[numbers] > 0]:  # a large fraction of a small class
        members = held_out[labels[held_out] == number]
        held_out = np.setdiff1d(held_out, members[1 : 1 + lacking[number]])
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def stratified_sample(labels: Indices, count: int, *, seed: int, name: str, least: int) -> Indices:
    """`count` sorted positions, at random, every class in proportion and with at least `least`.

    Images are put in random order within their class; image r of n gets the rank (r + 1/2) / n,
    the first `least` of a class rank before all others, and the `count` lowest are taken.
    """
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        generator = torch.Generator().manual_seed(derive_seed(seed, name, int(label)))
        order = torch.randperm(len(members), generator=generator).numpy()
        within = (np.arange(len(members)) + 0.5) / len(members)
        within[:least] -= 1
        rank[members[order]] = within
    return np.sort(np.argsort(rank, kind="stable")[:count]).astype(np.int64)
