"""Layer normalisation over the channels that remain, and layers that are fitted to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proxylessnas.surgery.finding import find_pairs
from proxylessnas.surgery.fits import narrow_fits, refit
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.moments import moments_of_readers, moments_within
from proxylessnas.surgery.narrow import Narrowed, narrowed
from proxylessnas.surgery.norms import over_some
from proxylessnas.surgery.proof import outputs, proven


class Stream(nn.Module):
    """A residual stream whose channels are sums of few numbers, normalised before each block."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        norms = {
            "layer": lambda: nn.LayerNorm(24),
            "rms": lambda: nn.RMSNorm(24),
            "group": lambda: nn.GroupNorm(1, 24),
        }
        self.embed = nn.Linear(6, 24)
        self.before, self.after = norms[norm](), norms[norm]()
        self.first, self.second, self.last = nn.Linear(24, 32), nn.Linear(32, 24), nn.Linear(24, 3)
        for part in (self.before, self.after):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            if getattr(part, "bias", None) is not None:
                nn.init.uniform_(part.bias, -0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + 0.1 * self.second(self.first(self.before(x)).relu())
        out: Tensor = self.last(self.after(x))
        return out


def found(norm: str, rows: int = 512) -> tuple[nn.Module, list[Tensor], object]:
    torch.manual_seed(0)
    model = Stream(norm).eval()
    x = [torch.randn(rows, 6) for _ in range(3)]
    pairs, _ = find_pairs(model, Graph(model, (x[0],)))
    good, refused = proven(model, pairs, (x[0],))
    assert not refused
    assert [pair.name for pair in good] == ["embed", "first"]
    return model, x, good[0]


@pytest.mark.parametrize("norm", ["layer", "rms", "group"])
def test_the_stream_is_narrowed_with_its_norms(norm: str) -> None:
    model, x, stream = found(norm)
    assert stream.producers == ("embed", "second")
    assert [norm.module for norm in stream.norms] == ["before", "after"]
    small = narrowed(model, [(stream, Narrowed(torch.arange(10), {}))])
    assert small.before.weight.shape == (10,)
    assert outputs(small, (x[0],))[0].shape == (512, 3)


def test_norms_over_some_are_those_of_fewer_channels() -> None:
    model, _, stream = found("layer")
    x = torch.randn(7, 24)
    some = torch.tensor([0, 3, 4, 11, 20])
    with over_some(model, [(stream, some)]):
        actual = model.before(x)
    expected = F.layer_norm(x[:, some], (5,), model.before.weight[some], model.before.bias[some])
    torch.testing.assert_close(actual[:, some], expected)
    assert not actual[:, 5].any()
    assert torch.equal(model.before(x), F.layer_norm(x, (24,), *model.before.parameters()))


def test_moments_within_all_channels_are_those_of_the_model() -> None:
    model, x, stream = found("layer")
    plain = moments_of_readers(model, stream.consumers, x)
    within = moments_within(model, {stream: torch.arange(24)}, x)
    for cut, moments in within[stream].items():
        torch.testing.assert_close(moments.gram, plain[cut].gram, atol=1e-5, rtol=1e-4)
        assert moments.residual.abs().max() < 1e-5


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_layers_are_fitted_to_what_norms_then_make(norm: str) -> None:
    model, x, stream = found(norm)
    kept = narrow_fits(model, {stream: [12]}, x)[stream][12]
    (own,) = outputs(model, (x[0],))

    def error(refits: dict[str, tuple[Tensor, Tensor]]) -> float:
        (out,) = outputs(narrowed(model, [(stream, Narrowed(kept.channels, refits))]), (x[0],))
        return float((out - own).square().mean() / own.var())

    within = moments_within(model, {stream: torch.arange(24)}, x)[stream]  # norms over all
    naive = {c.tensor: refit(model, c, m, kept.channels) for c, m in within.items()}
    assert error(dict(kept.refits)) < 0.8 * error(naive) < 0.8 * error({})


def test_a_layer_that_is_called_twice_is_fitted_to_both_calls() -> None:
    """Moments of two calls of half of the rows are those of one call of all."""
    model, x, stream = found("layer")

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.of = model

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.of(half) for half in x.chunk(2)])

    twice = Twice().eval()
    pairs, _ = find_pairs(twice, Graph(twice, (x[0],)))
    both = next(pair for pair in pairs if pair.name == "of.embed")
    assert both.producers == ("of.embed", "of.second")
    some = torch.arange(0, 24, 2)
    once = moments_within(model, {stream: some}, x)[stream]
    split = moments_within(twice, {both: some}, x)[both]
    for cut, moments in split.items():
        plain = next(m for c, m in once.items() if f"of.{c.tensor}" == cut.tensor)
        for name in ("gram", "mean", "target", "residual"):
            torch.testing.assert_close(
                getattr(moments, name), getattr(plain, name), atol=1e-5, rtol=1e-4
            )
