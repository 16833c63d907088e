"""Candidates of a trained block: elimination and refit are exact, by enumeration."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from proxylessnas.core.supernet import Residual, Zero
from proxylessnas.pretrained import candidates as module
from proxylessnas.pretrained import least_squares as solver
from proxylessnas.pretrained.candidates import (
    BlockFits,
    as_rows,
    block_inputs,
    cropped,
    hidden,
    moments_of,
    narrowed,
)
from proxylessnas.pretrained.least_squares import (
    Moments,
    elimination_order,
    fit_projection,
    rows_of,
)
from proxylessnas.spaces.blocks import MBConv
from tests.support.pretrained import small_teacher, trained_block


def random_moments(seed: int, size: int = 6, out: int = 3) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(40, size, generator=generator, dtype=torch.float64)
    h = h @ torch.randn(size, size, generator=generator, dtype=torch.float64)
    rest = torch.randn(40, out, generator=generator, dtype=torch.float64)
    centred, rest = h - h.mean(0), rest - rest.mean(0)
    return Moments(
        gram=centred.T @ centred / 40,
        mean=h.mean(0),
        weight=torch.randn(size, out, generator=generator, dtype=torch.float64),
        residual=centred.T @ rest / 40,
        target=torch.zeros(out, dtype=torch.float64),
    )


def least_objective(moments: Moments, channels: list[int], ridge: float) -> float:
    """The ridged squared error of the best fit of these channels, up to a constant."""
    penalty = ridge * moments.gram.diagonal().mean()
    system = moments.gram + penalty * torch.eye(len(moments.gram), dtype=torch.float64)
    right = (moments.gram @ moments.weight + moments.residual + penalty * moments.weight)[channels]
    return -float((right * torch.linalg.solve(system[channels][:, channels], right)).sum())


@given(
    seed=st.integers(0, 10_000), ridge=st.sampled_from([1e-1, 1e-3, 0.0]), rows=st.integers(1, 3)
)
@settings(max_examples=60, deadline=None)
def test_elimination_equals_brute_force(seed: int, ridge: float, rows: int) -> None:
    moments = replace(random_moments(seed, size=6 * rows), rows=rows)
    remaining, removed = list(range(6)), []
    while len(remaining) > 2:
        after = {j: [c for c in remaining if c != j] for j in remaining}
        inputs = {j: rows_of(torch.tensor(rest), rows).tolist() for j, rest in after.items()}
        costs = {j: least_objective(moments, kept, ridge) for j, kept in inputs.items()}
        removed.append(min(costs, key=costs.__getitem__))
        remaining = after[removed[-1]]
    order = elimination_order(moments, 2, ridge).tolist()
    assert order == [*remaining, *removed[::-1]]


@pytest.mark.parametrize("steps", [1, 3, 64])
def test_delayed_updates_change_no_order(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = random_moments(7, size=24)
    expected = elimination_order(moments, 2).tolist()
    monkeypatch.setattr(solver, "COLUMNS_AT_ONCE", steps)
    assert elimination_order(moments, 2).tolist() == expected


@pytest.mark.parametrize("at_once", [1, 5, 1000])
def test_each_removal_is_the_cheapest_of_all_by_new_solutions(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channels of three rows and of one at once; what is gone leaves the tensors, or does not."""
    monkeypatch.setattr(solver, "COLUMNS_AT_ONCE", at_once)
    wide, narrow = random_moments(3, size=24), random_moments(4, size=8)
    several = [replace(wide, rows=3), narrow]
    order = elimination_order(several, 2, ridge=1e-3).tolist()

    def lost(channels: list[int]) -> float:
        """What both layers miss of their targets, as shares of their outputs' variance."""
        return sum(
            least_objective(m, m.inputs_of(torch.tensor(channels)).tolist(), 1e-3) / m.variance
            for m in several
        )

    remaining = list(range(8))
    for removed in order[:1:-1]:
        costs = {j: lost([c for c in remaining if c != j]) for j in remaining}
        assert costs[removed] == pytest.approx(min(costs.values()), rel=1e-6)
        remaining.remove(removed)
    assert sorted(remaining) == sorted(order[:2])


