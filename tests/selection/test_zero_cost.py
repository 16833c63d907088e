"""Figures of untrained networks: exact where that can be said, and beside a score."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import supernet_with

from proxylessnas.core.decode import Indices
from proxylessnas.core.supernet import MixedOp, Residual, Supernet, Zero
from proxylessnas.errors import SupernetError
from proxylessnas.hardware.count import count_macs
from proxylessnas.selection.explore import Score
from proxylessnas.selection.zero_cost import (
    BATCH,
    DRAWS,
    Beside,
    ZeroCost,
    blocks_of,
    natural_noise,
    reinitialise,
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


# --- noise ---


@pytest.mark.parametrize("places", [(16, 16), (32, 8), (7, 12)])
def test_amplitudes_of_natural_noise_fall_with_the_frequency(places: tuple[int, int]) -> None:
    torch.manual_seed(0)
    noise = natural_noise((2000, 3, *places))
    assert noise.mean((2, 3)).abs().max() < 1e-5
    assert noise.var((2, 3), correction=0).allclose(torch.ones(2000, 3), atol=1e-4)
    power = torch.fft.fft2(noise).abs().square().mean((0, 1))
    rows, columns = (torch.fft.fftfreq(n)[: n // 2] for n in places)
    squared = rows[:, None] ** 2 + columns**2  # of the frequency, in cycles a pixel
    whitened = (power[: len(rows), : len(columns)] * squared).flatten()[1:]
    # The lowest ones have a little less than that: each channel was divided by its own deviation.
    assert whitened.max() / whitened.min() < 1.6


@pytest.mark.parametrize("shape", [(16, 5), (16, 5, 8), (16, 5, 1, 2), (2, 5, 4, 4, 4)])
def test_noise_of_what_is_no_image_is_white(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    noise = natural_noise(shape)
    torch.manual_seed(0)
    assert noise.equal(torch.randn(shape))


def test_networks_read_noise_whose_neighbours_are_alike() -> None:
    seen = []

    class Seen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)  # of every copy of this module
            return x

    model = nn.Sequential(Seen(), MixedOp([nn.Conv2d(4, 4, 3), nn.Identity()]))
    ZeroCost(Supernet(model), torch.zeros(1, 4, 16, 16), lambda network: 0.0)((0,))
    assert len(seen) == DRAWS
    for x in seen:
        assert x.shape == (BATCH, 4, 16, 16)
        assert (x[..., 1:] - x[..., :-1]).var() < 1.2  # 2 of white noise


# --- of the networks of a supernet ---


def zero_cost(supernet: Supernet, shape: tuple[int, ...] = (4, 6, 6), seed: int = 0) -> ZeroCost:
    """MACs by counting."""
    example = torch.zeros(1, *shape)
    return ZeroCost(
        supernet, example, lambda n: count_macs(supernet.derive(n), (example,)), seed=seed
    )


def progress(model: nn.Module, network: Indices, shape: tuple[int, ...] = (4, 6, 6)) -> float:
    return float(zero_cost(supernet_with(model), shape)(network)[0])


class Grow(nn.Module):
    """What it returns is what it reads, and so many further independent channels in zeros' place.

    Of equal variance: the entropy grows from the logarithm of one number of channels to another.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, : self.before], torch.randn_like(x)[:, self.before :]], 1) * (
            torch.arange(x.shape[1]) < self.after
        ).to(x).view(1, -1, 1, 1)


