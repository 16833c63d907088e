"""Splits: stratified, exact in number, whatever the seed."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_folders import load, whole_part

from proxylessnas.data.splits import hold_out, stratified_sample


@given(
    sizes=st.lists(st.integers(2, 40), min_size=2, max_size=6),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
@settings(deadline=None, max_examples=60)
def test_hold_out(sizes: list[int], fraction: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    classes = [str(i) for i in range(len(sizes))]
    kept, held = hold_out(labels, fraction, seed=seed, name="valid", classes=classes, stay=1)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    taken = np.bincount(labels[held], minlength=len(sizes))
    assert (taken >= 1).all() and (taken < sizes).all()
    for count, size in zip(taken, sizes, strict=True):
        if 0.1 <= fraction <= 0.5 and size >= 10:
            assert abs(count - fraction * size) <= 3


@given(count=st.integers(4, 60), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_spread_takes_exactly_so_many(count: int, seed: int) -> None:
    labels = np.repeat([0, 1], [20, 40])
    chosen = stratified_sample(labels, count, seed=seed, name="x", least=2)
    assert len(set(chosen.tolist())) == count
    assert np.bincount(labels[chosen], minlength=2).min() >= 2


def test_the_seed_moves_valid_but_not_test() -> None:
    a, b, c = (load("digits", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(whole_part(a, "test")[0], whole_part(c, "test")[0])
    assert torch.equal(whole_part(a, "valid")[0], whole_part(b, "valid")[0])
    assert not torch.equal(whole_part(a, "valid")[0], whole_part(c, "valid")[0])
    assert a.info == c.info
