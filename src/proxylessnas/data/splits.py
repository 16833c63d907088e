"""Stratified choices: which images are held out, which are kept under a limit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from proxylessnas.errors import DataError
from proxylessnas.seeds import derive_seed

Indices = NDArray[np.int64]


def spread(labels: Indices, count: int, *, seed: int, name: str, each: int) -> Indices:
    """`count` sorted positions, at random, every class in proportion and with at least `each`.

    Images are put in random order within their class; image r of n stands at (r + 1/2) / n, the
    first `each` of a class before all others, and the `count` that stand first are taken.
    """
    stand = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        generator = torch.Generator().manual_seed(derive_seed(seed, name, int(label)))
        order = torch.randperm(len(members), generator=generator).numpy()
        place = (np.arange(len(members)) + 0.5) / len(members)
        place[:each] -= 1
        stand[members[order]] = place
    return np.sort(np.argsort(stand, kind="stable")[:count]).astype(np.int64)


def hold_out(
    labels: Indices,
    fraction: float,
    *,
    seed: int,
    name: str,
    classes: Sequence[str],
    keep: int,
) -> tuple[Indices, Indices]:
    """Positions (kept, held out): `fraction` of the images, stratified, 1 of each class at least.

    `keep` images of every class must stay; DataError names a class that has too few.
    """
    numbers, sizes = np.unique(labels, return_counts=True)
    if sizes.min() < keep + 1:
        short = int(sizes.argmin())
        raise DataError(
            f"class {classes[numbers[short]]!r} has {sizes[short]} training images; at least "
            f"{keep + 1} are needed to hold out a {name} part (add images or remove the class)"
        )
    count = max(round(fraction * len(labels)), len(numbers))
    held = spread(labels, count, seed=seed, name=f"split/{name}", each=1)
    left = np.bincount(labels, minlength=numbers.max() + 1) - np.bincount(
        labels[held], minlength=numbers.max() + 1
    )
    for number in numbers[
        left[numbers] < keep
    ]:  # only where the fraction is large and a class small
        members = held[labels[held] == number]
        held = np.setdiff1d(held, members[1 : 1 + keep - left[number]])
    return np.setdiff1d(np.arange(len(labels)), held), held