def test_progress_is_the_mean_of_the_lower_half_of_the_blocks() -> None:
    """Four blocks, from 1 channel in use to 2, 4, 8 and 8: ln 2 three times, and once nothing."""

    class Stem(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.arange(x.shape[1]) < 1).to(x).view(1, -1, 1, 1)

    steps = [(1, 2), (2, 4), (4, 8), (8, 8)]
    model = nn.Sequential(Stem(), *(MixedOp([Grow(*s), nn.Identity()]) for s in steps))
    assert progress(model, (0,) * 4, (8, 24, 24)) == pytest.approx(math.log(2) / 2, abs=0.01)
    assert progress(model, (1,) * 4, (8, 24, 24)) == pytest.approx(0.0, abs=1e-9)
    # Of an odd number, with the one in the middle.
    three = nn.Sequential(Stem(), *(MixedOp([Grow(*s), nn.Identity()]) for s in steps[:3]))
    assert progress(three, (1, 0, 0), (8, 24, 24)) == pytest.approx(math.log(2) / 2, abs=0.4)


def test_features_that_collapse_are_a_loss() -> None:
    collapse = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ReLU())
    model = nn.Sequential(*(MixedOp([nn.Identity(), collapse]) for _ in range(4)))
    assert progress(model, (1, 1, 1, 1)) < -0.05
    assert progress(model, (1, 0, 0, 0)) == pytest.approx(
        progress(model, (1, 1, 0, 0)) / 2, rel=0.6
    )


def test_another_seed_is_another_figure() -> None:
    model = nn.Sequential(MixedOp([nn.Conv2d(4, 4, 3), nn.Identity()]))
    supernet = supernet_with(model)
    figures = [float(zero_cost(supernet, seed=seed)((0,))[0]) for seed in (0, 1, 2)]
    assert len(set(figures)) == 3


def test_complexity_is_the_logarithm_of_the_macs_also_of_attention() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    supernet = supernet_with(nn.Sequential(MixedOp([encoder, nn.Identity()])))
    assert zero_cost(supernet, (5, 8))((0,))[1] == pytest.approx(
        math.log1p(count_macs(supernet.derive((0,)), (torch.zeros(1, 5, 8),)))
    )
    assert zero_cost(supernet, (5, 8))((1,))[1] == 0


def test_the_supernet_and_the_draws_of_others_stay() -> None:
    supernet = build_supernet("cell", {"widths": (4, 8), "cells": 1})
    network, figures = tuple(i % 4 for i in range(6)), zero_cost(supernet, (3, 16, 16))
    torch.manual_seed(3)
    first, drawn = figures(network), torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), drawn)
    for parameter in supernet.model.parameters():
        nn.init.normal_(parameter)
    before = {k: v.clone() for k, v in supernet.model.state_dict().items()}
    assert np.array_equal(figures(network), first)
    assert all(torch.equal(v, before[k]) for k, v in supernet.model.state_dict().items())


def test_draws_know_nothing_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet = build_supernet("cell", {"widths": (4, 8), "cells": 1})
    network, example = (0, 1, 2, 1, 0, 2), torch.zeros(1, 3, 16, 16)
    together = ZeroCost(supernet, example, lambda _: 1.0)(network)
    monkeypatch.setattr("proxylessnas.selection.zero_cost.DRAWS", 1)
    alone = [ZeroCost(supernet, example, lambda _: 1.0, seed=i)(network)[0] for i in range(DRAWS)]
    assert len(set(alone)) == DRAWS > 1
    assert together[0] == pytest.approx(np.mean(alone), rel=1e-12)


def test_new_weights_are_hes_normalisations_anew_and_frozen_ones_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 2, 1))
    nn.init.zeros_(model[1].weight)
    model[1].running_var.fill_(9.0)
    kept = model[2].requires_grad_(False).weight.clone()
    reinitialise(model)
    assert float(model[0].weight.detach().std()) == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)
    assert torch.equal(model[1].weight, torch.ones(64))
    assert torch.equal(model[1].running_var, torch.ones(64))
    assert torch.equal(model[2].weight, kept)


# --- models of all kinds ---


def two() -> MixedOp:
    return MixedOp([nn.Conv2d(4, 4, 1), nn.Identity()])


