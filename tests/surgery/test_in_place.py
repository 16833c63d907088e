"""One copy for many networks: put back exactly, and passes that begin in the middle."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from proxylessnas.surgery.candidates import choices_of, widths_of, with_candidates
from proxylessnas.surgery.finding import find_pairs
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.in_place import Pass, put_back
from proxylessnas.surgery.narrow import Narrowed, narrow
from proxylessnas.surgery.scores import distances, logits_distance, replacement_scores
from proxylessnas.surgery.space import Space


def space_of(model: nn.Module, x: Tensor) -> Space:
    """Unfitted candidates: what is compared are two ways to the same numbers."""
    pairs, _ = find_pairs(model, Graph(model, (x[:1],)))
    choices = choices_of(model, pairs, Graph(model, (x[:1],)), (x[:1],))
    fits = {
        pair: {w: Narrowed(torch.arange(w), {}) for w in several}
        for pair, several in widths_of(choices).items()
    }
    every = [with_candidates(choice, fits, {}, (0.5,)) for choice in choices]
    return Space(model, [choice for choice in every if len(choice.candidates) > 1])


def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Aside(nn.Module):
    """Its second half reads what the first one kept; and the same layer runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=4)
        self.twice = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU(inplace=True))
        self.inner = nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 1))
        self.head = nn.Linear(16, 5)
        self.scale = nn.Parameter(torch.ones(16, 1, 1))
        self.kept: Any = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.stem(x)))
        self.kept = x.mean()
        x = self.inner(x * self.scale).relu_()
        return self.head(x.mean((2, 3))) * self.kept


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "aside":
        return Aside().eval()
    model: nn.Module = getattr(models, name)(num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("name", ["aside", "resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize("base", ["own", "left out"])
def test_scores_are_those_of_networks_that_are_built_one_by_one(name: str, base: str) -> None:
    model, x = model_of(name), images()
    space = space_of(model, x)
    before = copy.deepcopy(space._shared.state_dict())
    around = [names[0 if base == "own" else -1] for names in space.candidates]
    actual = replacement_scores(space, [x], logits_distance, around=around)
    with torch.no_grad():
        wanted = [model(x)]
    indices = [names.index(n) for names, n in zip(space.candidates, around, strict=True)]
    for m, named in enumerate(actual):
        for j, score in enumerate(named.values()):
            network = space.network([*indices[:m], j, *indices[m + 1 :]])
            (expected,) = distances(network, [x], wanted, logits_distance)
            assert score == pytest.approx(expected, rel=1e-4, abs=1e-6), (m, j)
    after = space._shared.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_what_ran_before_a_change_does_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_of("resnet18"), images()
    first = Pass(model, x)
    assert torch.equal(first.again(["layer4.1.conv2"]), first.output)
    paths, ran = {m: path for path, m in model.named_modules()}, set()
    convolve = nn.Conv2d.forward

    def forward(self: nn.Conv2d, x: Tensor) -> Tensor:
        ran.add(paths[self].partition(".")[0])
        return convolve(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    with torch.no_grad():
        model.get_parameter("layer3.0.conv1.weight").mul_(1.5)
        output = first.again(["layer3.0.conv1"])
        assert ran == {"layer3", "layer4"}
        assert torch.equal(output, model(x)) and not torch.equal(output, first.output)


def test_models_that_keep_things_aside_run_whole() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.one.register_forward_hook(lambda *_: setattr(self, "seen", self.seen + 1))
            self.seen = 0

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x)) * self.seen

    model, x = Counting().eval(), torch.randn(2, 4)
    Pass(model, x).again(["two"])
    assert model.seen == 2


class Alternating(nn.Module):
    """Computes something else each time; or fails, where it is not run whole."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.one, self.two, self.fails, self.seen = nn.Linear(4, 4), nn.Linear(4, 4), fails, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        if self.fails and self.seen > 1:
            raise ValueError("once")
        return self.two(self.one(x)) * self.seen


@pytest.mark.parametrize(
    ("fails", "reason"),
    [(True, r"half a pass fails \(ValueError: once\)"), (False, "computes something else")],
)
def test_that_passes_share_nothing_is_said(fails: bool, reason: str) -> None:
    with pytest.warns(UserWarning, match=f"passes of Alternating share nothing.*{reason}"):
        Pass(Alternating(fails).eval(), torch.randn(2, 4))


def test_what_is_cut_in_place_is_put_back() -> None:
    model, x = model_of("mobilenet_v3_small"), images()
    pairs, _ = find_pairs(model, Graph(model, (x[:1],)))
    before = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    with pytest.raises(RuntimeError, match="on the way"), put_back(model):
        narrow(model, [(pair, Narrowed(torch.arange(8), {})) for pair in pairs])
        model.set_submodule("features.3", nn.Identity())
        assert sum(p.numel() for p in model.parameters()) < 1e6
        raise RuntimeError("on the way")
    after = model.state_dict(keep_vars=True)
    assert after.keys() == before.keys()
    assert all(
        id(after[n]) == i and torch.equal(after[n], value) for n, (i, value) in before.items()
    )
    assert all(
        m.in_channels == m.weight.shape[1] * m.groups
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    )
