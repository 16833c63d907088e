"""Two thin layers in the place of a wide one: exact at full rank, the best at a lower one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trained_model import specialised

from proxylessnas.surgery.finding import find_pairs
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.lowrank import (
    Factors,
    blank,
    blank_factors,
    fitted_factors,
    wide_layers,
)
from proxylessnas.surgery.narrow import Narrowed, narrow, narrowed
from proxylessnas.surgery.saved import restored
from proxylessnas.surgery.specialise import Specialised
from proxylessnas.training.copying import copied

WIDE = ["0", "2", "4", "7"]


def network() -> nn.Sequential:
    """Dense convolutions, one of them strided, and linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(8, 40, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(40, 48, 3, stride=2, padding=1, bias=False), nn.ReLU()),
        *(nn.Conv2d(48, 64, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        *(nn.Linear(256, 64), nn.GELU(), nn.Linear(64, 2)),
    ).eval()


def batches(count: int = 4) -> list[Tensor]:
    """Channels that are mixtures of few, so that outputs vary in few directions."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(8, 3, generator=generator)
    few = torch.randn(count, 16, 3, 8, 8, generator=generator)
    return list(torch.einsum("cf,nbfhw->nbchw", mix, few) + 0.1)


def fitted(model: nn.Module, x: list[Tensor]) -> dict[str, Factors]:
    blanks = {"full": {p: blank(model.get_submodule(p), p) for p in WIDE}}
    return fitted_factors(model, blanks, x)["full"]


def test_at_full_rank_the_factors_are_the_layer() -> None:
    model, x = network(), batches()
    factors = fitted(model, x)
    model.double()
    for path in WIDE:
        two = copied(model)
        factors[path].apply(two, {})
        assert len(two.get_submodule(path)) == 2
        with torch.no_grad():
            a, b = two(x[0].double()), model(x[0].double())
        assert float((a - b).abs().max()) <= 1e-6 * float(b.abs().max())


@pytest.mark.parametrize("large", [1024, 8])
@pytest.mark.parametrize("path", WIDE)
def test_of_a_lower_rank_it_is_the_best_of_all_maps(
    path: str, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what a layer makes with each tap, to what the leading singular values by NumPy leave.

    Three of the layers read fewer numbers than they make. large: single precision from there on.
    """
    monkeypatch.setattr("proxylessnas.surgery.lowrank.ROWS", 1 << 20)
    monkeypatch.setattr("proxylessnas.surgery.lowrank.RIDGE", 0.0)
    monkeypatch.setattr("proxylessnas.surgery.lowrank.LARGE", large)
    model, x = network(), batches()
    factors = fitted_factors(model, blank_factors(model, [path]), x)["rank 1/3"][path]
    whole, small = copied(model), copied(model)
    full = blank(model.get_submodule(path), path)
    full.apply(whole, {})
    factors.apply(small, {})
    made: dict[str, list[Tensor]] = {"whole": [], "small": []}

    def look(name: str, basis: Tensor) -> Any:
        def hook(layer: nn.Module, _: Any, output: Tensor) -> None:
            output = output.movedim(1 - layer.weight.dim(), -1).flatten(0, -2)
            made[name].append(output @ basis.T)

        return hook

    whole.get_submodule(path)[0].register_forward_hook(look("whole", full.basis))
    small.get_submodule(path)[0].register_forward_hook(look("small", factors.basis))
    with torch.no_grad():
        for batch in x:
            whole(batch), small(batch)
    y, other = (torch.cat(m).double().numpy() for m in made.values())
    y, other = y - y.mean(0), other - other.mean(0)
    left = np.linalg.svd(y, compute_uv=False)[factors.rank :]
    np.testing.assert_allclose(((y - other) ** 2).sum(), (left**2).sum(), rtol=1e-3, atol=1e-6)


def test_plain_singular_values_of_the_weight_leave_more() -> None:
    """The mean of the outputs is kept, too."""
    model, x = network(), batches()
    factors = fitted_factors(model, blank_factors(model, ["7"]), x)["rank 1/3"]["7"]
    small, plain = copied(model), copied(model)
    factors.apply(small, {})
    with torch.no_grad():
        u, s, v = torch.linalg.svd(model[7].weight, full_matrices=False)
        plain[7].weight.copy_((u * s)[:, : factors.rank] @ v[: factors.rank])
        own, fit, by_weight = (torch.cat([n[:8](b) for b in x]) for n in (model, small, plain))
    assert (fit - own).square().mean() < 0.5 * (by_weight - own).square().mean()
    torch.testing.assert_close(fit.mean(0), own.mean(0), atol=1e-4, rtol=1e-3)


def test_how_a_convolution_moves_is_split() -> None:
    """Strides, dilations, paddings of all kinds, three dimensions: exact at full rank."""
    for layer, x in (
        (nn.Conv2d(24, 24, (5, 3), (2, 1), (2, 1), (1, 2)), torch.randn(2, 24, 12, 9)),
        (nn.Conv2d(24, 32, 3, padding="same", padding_mode="circular"), torch.randn(1, 24, 7, 8)),
        (nn.Conv2d(24, 24, 3, padding=1, padding_mode="reflect"), torch.randn(1, 24, 7, 8)),
        (nn.Conv3d(24, 24, 3, (1, 2, 2), 1), torch.randn(1, 24, 5, 6, 7)),
        (nn.Conv1d(24, 24, 3, 2, 1), torch.randn(1, 24, 9)),
    ):
        model = nn.Sequential(layer).double()
        two = copied(model)
        blank(layer, "0").apply(two, {})
        with torch.no_grad():
            torch.testing.assert_close(two(x.double()), model(x.double()), atol=1e-12, rtol=0)


def test_of_low_rank_and_narrower_at_once() -> None:
    """At full rank, with channels gone on both sides, what the narrow network computes."""
    model, x = network(), batches()
    factors = fitted(model, x)
    pairs, _ = find_pairs(model, Graph(model, (x[0],)))
    cuts = [(p, Narrowed(torch.arange(0, p.width, 2 + k), {})) for k, p in enumerate(pairs)]
    expected, actual = narrowed(model, cuts).double(), copied(model).double()
    remaining = narrow(actual, cuts)
    for each in factors.values():
        each.apply(actual, remaining)
    with torch.no_grad():
        a, b = actual(x[0].double()), expected(x[0].double())
    kept = len(cuts[1][1].channels)
    assert actual[2][1].weight.shape[:2] == (kept, min(3 * kept, 120))
    assert float((a - b).abs().max()) <= 1e-6 * float(b.abs().max())


class Reads(nn.Module):
    """Of whose layers the weight is read, is another's too, or is no weight of a plain layer."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.read = nn.Linear(64, 64), nn.Linear(64, 64)
        self.tied, self.twin = nn.Linear(64, 64), nn.Linear(64, 64)
        self.twin.weight = self.tied.weight
        self.thin = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.linear(self.plain(x).relu(), self.read.weight, self.read.bias)
        return self.thin(self.twin(self.tied(x)).relu())


def test_which_layers_can_be_of_low_rank() -> None:
    x = torch.randn(2, 64)
    model = Reads().eval()
    graph = Graph(model, (x,))
    assert wide_layers(model, graph, (x,), lambda path: True) == ["plain"]
    assert not wide_layers(model, graph, (x,), lambda path: path != "plain")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_half_precision(dtype: torch.dtype) -> None:
    """The same layers, and factors of what the rounded weights make: fitted before they round."""
    model, x = network().to(dtype), [batch.to(dtype) for batch in batches()]
    single, inputs = network().to(dtype).float(), [batch.float() for batch in x]
    assert wide_layers(model, Graph(model, (x[0],)), (x[0],), lambda path: True) == WIDE
    blanks = blank_factors(model, ["0", "7"])
    several = [fitted_factors(m, blanks, b) for m, b in ((model, x), (single, inputs))]
    for path in ("0", "7"):
        half, whole = (fit["rank 1/2"][path] for fit in several)
        if path == "0":  # which no rounding comes before
            torch.testing.assert_close(half.mean, whole.mean)
        small, expected = copied(model), copied(single)
        half.apply(small, {}), whole.apply(expected, {})
        assert {p.dtype for p in small.parameters()} == {dtype}
        with torch.no_grad():
            a, b = small(x[0]).float(), expected(inputs[0])
        assert float((a - b).norm() / b.norm()) < 4 * torch.finfo(dtype).eps


def test_half_precision_that_does_not_run_in_single_precision_is_said() -> None:
    model = nn.Sequential(Halves(), *network()).bfloat16()
    x = batches()[0].bfloat16()
    graph = Graph(model, (x,))
    with pytest.warns(UserWarning, match="no low ranks, which are tried in single precision"):
        assert not wide_layers(model, graph, (x,), lambda path: True)


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.bfloat16()


def regression(model: nn.Module, data: list[tuple[Tensor, Tensor]], **how: Any) -> Specialised:
    loss, example = nn.functional.mse_loss, (data[0][0][:1],)
    parts: dict[str, Any] = {"train": data, "valid": data, "example_inputs": example}
    return specialised(model, **parts, loss=loss, correct=None, **how)


def test_layers_too_large_for_low_ranks_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxylessnas.surgery.lowrank.MOST", 40)
    model = nn.Sequential(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 40)).eval()
    data = [(batch, batch.flatten(1)[:, :40]) for batch in batches()]
    result = regression(model, data, target_latency="0.96x")
    assert "; 1 of no low rank (512x64 is too large)" in result.table


def test_a_model_of_which_no_channel_can_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Low ranks are measured, chosen, fine-tuned, saved and restored; by the table in words."""
    monkeypatch.setattr("proxylessnas.hardware.runtimes.fake.MS_PER_MAC", 1e-6)
    x, model = batches(), nn.Sequential(nn.Flatten(), nn.Linear(512, 64)).eval()
    data = [(batch, batch.flatten(1)[:, :64]) for batch in x]
    result = regression(model, data, target_latency="0.95x", out=tmp_path / "run")
    assert "its channels are an output of the model; or of rank 40, 32, 16" in result.table
    assert result.architecture == {"1": "rank32"}
    chosen, costs = result.chosen, result.choice.costs
    assert costs.of(chosen.indices) == pytest.approx(chosen.costs)  # its layers sum to it
    assert 0 < float(costs.per_candidate[0, 0, chosen.indices[0]]) <= chosen.costs[0]
    result.finetune(epochs=1)
    for again in (restored(model, tmp_path / "run"), result.derive()):
        assert [layer.weight.shape for layer in again[1]] == [(32, 512), (64, 32)]
        assert torch.equal(again(x[0]), result.network(x[0]))


def test_ranks_that_are_no_faster_are_left_out() -> None:
    """On the fake runtime a layer takes a hundredth of a millisecond, however small it is."""
    result = specialised(target_latency="0.6x")
    space = result.around.space
    slow = [n for row in space.candidates for n in row if n.startswith("rank")]
    assert slow and not any(name.startswith("rank") for name in result.architecture.values())
    assert int(space.mask.sum()) == sum(map(len, space.candidates)) - len(slow)
