"""What networks around a model are believed to take, against what they take on the fake runtime."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import Block
from torch import nn
from trained_model import latency, specialised

from proxylessnas.core.decode import Indices
from proxylessnas.surgery.around import Around
from proxylessnas.surgery.climbing import COMPARED, climbed
from proxylessnas.surgery.corrections import ALIKE, Corrections
from proxylessnas.surgery.cost_model import CostModel
from proxylessnas.surgery.latency import Latencies
from proxylessnas.surgery.starting import Prices


@pytest.fixture(scope="module")
def around() -> Iterator[Around]:
    with pytest.MonkeyPatch.context() as patch:
        # As much as the layers themselves.
        patch.setattr("proxylessnas.hardware.runtimes.fake.MS_PER_MAC", 1e-6)
        yield specialised(target_latency="0.7x").around


def networks(around: Around, count: int, seed: int = 0) -> list[Indices]:
    rng = random.Random(seed)
    rows = [row.nonzero()[:, 0].tolist() for row in around.space.mask]
    return [tuple(rng.choice(row) for row in rows) for _ in range(count)]


def truth(around: Around, network: Indices) -> float:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("proxylessnas.hardware.runtimes.fake.MS_PER_MAC", 1e-6)
        return latency(around.space.network(network))


def errors(around: Around, model: CostModel, several: list[Indices], times: float = 1.0) -> float:
    return float(np.mean([abs(model.of(n) / times / truth(around, n) - 1) for n in several]))


def test_networks_take_what_is_believed(around: Around) -> None:
    assert errors(around, around.cost_model, networks(around, 60)) < 0.06


def test_a_sum_over_choices_is_exact_around_a_network(around: Around) -> None:
    """For it and for all that differ in one choice, but for what those have of their own."""
    model = around.cost_model
    for here in networks(around, 5, seed=1):
        costs, own = model.around(here), model.of(here)
        assert costs.of(here)[0] == pytest.approx(own)
        for m, row in enumerate(around.space.mask):
            for j in row.nonzero()[:, 0].tolist():
                swapped = (*here[:m], j, *here[m + 1 :])
                share = _line(model, swapped) / _line(model, here)
                assert costs.of(swapped)[0] == pytest.approx(share * own)


def _line(model: CostModel, network: Indices) -> float:
    weights, fixed = model._line()
    return float(weights @ model.terms.of(network)) + fixed


def test_what_was_measured_is_believed(around: Around) -> None:
    true = {n: truth(around, n) for n in networks(around, 4)}
    measured = {n: (1 + 0.06 * (-1) ** i) * ms for i, (n, ms) in enumerate(true.items())}
    model = around.cost_model.corrected(measured)
    before, after = (
        np.mean([abs(each.of(n) / ms - 1) for n, ms in measured.items()])
        for each in (around.cost_model, model)
    )
    assert after < before / 2 and after < 0.04


def test_a_device_that_is_slower_now_is_slower_for_all(around: Around) -> None:
    measured = {n: 1.4 * truth(around, n) for n in networks(around, 3, seed=2)}
    model = around.cost_model.corrected(measured)
    others = networks(around, 30, seed=3)
    assert errors(around, model, others, times=1.4) < 0.06
    assert errors(around, around.cost_model, others, times=1.4) > 0.25


def test_a_layer_that_is_off_is_off_in_all_networks() -> None:
    """Of two layers the second takes twice what was believed; the first was right."""
    parts = np.array([[share, 1 - share] for share in (0.1, 0.3, 0.5, 0.7, 0.9)])
    told = Corrections.told(parts=parts, off=parts[:, 1], now=np.zeros(5))
    believed = np.array([0.25, 0.75])
    off = float(believed @ told.layers) + told.alike(believed) - 1
    assert off == pytest.approx(0.75, abs=0.03)
    far = Corrections.told(parts=parts[:1], off=np.array([0.3]), now=np.ones(1))
    assert abs(far.alike(np.array([50.0, -49.0]))) < 1e-6 < abs(far.alike(parts[0])) < 2 * ALIKE


def test_a_network_of_which_no_layer_is_left() -> None:
    torch.manual_seed(0)
    blocks = nn.Sequential(*(Block(16) for _ in range(3)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(4, 16, 6, 6)
    data = [(x, torch.zeros(4, dtype=torch.long))]
    result = specialised(
        blocks, train=data, valid=data, example_inputs=(x[:1],), target_latency="0.5x"
    )
    model, smallest = result.around.cost_model, result.around.space.smallest
    assert set(result.around.space.chosen(smallest).values()) == {"zero"}
    assert 0 < model.of(smallest) == pytest.approx(model.around(smallest).of(smallest)[0])
    assert result.measured_ms <= result.limit_ms


def test_what_was_measured_comes_back_from_a_file(around: Around) -> None:
    facts = around.latencies.to_json()
    again = CostModel(around.space, Latencies.from_json(facts))
    network = networks(around, 1)[0]
    assert again.of(network) == around.cost_model.of(network)


def test_climbing_keeps_the_limit_and_ends(around: Around) -> None:
    """The outputs are as good as the network is large: the limit is used."""
    prices = Prices(around.cost_model, 0.6 * around.model_ms, 1.0)
    smallest, compared = around.space.smallest, list[Indices]()

    def score(network: Indices) -> tuple[float, tuple[float, ...]]:
        compared.append(network)
        return prices.of(network), ()

    ticks: list[int] = []
    path = climbed(
        smallest, prices, around.space, score, seed=0, progress=lambda done, _: ticks.append(done)
    )
    values = [prices.of(n) for n in (smallest, *path)]
    assert values == sorted(values) and max(values) <= prices.limit
    assert values[-1] > 0.95 * prices.limit > 2 * values[0]
    assert len(compared) - 1 == len(ticks) <= COMPARED
    tight = replace(prices, limit=prices.of(smallest))
    again = climbed(smallest, tight, around.space, score, seed=0, progress=lambda *_: None)
    assert all(prices.of(n) <= tight.limit for n in again)
