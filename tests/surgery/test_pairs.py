"""Pairs are exact: without the weights that read what goes, a model computes what is left."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from proxylessnas.errors import SupernetError
from proxylessnas.surgery.attention import opened
from proxylessnas.surgery.candidates import choices_of
from proxylessnas.surgery.finding import find_pairs
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.narrow import Narrowed, narrowed
from proxylessnas.surgery.pairs import Pair, Refused
from proxylessnas.surgery.proof import proven


def found(model: nn.Module, *inputs: Tensor) -> tuple[list[Pair], dict[str, str]]:
    """The pairs, and why the other layers stay."""
    model.eval()
    pairs, refused = find_pairs(model, Graph(model, inputs))
    return pairs, {layer.name: layer.reason for layer in refused}


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
        self.before, self.grouped = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 3, groups=4)
        self.norm = nn.GroupNorm(8, 16)
        self.left, self.right = nn.Conv2d(16, 10, 1), nn.Conv2d(16, 12, 1, bias=False)
        self.back = nn.ConvTranspose2d(38, 20, 3, stride=2)
        self.classify = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.outer(self.inner(x).relu())
        y = self.down(self.up(x) * torch.sigmoid(self.gate(x)))
        y = self.norm(self.grouped(self.before(y)))
        y = torch.cat((self.left(y), y, self.right(y)), 1)
        out: Tensor = self.classify(self.back(y).relu().mean((2, 3)))
        return out


def test_all_that_goes_together_is_found() -> None:
    model, x = Branches(), torch.randn(1, 3, 12, 12)
    pairs, reasons = found(model, x)
    by_name = {pair.name: pair for pair in pairs}
    assert names(pairs) == [
        *(("stem", "outer"), ("inner",), ("up", "gate"), ("down",)),
        *(("before",), ("left",), ("right",), ("back",)),
    ]
    assert reasons == {"classify": "its channels are an output of the model"}
    groups = by_name["before"]
    assert (groups.width, groups.unit) == (4, 8)
    assert [cut.tensor for cut in groups.consumers] == [
        "left.weight",
        "right.weight",
        "back.weight",
    ]
    back = groups.consumers[2]  # whose inputs are 10 of `left`, 16 of these, 12 of `right`
    assert back.axis == 0
    assert back.places.tolist() == torch.arange(10, 26).view(4, 4).tolist()
    assert back.remaining(torch.tensor([1])).tolist() == [
        *range(10),
        *range(14, 18),
        *range(26, 38),
    ]
    assert proven(model, pairs, (x,)) == (pairs, [])
    small = narrowed(model, [(groups, Narrowed(torch.tensor([0, 2]), {}))])
    assert (small.grouped.groups, small.norm.num_groups, small.back.in_channels) == (2, 4, 30)


class Attention(nn.Module):
    """Queries, keys and values by layers of their own; numbers of heads are in attributes."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.inside = heads, 24
        self.q, self.k, self.v, self.out = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v)
        )
        scores = (q @ k.transpose(2, 3)).softmax(-1)
        out: Tensor = self.out((scores @ v).transpose(1, 2).reshape(*x.shape[:2], self.inside))
        return out


def test_heads_go_whole_and_their_numbers_with_them() -> None:
    model, x = Attention(4).eval(), torch.randn(2, 5, 24)
    pairs, reasons = found(model, x)
    (heads,) = pairs
    assert (heads.producers, heads.width, heads.unit) == (("q", "k", "v"), 4, 6)
    assert set(reasons) == {"out"}
    assert proven(model, pairs, (x,)) == (pairs, [])
    small = narrowed(model, [(heads, Narrowed(torch.tensor([1, 2]), {}))])
    assert (small.heads, small.inside) == (2, 12)
    # Of a single head the numbers that queries and keys are compared by stay, the values' go.
    pairs, reasons = found(Attention(1), x)
    assert [(pair.producers, pair.width) for pair in pairs] == [(("v",), 24)]
    assert "queries and keys" in reasons["q"] or "multiplied and summed" in reasons["q"]