def test_elimination_is_no_worse_than_half_of_all_subsets() -> None:
    moments = random_moments(3, size=8)
    chosen = elimination_order(moments, 3)[:3].tolist()
    errors = [least_objective(moments, list(c), 1e-3) for c in itertools.combinations(range(8), 3)]
    assert least_objective(moments, chosen, 1e-3) <= sorted(errors)[len(errors) // 10]


def least_squares(h: Tensor, target: Tensor) -> Tensor:
    """What the best affine map of h gives, by the library's own solver."""
    ones = torch.ones(len(h), 1, dtype=torch.float64)
    system = torch.cat((h.double(), ones), 1)
    return system @ torch.linalg.lstsq(system, target.double(), driver="gelsd").solution


@pytest.mark.parametrize("stride", [1, 2])
def test_the_refit_is_the_least_squares_solution(stride: int) -> None:
    block, inputs = trained_block(stride=stride)
    moments = moments_of(block, inputs)
    channels = torch.tensor([0, 2, 3, 7, 11])
    candidate = narrowed(block, moments, channels, ridge=0.0)
    with torch.no_grad():
        h = as_rows(hidden(block, inputs))[:, channels]
        expected = least_squares(h, as_rows(block(inputs)))
        torch.testing.assert_close(
            as_rows(candidate(inputs)).double(), expected, atol=1e-4, rtol=1e-4
        )


def test_a_refit_with_another_kernel_is_the_least_squares_solution() -> None:
    block, inputs = trained_block(kernel=5)
    crop = cropped(block, 3, inputs)
    channels = torch.tensor([1, 4, 5, 9])
    candidate = narrowed(crop, moments_of(crop, inputs, block), channels, ridge=0.0)
    with torch.no_grad():
        expected = least_squares(as_rows(hidden(crop, inputs))[:, channels], as_rows(block(inputs)))
        torch.testing.assert_close(
            as_rows(candidate(inputs)).double(), expected, atol=1e-4, rtol=1e-4
        )


def test_a_ridge_holds_the_fit_near_the_blocks_own_projection() -> None:
    moments, channels = random_moments(1), torch.arange(6)
    loose, tight = (fit_projection(moments, channels, r) for r in (1e-6, 1e6))
    assert (tight - moments.weight).norm() < 1e-3 * (loose - moments.weight).norm()


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_all_channels_are_the_block(kernel: int, stride: int, same: bool, ridge: float) -> None:
    block, inputs = trained_block(kernel=kernel, stride=stride, same=same)
    whole = narrowed(block, moments_of(block, inputs), torch.arange(12), ridge)
    with torch.no_grad():
        torch.testing.assert_close(whole(inputs), block(inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("size", [8, 9])
def test_a_crop_of_a_kernel_with_an_empty_edge_is_the_block(
    stride: int, same: bool, size: int
) -> None:
    block, inputs = trained_block(kernel=5, stride=stride, same=same, size=size)
    edge = torch.ones(5, 5, dtype=torch.bool)
    edge[1:4, 1:4] = False
    block.depthwise.conv.weight.data[:, :, edge] = 0
    with torch.no_grad():
        convolved = nn.Sequential(block[0], *list(block.depthwise)[:-2])(inputs)
        variance, mean = torch.var_mean(convolved, (0, 2, 3), correction=0)
        block.depthwise.norm.running_mean.copy_(mean)
        block.depthwise.norm.running_var.copy_(variance)
        torch.testing.assert_close(
            cropped(block, 3, inputs)(inputs), block(inputs), atol=1e-5, rtol=1e-5
        )


def test_a_smaller_kernel_is_normalised_by_its_own_statistics() -> None:
    block, inputs = trained_block(kernel=5)
    crop = cropped(block, 3, inputs)
    with torch.no_grad():
        normalised = nn.Sequential(crop[0], *list(crop.depthwise)[:-1])(inputs)
        scaled = (normalised - crop.depthwise.norm.bias[:, None, None]) / (
            crop.depthwise.norm.weight[:, None, None]
        )
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(12), atol=1e-4, rtol=0)


def test_narrower_candidates_have_channels_of_the_wider_ones() -> None:
    block, inputs = trained_block(channels=8, inner=48)
    fits = BlockFits(block, inputs)
    kept = [set(fits.channels(3, width).tolist()) for width in (48, 40, 32, 16, 8)]
    assert all(small < large for large, small in itertools.pairwise(kept))
    weights = fits.candidate(3, 16).expand
    assert weights is not None and block.expand is not None
    expected = block.expand.conv.weight[fits.channels(3, 16)]
    assert torch.equal(weights.conv.weight, expected)


def test_a_wider_candidate_comes_nearer_to_the_block() -> None:
    block, inputs = trained_block(channels=8, inner=48, kernel=5)
    fits = BlockFits(block, inputs)
    with torch.no_grad():
        errors = {
            kernel: [
                float((fits.candidate(kernel, width)(inputs) - block(inputs)).square().mean())
                for width in (48, 40, 32, 16, 8)
            ]
            for kernel in (5, 3)
        }
    assert errors[5][0] == 0
    for row in errors.values():
        assert row == sorted(row)
    assert errors[3][0] > 0


def test_candidates_by_name() -> None:
    block, inputs = trained_block(channels=8, inner=48, kernel=5)
    named = BlockFits(Residual(block), inputs).candidates((1 / 2, 1 / 3))
    assert list(named) == ["k5_w48", "k5_w24", "k5_w16", "k3_w48", "k3_w24", "k3_w16", "zero"]
    assert isinstance(named["zero"], Zero)
    assert "zero" not in BlockFits(block, inputs).candidates()
    shapes = [n.project.conv.in_channels for n in named.values() if isinstance(n, MBConv)]
    assert shapes == [48, 24, 16, 48, 24, 16]


@pytest.mark.parametrize(
    ("width", "full", "expected"),
    [(101, 144, 104), (48, 144, 48), (3, 144, 8), (600, 672, 608), (670, 672, 672), (10, 672, 16)],
)
def test_widths_are_what_runtimes_compute_in(width: float, full: int, expected: int) -> None:
    assert module.rounded_width(width, full) == expected


def test_a_block_that_does_not_expand_keeps_its_width() -> None:
    block = MBConv(8, 8, kernel=5, expansion=1).eval()
    named = BlockFits(nn.Sequential(block)[0], torch.randn(4, 8, 6, 6)).candidates()
    assert list(named) == ["k5_w8", "k3_w8"]


def test_inputs_of_blocks_are_of_as_many_photos_as_they_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PHOTOS", 12)
    monkeypatch.setattr(module, "LEAST_PHOTOS", 4)
    monkeypatch.setattr(module, "PIXELS", 16 * 10)
    teacher = small_teacher()
    batches = torch.randn(5, 4, 3, 16, 16).unbind(0)
    inputs = block_inputs(teacher, batches)
    assert [len(x) for x in inputs] == [4, 4, 12, 12]
    with torch.no_grad():
        x = teacher.blocks[0](teacher.stem(torch.cat(batches[:3])))
        torch.testing.assert_close(inputs[1], x[:4])
        torch.testing.assert_close(inputs[2], teacher.blocks[1](x))


def test_a_very_large_ridge_narrows_by_magnitude_and_refits_nothing() -> None:
    moments = random_moments(0, size=8)
    strength = moments.weight.square().sum(1)
    order = elimination_order(moments, 3, ridge=1e9)
    assert set(order[:3].tolist()) == set(strength.topk(3).indices.tolist())
    kept = order[:3].sort().values
    torch.testing.assert_close(fit_projection(moments, kept, 1e9), moments.weight[kept])
