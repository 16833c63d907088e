"""Figures of untrained networks: exact where that can be said, and beside a score."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import nn
from toys import supernet_with

from proxylessnas.core.decode import Indices
from proxylessnas.core.supernet import MixedOp, Supernet
from proxylessnas.errors import SupernetError
from proxylessnas.hardware.count import count_macs
from proxylessnas.selection.explore import Score
from proxylessnas.selection.zero_cost import (
    ZeroCost,
    beside,
    blocks_of,
    initialised,
    spectral_entropy,
)
from proxylessnas.spaces import build_supernet

# --- one figure at a time ---


def test_entropy_is_that_of_the_share_of_every_direction() -> None:
    # Two channels that are independent, of variance 1 and 3.
    first, second = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    features = torch.stack([first, math.sqrt(3) * second], 1)
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert spectral_entropy(features) == pytest.approx(expected)
    # Any rotation, scale and offset of them is the same.
    turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    assert spectral_entropy(5 * features @ turn + 2) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(64, 5), (16, 5, 9), (4, 5, 6, 6)])
def test_entropy_of_independent_channels_is_the_logarithm_of_their_number(
    shape: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    independent = torch.linalg.qr(torch.randn(math.prod(shape) // 5, 6))[0]
    constant = torch.ones(len(independent), 1)
    channels = torch.linalg.qr(torch.cat([constant, independent], 1))[0][:, 1:6]
    features = channels.reshape(shape[0], -1, 5).transpose(1, 2).reshape(shape)
    assert spectral_entropy(features) == pytest.approx(math.log(5))


def test_features_that_say_nothing_have_no_entropy() -> None:
    assert spectral_entropy(torch.zeros(4, 3)) == 0
    with pytest.raises(SupernetError, match="channels"):
        spectral_entropy(torch.ones(4))


# --- of the networks of a supernet ---


def growing(supernet: Supernet, network: Indices, shape: tuple[int, ...] = (4, 6, 6)) -> float:
    return float(ZeroCost(supernet, shape)(network)[0])


def test_progress_is_nothing_where_features_pass_and_a_loss_where_they_collapse() -> None:
    collapse = nn.Conv2d(4, 4, 1, bias=False)
    supernet = supernet_with(
        nn.Sequential(*(MixedOp({"pass": nn.Identity(), "conv": collapse}) for _ in range(4)))
    )
    assert growing(supernet, (0, 0, 0, 0)) == pytest.approx(0.0)
    # The mean of the lower half: two of four blocks that lose count as much as four that do.
    two, four = growing(supernet, (1, 0, 1, 0)), growing(supernet, (1, 1, 1, 1))
    assert two < 0 and four < 0
    assert growing(supernet, (1, 0, 0, 0)) > two  # one of the lower half only


def test_complexity_is_the_logarithm_of_the_macs() -> None:
    supernet = build_supernet("macro", {"widths": (8, 12), "depths": (1, 2), "head": 16})
    for network in [(0, 0, 0), (1, 2, 0), (2, 2, 2)]:
        macs = count_macs(supernet.derive(network), (torch.zeros(1, 3, 32, 32),))
        assert ZeroCost(supernet, (3, 32, 32))(network)[1] == pytest.approx(math.log1p(macs))


def test_weights_and_the_global_state_do_not_matter_and_stay() -> None:
    supernet = build_supernet("cell", {"widths": (4, 8), "cells": 1})
    network = tuple(i % 4 for i in range(6))
    zero_cost = ZeroCost(supernet, (3, 16, 16))
    torch.manual_seed(3)
    first, drawn = zero_cost(network), torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), drawn)
    for parameter in supernet.model.parameters():
        nn.init.normal_(parameter)
    before = {k: v.clone() for k, v in supernet.model.state_dict().items()}
    assert np.array_equal(zero_cost(network), first)
    assert all(torch.equal(v, before[k]) for k, v in supernet.model.state_dict().items())
    other = ZeroCost(supernet, (3, 16, 16), seed=5)(network)
    assert other[1] == first[1] and other[0] != first[0]


def test_normalisations_begin_anew_too() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    nn.init.zeros_(model[1].weight)
    model[1].running_var.fill_(9.0)
    initialised(model)
    assert torch.equal(model[1].weight, torch.ones(2))
    assert torch.equal(model[1].running_var, torch.ones(2))


def test_blocks_are_those_that_are_searched() -> None:
    cells = build_supernet("cell", {"cells": 2})
    assert blocks_of(cells) == [f"blocks.{i}" for i in (0, 1, 3, 4, 6, 7)]  # without the reductions
    macro = build_supernet("macro", {})
    assert blocks_of(macro) == [f"blocks.{i}" for i in range(8)]

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = MixedOp([nn.Identity(), nn.Conv2d(2, 2, 1)])

    assert blocks_of(supernet_with(Branches())) == ["left"]


def test_a_model_of_words_is_refused_in_a_line() -> None:
    words = nn.Sequential(nn.Embedding(10, 4), MixedOp([nn.Identity(), nn.Linear(4, 4)]))
    with pytest.raises(SupernetError, match="noise in place of data"):
        ZeroCost(supernet_with(words), (5,))((0,))


# --- beside a score ---

REFERENCE: list[Indices] = [(i,) for i in range(9)]


def scored(network: Indices) -> Score:
    value = math.inf if network == (99,) else 3.0 * network[0]
    return value, (value - 1, value + 1)


def test_every_figure_counts_as_much_as_the_score() -> None:
    asked: list[Indices] = []

    def once(network: Indices) -> Score:
        asked.append(network)
        return scored(network)

    def two(network: Indices) -> np.ndarray:
        return np.array([-2.0 * network[0], math.exp(-network[0])])  # of one order

    together, unit = beside(once, two, REFERENCE), np.std([scored(n)[0] for n in REFERENCE])
    for network in REFERENCE:
        more = 2 * NormalDist().inv_cdf((8 - network[0] + 0.5) / 9) * unit
        value, batches = together(network)
        assert value == pytest.approx(scored(network)[0] + more)
        assert batches == pytest.approx([b + more for b in scored(network)[1]])
    assert asked == REFERENCE  # each once
    assert together((4,))[0] == pytest.approx(scored((4,))[0])  # the median


def test_where_all_scores_are_alike_the_figures_decide() -> None:
    together = beside(lambda n: (0.5, (0.5,)), lambda n: np.array([-float(n[0])]), REFERENCE)
    values = [together(n)[0] for n in REFERENCE]
    assert values == sorted(values, reverse=True)
    assert values[0] - 0.5 == pytest.approx(NormalDist().inv_cdf(8.5 / 9))


def test_figures_that_are_all_alike_change_nothing() -> None:
    together = beside(scored, lambda n: np.array([7.0, 7.0]), REFERENCE)
    assert [together(n)[0] for n in REFERENCE] == pytest.approx([scored(n)[0] for n in REFERENCE])


def test_equal_figures_count_alike_and_others_by_their_order() -> None:
    # Two of the nine have the least figure, six the greatest: the order of equal ones is nothing.
    figure = {n: float(min(max(n[0], 1), 3)) for n in REFERENCE}
    together = beside(lambda n: (0.0 + (n == (0,)), ()), lambda n: np.array([figure[n]]), REFERENCE)
    added = [together(n)[0] - (n == (0,)) for n in REFERENCE]
    assert added[0] == pytest.approx(added[1]) and added[3:] == pytest.approx([added[3]] * 6)
    assert added[1] < added[2] < added[3]
    assert sum(added) == pytest.approx(0)  # against the mean of the reference


def test_a_score_that_is_no_number_stays_that() -> None:
    assert together_of((99,)) == math.inf


def together_of(network: Indices) -> float:
    return beside(scored, lambda n: np.array([float(n[0])]), REFERENCE)(network)[0]