class Stays(nn.Module):
    """What cannot be narrowed."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.sliced, self.uneven, self.one = (nn.Linear(8, 16) for _ in range(4))
        self.last = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        mixed, sliced = self.mixed(x).softmax(-1), self.sliced(x)[:, :4]
        a, b = self.uneven(x).split((6, 10), 1)
        ones = self.one(x).unflatten(1, (1, 16)).var(2)
        out: Tensor = self.last(mixed) + sliced.sum() + a.mean() * b.mean() * ones.sum()
        return out


def test_what_is_not_understood_is_refused_with_its_reason() -> None:
    pairs, reasons = found(Stays(), torch.randn(3, 8))
    assert pairs == []
    assert reasons == {
        "mixed": "`softmax` is over its channels",
        "sliced": "a slice of it is taken",
        "uneven": "it is split into parts of unequal size",
        "one": "`var` is over its channels",
        "last": "its channels are an output of the model",
    }


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


def test_weights_of_several_names_stay() -> None:
    pairs, reasons = found(Twice(), torch.randn(2, 16))
    assert pairs == []
    assert set(reasons) - {"last"} == {"first", "same", "other"}  # torch names a shared weight once
    assert all("has several names" in reasons[name] for name in ("first", "same", "other"))


def test_blocks_are_left_out_with_their_shortcut() -> None:
    """`features.3.block` is a branch beside the shortcut, and its input has its output's shape."""
    model, x = (
        torchvision.models.mobilenet_v3_small(num_classes=10).eval(),
        torch.randn(1, 3, 32, 32),
    )
    pairs, _ = found(model, x)
    choices = {choice.name: choice for choice in choices_of(model, pairs, Graph(model, (x,)), (x,))}
    blocks = [name for name, choice in choices.items() if choice.can_leave_out]
    assert blocks == [f"features.{i}" for i in (3, 5, 6, 8, 10, 11)]
    assert len(choices["features.5"].pairs) == 2  # the hidden channels, and those of the gate
    assert "features.4.block.0.0" in choices


def test_a_transformers_block_is_left_out_whole() -> None:
    """Its attention and its hidden layers are beside shortcuts."""
    model = torchvision.models.VisionTransformer(16, 4, 3, 4, 24, 32, num_classes=3)
    model, x = opened(model).eval(), torch.randn(1, 3, 16, 16)
    pairs, _ = found(model, x)
    choices = choices_of(model, pairs, Graph(model, (x,)), (x,))
    blocks = {choice.name: len(choice.pairs) for choice in choices if choice.can_leave_out}
    assert blocks == {f"encoder.layers.encoder_layer_{k}": 2 for k in range(3)}


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
        assert pair.consumers[0].places.shape == (24, 4**dimensions)
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


# --- modules that are called several times ---


class Twins(nn.Module):
    """One encoder for two inputs, and one head for maps of two sizes; attention by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 16, 1))
        self.norm = nn.GroupNorm(1, 16)
        self.head = nn.Conv2d(16, 6, 1)

    def forward(self, a: Tensor, b: Tensor) -> list[Tensor]:
        a, b = self.norm(self.encode(a)), self.norm(self.encode(b))
        alike = torch.einsum("nchw,ncij->nhwij", a, b).flatten(1).mean(1)
        return [self.head(a), self.head(b), alike]


def test_a_module_that_is_called_several_times_is_one_layer() -> None:
    torch.manual_seed(0)
    model, inputs = Twins().double(), (torch.randn(2, 3, 9, 9), torch.randn(2, 3, 6, 6))
    inputs = tuple(x.double() for x in inputs)
    pairs, reasons = found(model, *inputs)
    assert names(pairs) == [("encode.0",)]
    assert reasons["encode.2"] == "channels are multiplied and summed over it"
    small = narrowed(model, [(pairs[0], Narrowed(torch.arange(0, 24, 3), {}))])
    silenced = copy.deepcopy(model)
    with torch.no_grad():
        mask = torch.ones(24, dtype=torch.bool)
        mask[::3] = False
        silenced.encode[2].weight[:, mask] = 0
        for actual, expected in zip(small(*inputs), silenced(*inputs), strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


def test_a_tensor_of_two_uses_stays() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(8, 32), nn.Linear(32, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.linear(self.inner(x).relu(), self.inner.weight.T)
            out: Tensor = self.last(self.inner(x).relu())
            return out

    pairs, reasons = found(Tied(), torch.randn(2, 8))
    assert not pairs
    assert reasons["inner"] == "inner.weight has several names, or uses of several kinds"
