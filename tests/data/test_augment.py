"""Augmentation of whole batches."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proxylessnas.architecture import InputInfo
from proxylessnas.data import Augmentation, augment
from proxylessnas.errors import DataError, MissingDependency
from proxylessnas.seeds import derive_seed

_tables = st.integers(0, 1000).map(lambda seed: augment.draw(6, seed, "train", 0))


def numbered(height: int = 16, width: int = 24) -> torch.Tensor:
    """[6, 2, H, W] with every value above 0 once."""
    return torch.arange(1, 6 * 2 * height * width + 1).reshape(6, 2, height, width)


@given(table=_tables)
@settings(deadline=None, max_examples=25)
def test_moving_keeps_values_in_their_image_and_order(table: torch.Tensor) -> None:
    images = numbered()
    moved = augment.moved(images, Augmentation("crop"), table)
    for before, after in zip(images, moved, strict=True):
        inside = after[0] > 0
        height, width = int(inside.any(1).sum()), int(inside.any(0).sum())
        assert height >= 14 and width >= 21  # at most 2 of 16 and 3 of 24 are lost
        kept = after[:, inside.any(1)][:, :, inside.any(0)]
        top, left = divmod(int(kept[0, 0, 0] - before[0, 0, 0]), 24)
        assert torch.equal(kept, before[:, top : top + height, left : left + width])


def test_every_shift_occurs() -> None:
    images = numbered().repeat(100, 1, 1, 1)
    table = augment.draw(600, 0, "train", 0)
    augmentation = Augmentation("crop")
    first = augment.moved(images, augmentation, table)[:, 0]
    corners = {tuple((image > 0).nonzero()[0].tolist()) for image in first}
    assert {y for y, _ in corners} == {0, 1, 2} and {x for _, x in corners} == {0, 1, 2, 3}
    assert torch.equal(augment.moved(images, Augmentation(), table), images)


@given(table=_tables)
@settings(deadline=None, max_examples=25)
def test_flipping_twice_is_nothing(table: torch.Tensor) -> None:
    images, augmentation = numbered(), Augmentation(flip=True)
    once = augment.flipped(images, augmentation, table)
    assert torch.equal(augment.flipped(once, augmentation, table), images)
    for before, after in zip(images, once, strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(2))
    assert torch.equal(augment.flipped(images, Augmentation(), table), images)


@given(table=_tables, side=st.integers(1, 16))
@settings(deadline=None, max_examples=25)
def test_cutout_sets_one_square_to_the_mean(table: torch.Tensor, side: int) -> None:
    images = numbered().float()
    cut = augment.cut_out_(images.clone(), Augmentation(cutout=side), table)
    for before, after in zip(images, cut, strict=True):
        gone = (after == 0).all(0)
        assert torch.equal(after[:, ~gone], before[:, ~gone])
        height, width = int(gone.any(1).sum()), int(gone.any(0).sum())
        assert int(gone.sum()) == height * width
        assert side // 2 <= height <= side and side // 2 <= width <= side


@pytest.mark.parametrize(
    ("channels", "classes", "text"),
    [
        (3, ("cat", "dog"), "crop+flip"),
        (3, ("0", "1"), "crop"),
        (1, ("cat", "dog"), "shift"),
    ],
)
def test_auto(channels: int, classes: tuple[str, ...], text: str) -> None:
    assert (
        Augmentation.parse("auto", InputInfo(shape=(channels, 32, 32), classes=classes)).text
        == text
    )


POLICIES = ("randaugment", "randaugment30", "trivialaugment")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_is_torchvisions_under_the_seed_of_the_image(policy: str, channels: int) -> None:
    """Whatever batch an image is in; the global generator stays where it was."""
    v2 = pytest.importorskip("torchvision.transforms.v2")
    transform = v2.TrivialAugmentWide() if policy[0] == "t" else v2.RandAugment(magnitude=9)
    if policy.endswith("30"):
        transform = v2.RandAugment(magnitude=30)
    images = torch.randint(0, 256, (24, channels, 16, 20), dtype=torch.uint8)
    table, state = augment.draw(24, 0, "train", 0), torch.random.get_rng_state()
    changed = augment.transformed(images, Augmentation(policy=policy), table)
    assert torch.equal(state, torch.random.get_rng_state())
    assert changed.dtype == torch.uint8 and changed.shape == images.shape
    parts = [
        augment.transformed(images[at], Augmentation(policy=policy), table[at])
        for at in (slice(0, 7), slice(7, 24))
    ]
    assert torch.equal(torch.cat(parts), changed)
    for image, row, expected in zip(images, table, changed, strict=True):
        torch.manual_seed(int(row[-1] * 2**24))
        assert torch.equal(transform(image), expected)
    differs = (changed != images).flatten(1).any(1)
    assert int(differs.sum()) >= 12  # some operations are none
    assert torch.equal(augment.transformed(images, Augmentation(), table), images)


def test_other_columns_are_what_they_were_without_policies() -> None:
    generator = torch.Generator().manual_seed(derive_seed(3, "augment", "train", 2))
    table = augment.draw(50, 3, "train", 2)
    assert torch.equal(table[:, :9], torch.rand(50, 9, generator=generator))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("randaugmnt", "did you mean randaugment"),
        ("crop+trivialaugmentwide", "did you mean trivialaugment"),
        ("RandAugment", "did you mean randaugment"),
        ("randaugment31", "magnitude 1 to 30"),
        ("randaugment0", "magnitude 1 to 30"),
        ("randaugment+trivialaugment", "unknown augmentation"),
        ("", "allowed: auto, none"),
    ],
)
def test_an_unknown_policy(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Augmentation.parse(text, InputInfo(shape=(3, 32, 32)))


def test_a_policy_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    with pytest.raises(MissingDependency, match=r"randaugment needs the package torchvision"):
        Augmentation.parse("randaugment", InputInfo(shape=(3, 32, 32)))


@pytest.mark.parametrize(
    "text",
    [
        *("none", "crop", "shift", "crop+flip", "crop+flip+cutout16"),
        *POLICIES,
        "shift+flip+randaugment12+jitter+cutout4",
    ],
)
def test_policies_by_name(text: str) -> None:
    assert Augmentation.parse(text, InputInfo(shape=(3, 32, 32), classes=("a", "b"))).text == text