class Plain(nn.Module):
    """Positions outside of any sequence; `part` is what runs."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


def test_blocks_are_those_that_are_searched() -> None:
    cells = build_supernet("cell", {"cells": 2})
    assert blocks_of(cells) == [f"blocks.{i}" for i in (0, 1, 3, 4, 6, 7)]  # without the reductions
    assert blocks_of(build_supernet("macro", {})) == [f"blocks.{i}" for i in range(8)]
    assert blocks_of(supernet_with(Plain(two(), two()))) == ["parts.0", "parts.1"]
    assert blocks_of(supernet_with(nn.Sequential(two(), nn.ReLU()))) == ["0"]
    # A backbone with its head is no block of its own.
    deep = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Sequential(two(), two())), nn.Flatten())
    assert blocks_of(supernet_with(deep)) == ["0.1.0", "0.1.1"]
    assert blocks_of(supernet_with(nn.Sequential(Plain(two(), two()), nn.Flatten()))) == ["0"]


def test_a_shortcut_alone_is_a_block_that_changes_nothing() -> None:
    model = Plain(*(Residual(MixedOp([nn.Conv2d(4, 4, 1), Zero()])) for _ in range(2)))
    assert progress(model, (1, 1)) == pytest.approx(0.0)
    assert progress(model, (0, 1)) != progress(model, (1, 1))


def test_a_block_that_writes_into_what_it_reads() -> None:
    values = [
        progress(
            Plain(
                MixedOp([nn.Sequential(nn.ReLU(inplace=inplace), nn.Conv2d(4, 4, 1)), nn.ReLU()])
            ),
            (0,),
        )
        for inplace in (False, True)
    ]
    assert values[0] == pytest.approx(values[1])


class Turn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Named(nn.Module):
    """Calls its block by a name, and twice."""

    def __init__(self) -> None:
        super().__init__()
        self.op = MixedOp([Turn(), Turn()])

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x=self.op(x=x))


def test_a_block_that_is_called_by_name_and_one_of_double_numbers() -> None:
    assert math.isfinite(progress(Named(), (0,)))
    double = supernet_with(nn.Sequential(two()).double())
    figures = ZeroCost(double, torch.zeros(1, 4, 6, 6, dtype=torch.float64), lambda n: 1.0)
    assert math.isfinite(figures((0,))[0])


class Unheard(Named):
    def forward(self, x: Tensor) -> Tensor:
        return self.op.candidates["0"](x) if hasattr(self.op, "candidates") else x


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Embedding(9, 4), two()), "noise in place of data"),
        (nn.Sequential(nn.Flatten(0), MixedOp([nn.Identity(), nn.ReLU()])), "channels"),
        (Unheard(), "calls none of the blocks"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_line(model: nn.Module, words: str) -> None:
    with pytest.raises(SupernetError, match=words):
        progress(model, (1,))


def test_features_that_are_not_finite_are_no_figure() -> None:
    class Diverging(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.inf

    blocks = [MixedOp([Diverging(), nn.Identity()]), *(two() for _ in range(3))]
    assert math.isnan(progress(nn.Sequential(*reversed(blocks)), (1, 1, 1, 0)))
    assert math.isfinite(progress(nn.Sequential(*reversed(blocks)), (1, 1, 1, 1)))


# --- beside a score ---

REFERENCE: list[Indices] = [(i,) for i in range(9)]


def scored(network: Indices) -> Score:
    value = math.inf if network == (99,) else 3.0 * network[0]
    return value, (value - 1, value + 1)


def normal(rank: int) -> float:
    """The normal score of the rank-th of nine, from 0."""
    return NormalDist().inv_cdf((rank + 0.5) / 9)


def deviation(values: list[float]) -> float:
    return float(np.subtract(*np.quantile(values, [0.75, 0.25]))) / (2 * NormalDist().inv_cdf(0.75))


def test_every_figure_counts_as_much_as_the_score() -> None:
    asked: list[Indices] = []

    def once(network: Indices) -> Score:
        asked.append(network)
        return scored(network)

    def two_figures(network: Indices) -> np.ndarray:
        return np.array([-2.0 * network[0], math.exp(-network[0])])  # of one order

    together = Beside(once, two_figures, [*REFERENCE, REFERENCE[3]])
    unit = deviation([scored(n)[0] for n in REFERENCE])
    for network in REFERENCE:
        more = 2 * normal(8 - network[0]) * unit  # two figures
        value, batches = together(network)
        assert value == pytest.approx(scored(network)[0] + more)
        assert batches == pytest.approx([b + more for b in scored(network)[1]])
    assert asked == REFERENCE  # each once
    assert together((4,))[0] == pytest.approx(scored((4,))[0])  # the median


def test_beyond_the_reference_figures_go_on_counting() -> None:
    """Random networks of a large space are alike, and those within a limit far from them."""
    together = Beside(lambda n: (0.0, ()), lambda n: np.array([float(n[0])]), REFERENCE)
    low, least, greatest, high = (together((i,))[0] for i in (-3, 0, 8, 12))
    slope = 1 / deviation([float(n[0]) for n in REFERENCE])
    assert least - low == pytest.approx(3 * slope) and high - greatest == pytest.approx(4 * slope)


@pytest.mark.parametrize("diverged", [-1e6, -math.inf, math.nan])
def test_a_network_that_diverged_does_not_drown_the_others(diverged: float) -> None:
    def score(network: Indices) -> Score:
        return (diverged, ()) if network == (0,) else scored(network)

    together = Beside(score, lambda n: np.array([-float(n[0])]), REFERENCE)
    worth = [together(n)[0] for n in REFERENCE[1:]]
    unit = deviation([scored(n)[0] for n in REFERENCE])
    for network, value in zip(REFERENCE[1:], worth, strict=True):
        more = (value - scored(network)[0]) / unit
        assert more == pytest.approx(normal(8 - network[0]), rel=0.35, abs=1e-9)


def test_a_figure_that_is_none_is_no_score_and_says_nothing_of_others() -> None:
    def figure(network: Indices) -> np.ndarray:
        return np.array([math.nan if network[0] in (0, 50) else float(network[0])])

    together = Beside(scored, figure, REFERENCE)
    assert math.isnan(together((0,))[0]) and math.isnan(together((50,))[0])
    assert all(math.isfinite(together(n)[0]) for n in REFERENCE[1:])


def test_where_all_scores_are_alike_the_figures_decide() -> None:
    together = Beside(lambda n: (0.5, (0.5,)), lambda n: np.array([-float(n[0])]), REFERENCE)
    values = [together(n)[0] for n in REFERENCE]
    assert values == sorted(values, reverse=True)
    assert values[0] - 0.5 == pytest.approx(normal(8))


def test_figures_that_are_all_alike_change_nothing() -> None:
    together = Beside(scored, lambda n: np.array([7.0, 7.0]), REFERENCE)
    assert [together(n)[0] for n in REFERENCE] == pytest.approx([scored(n)[0] for n in REFERENCE])


def test_equal_figures_count_alike_and_others_by_their_order() -> None:
    # Two of the nine have the least figure, six the greatest: the order of equal ones is nothing.
    figure = {n: float(min(max(n[0], 1), 3)) for n in REFERENCE}
    together = Beside(lambda n: (0.0, ()), lambda n: np.array([figure[n]]), REFERENCE)
    added = [together(n)[0] for n in REFERENCE]
    assert added[0] == added[1] == pytest.approx((normal(0) + normal(1)) / 2)
    assert added[2] == pytest.approx(normal(2))
    assert added[3:] == pytest.approx([np.mean([normal(i) for i in range(3, 9)])] * 6)


def test_a_score_that_is_no_number_stays_that() -> None:
    assert Beside(scored, lambda n: np.array([float(n[0])]), REFERENCE)((99,))[0] == math.inf
