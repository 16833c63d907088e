"""Pairs are exact: without the weights that read what goes, a model computes what is left."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from proxylessnas.errors import SupernetError
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.narrow import Narrowed, narrowed, outputs, proven
from proxylessnas.surgery.pairs import Pair, Refused, find_pairs
from proxylessnas.surgery.space import choices_of

SIDE = 64


def found(model: nn.Module, *inputs: Tensor) -> tuple[list[Pair], dict[str, str]]:
    """The pairs, and why the other layers stay."""
    model.eval()
    pairs, refused = find_pairs(model, Graph(model, inputs))
    return pairs, {layer.name: layer.reason for layer in refused}


def lively(model: nn.Module) -> nn.Module:
    """Random weights and statistics whose activations neither vanish nor grow."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
    model.train()
    with torch.no_grad():  # statistics of the model's own activations
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model(torch.randn(4, 3, SIDE, SIDE))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "pairs", "producers"),
    [
        ("resnet18", 8, "layer1.0.conv1"),
        ("mobilenet_v3_small", 23, "features.4.block.0.0"),  # depthwise and a gate between
        ("squeezenet1_1", 9, "features.3.squeeze"),
        ("mnasnet0_5", 20, "layers.0"),
        ("alexnet", 6, "features.0"),
    ],
)
def test_narrowed_networks_compute_what_zeroed_ones_do(
    name: str, pairs: int, producers: str
) -> None:
    """Of all pairs at once, by halves that are random, in outputs that do depend on the weights."""
    model = lively(getattr(torchvision.models, name)(num_classes=10))
    x = torch.randn(2, 3, SIDE, SIDE)
    every, _ = found(model, x)
    assert len(every) == pairs
    assert producers in {pair.name for pair in every}
    cuts = []
    zeroed = copy.deepcopy(model)
    for pair in every:
        order = torch.randperm(pair.width)
        keep, gone = order[: pair.width // 2].sort().values, order[pair.width // 2 :]
        cuts.append((pair, Narrowed(keep, {})))
        for cut in pair.consumers:
            inputs = zeroed.get_parameter(cut.tensor).data.unflatten(1, (pair.width, cut.rows))
            inputs[:, gone] = 0.0
    (expected,), (actual,) = outputs(zeroed, (x,)), outputs(narrowed(model, cuts), (x,))
    (own,) = outputs(model, (x,))
    scale = expected.abs().max()
    assert (own - expected).abs().max() > 1e-2 * scale  # the channels mattered
    assert (actual - expected).abs().max() <= 1e-5 * scale


# --- by hand ---


def names(pairs: list[Pair]) -> list[tuple[str, ...]]:
    return [pair.producers for pair in pairs]


class Branches(nn.Module):
    """A residual stream, a gate, a grouped convolution and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.inner, self.outer = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)
        self.up, self.gate, self.down = (nn.Conv2d(16, 24, 1) for _ in range(3))
        self.down = nn.Conv2d(24, 16, 1)
        self.before, self.grouped = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, groups=4)
        self.left, self.right = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 16, 1)
        self.classify = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.outer(self.inner(x).relu())
        x = self.down(self.up(x) * torch.sigmoid(self.gate(x)))
        x = self.grouped(self.before(x))
        x = torch.cat((self.left(x), self.right(x)), 1)
        out: Tensor = self.classify(x.mean((2, 3)))
        return out


def test_what_is_not_understood_is_refused_with_its_reason() -> None:
    pairs, reasons = found(Branches(), torch.randn(1, 3, 12, 12))
    assert names(pairs) == [("inner",), ("up", "gate"), ("down",)]
    assert "residual" in reasons["stem"]
    assert "residual" in reasons["outer"]
    assert reasons["before"] == "a grouped convolution reads its channels"
    assert reasons["grouped"] == "a grouped convolution makes its channels"
    assert "concatenated" in reasons["left"]
    assert reasons["classify"] == "its channels are an output of the model"


class Twice(nn.Module):
    """One module that is called twice, and two that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.same, self.last = (nn.Linear(16, 16) for _ in range(3))
        self.tied, self.other = nn.Linear(16, 16), nn.Linear(16, 16)
        self.other.weight = self.tied.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.same(self.first(x)))
        out: Tensor = self.last(self.other(self.tied(x).relu()))
        return out


def test_weights_that_are_used_several_times_stay() -> None:
    pairs, reasons = found(Twice(), torch.randn(2, 16))
    assert pairs == []
    assert set(reasons) - {"last"} == {"first", "same", "other"}  # torch names a shared weight once
    assert all("used several times" in reasons[name] for name in ("first", "same", "other"))


def test_blocks_are_left_out_with_their_shortcut() -> None:
    """`features.3.block` is a branch beside the shortcut, and its input has its output's shape."""
    model, x = (
        torchvision.models.mobilenet_v3_small(num_classes=10).eval(),
        torch.randn(1, 3, 32, 32),
    )
    pairs, _ = found(model, x)
    choices = {choice.name: choice for choice in choices_of(model, pairs, (x,))}
    blocks = [name for name, choice in choices.items() if choice.can_leave_out]
    assert blocks == [f"features.{i}" for i in (3, 5, 6, 8, 10, 11)]
    assert len(choices["features.5"].pairs) == 2  # the hidden channels, and those of the gate
    assert "features.4.block.0.0" in choices


class Written(nn.Module):
    """A number of channels that is written in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu())
        out: Tensor = self.third(x.view(-1, 32))
        return out


def test_numbers_of_channels_in_the_code_are_found_by_trying() -> None:
    model, x = Written().eval(), torch.randn(3, 8)
    pairs, _ = found(model, x)
    good, refused = proven(model, pairs, (x,))
    assert names(good) == [("first",)]
    assert [layer.name for layer in refused] == ["second"]
    assert isinstance(refused[0], Refused)
    assert "the model fails with fewer of its channels" in refused[0].reason


def test_flattened_maps_and_one_and_three_dimensions() -> None:
    """A channel of a flattened map is several numbers of what the linear layer reads."""
    for dimensions, conv, norm in ((1, nn.Conv1d, nn.BatchNorm1d), (3, nn.Conv3d, nn.BatchNorm3d)):
        head = nn.Linear(24 * 4**dimensions, 5)
        model = nn.Sequential(conv(2, 24, 3, padding=1), norm(24), nn.ReLU(), nn.Flatten(), head)
        x = torch.randn(2, 2, *[4] * dimensions)
        pairs, _ = found(model, x)
        (pair,) = pairs
        assert pair.consumers[0].rows == 4**dimensions
        assert proven(model.eval(), pairs, (x,)) == (pairs, [])


class Branching(nn.Module):
    """A branch on values, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) if x.sum() > 0 else x
        return out


def test_a_model_that_cannot_be_exported_is_one_line() -> None:
    with pytest.raises(SupernetError, match=r"cannot be read as a graph.*custom autograd") as error:
        Graph(Branching(), (torch.randn(1, 8),))
    assert "\n" not in str(error.value)
