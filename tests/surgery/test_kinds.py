"""Kinds of networks that people write by hand: all of their weights can be cut, exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from exactness import check_exact, pairs_of, share
from torch import Tensor, nn
from torch.nn import functional as F

from proxylessnas.surgery.narrow import Narrowed, narrowed

Inputs = tuple[Tensor, ...]
IMAGES = (torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)),)


def conv(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU())


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


class SpatialAttention(nn.Module):
    """As of CBAM: means and maxima over the places, and over the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(width, 8, 1), nn.ReLU(), nn.Conv2d(8, width, 1))
        self.place = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.mix(F.adaptive_avg_pool2d(x, 1)) + self.mix(F.adaptive_max_pool2d(x, 1))
        x = x * gate.sigmoid()
        both = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return x * self.place(both).sigmoid()


class ChannelsFirst(nn.Module):
    """Layer normalisation over channels in front, as ConvNeXt's authors wrote it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ResponseNorm(nn.Module):
    """Global response normalisation, as of ConvNeXt V2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
        return x + self.gamma * x * norm / (norm.mean(1, keepdim=True) + 1e-6)


class RootMeanSquare(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale


class UnitLength(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


class GroupedQueries(nn.Module):
    """A causal layer with rotated queries, of which two share a head of keys and values."""

    def __init__(self, width: int = 32, heads: int = 4, shared: int = 2) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.norm, self.second = RootMeanSquare(width), RootMeanSquare(width)
        self.q = nn.Linear(width, heads * self.size, bias=False)
        self.k, self.v = (nn.Linear(width, shared * self.size, bias=False) for _ in range(2))
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 96), nn.Linear(48, width)
        self.register_buffer("angle", torch.rand(7, self.size))

    def turned(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * self.angle.cos() + torch.cat([-b, a], -1) * self.angle.sin()

    def forward(self, x: Tensor) -> Tensor:
        batch, places, _ = x.shape
        y = self.norm(x)
        q = self.q(y).view(batch, places, self.heads, self.size).transpose(1, 2)
        k, v = (
            layer(y)
            .view(batch, places, self.shared, self.size)
            .transpose(1, 2)
            .repeat_interleave(self.heads // self.shared, 1)
            for layer in (self.k, self.v)
        )
        y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, places, -1))
        a, b = self.up(self.second(x)).chunk(2, -1)
        return x + self.down(F.silu(a) * b)


class Blur(nn.Module):
    """One filter for every channel, repeated by the code."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", torch.tensor([1.0, 2.0, 1.0])[None, None, None] / 4)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[1]
        return F.conv2d(x, self.filter.expand(count, -1, -1, -1), stride=2, groups=count)


class BlurOfSome(nn.Module):
    """A filter for every channel; how many is an attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = width
        self.register_buffer("filter", torch.rand(width, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filter, stride=2, groups=self.channels)


class Modulated(nn.Module):
    """A norm without weights of its own, as of diffusion transformers."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, width), nn.LayerNorm(width, elementwise_affine=False)
        self.shift = nn.Linear(4, 2 * width)
        self.hidden, self.last = nn.Linear(width, 48), nn.Linear(48, 3)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        scale, shift = self.shift(step).chunk(2, -1)
        y = self.norm(self.first(x)) * (1 + scale) + shift
        out: Tensor = self.last(F.gelu(self.hidden(y)))
        return out


class Points(nn.Module):
    """The maximum over all points, given back to each of them; four highest ones beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 32, 1), nn.Conv1d(64, 24, 1)
        self.last = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        y = torch.cat([y, y.max(2, keepdim=True)[0].repeat(1, 1, x.shape[2])], 1)
        y = self.second(y).relu()
        variance, mean = torch.var_mean(y, 2)
        out: Tensor = self.last(torch.cat([y.topk(4, -1)[0].mean(-1) + variance, mean], 1))
        return out


class Warped(nn.Module):
    """Features sampled where a part of the network says, and pixels folded into channels."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Linear(3, 6)
        self.first, self.second = conv(3, 16), conv(16, 16)
        self.body = nn.Sequential(nn.PixelUnshuffle(2), conv(64, 32), *head(32))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        theta = 0.1 * self.where(x.mean((2, 3))).view(-1, 2, 3) + torch.eye(2, 3)
        grid = F.affine_grid(theta, y.shape, align_corners=False)
        out: Tensor = self.body(self.second(F.grid_sample(y, grid, align_corners=False)))
        return out


KINDS: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "spatial attention": lambda: (
        nn.Sequential(conv(3, 32), SpatialAttention(32), conv(32, 24), *head(24)),
        IMAGES,
    ),
    "channels first": lambda: (
        nn.Sequential(
            *(nn.Conv2d(3, 24, 3), ChannelsFirst(24), nn.Conv2d(24, 32, 1)),
            *(nn.GELU(), ResponseNorm(32), nn.Conv2d(32, 24, 1), nn.ReLU(), *head(24)),
        ),
        IMAGES,
    ),
    "unit length": lambda: (
        nn.Sequential(conv(3, 16), UnitLength(), conv(16, 24), *head(24)),
        IMAGES,
    ),
    "grouped queries": lambda: (
        nn.Sequential(nn.Linear(5, 32), GroupedQueries(), nn.Linear(32, 4)),
        (torch.randn(2, 7, 5),),
    ),
    "blurred": lambda: (
        nn.Sequential(conv(3, 16), Blur(), conv(16, 24), BlurOfSome(24), *head(24)),
        IMAGES,
    ),
    "modulated": lambda: (Modulated(), (torch.randn(5, 6), torch.randn(5, 4))),
    "points": lambda: (Points(), (torch.randn(2, 3, 20),)),
    "warped": lambda: (Warped(), IMAGES),
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_can_be_cut_exactly(kind: str) -> None:
    torch.manual_seed(0)
    model, inputs = KINDS[kind]()
    for _ in range(2):
        model.train()(*inputs)  # statistics of its own
    model, pairs, _ = pairs_of(model.eval(), inputs)
    check_exact(model, pairs, inputs)
    assert share(model, pairs) > (0.9 if kind == "warped" else 0.98)


class HeadsOfTheStream(nn.Module):
    """Attention that takes the width of its heads from the stream, as many write it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1)
        return x + self.out((attention @ v).transpose(1, 2).reshape(b, n, c))


def test_heads_and_the_stream_whose_width_they_are_are_cut_together() -> None:
    torch.manual_seed(0)
    blocks = [HeadsOfTheStream(32, 4) for _ in range(2)]
    model = nn.Sequential(nn.Linear(5, 32), *blocks, nn.Linear(32, 3)).eval()
    inputs = (torch.randn(2, 7, 5),)
    model, pairs, _ = pairs_of(model, inputs)
    (pair,) = pairs
    assert (pair.width, pair.unit) == (4, 8)
    assert {size.attribute for size in pair.sizes} >= {"heads"}
    small = check_exact(model, pairs, inputs)
    assert small[1].qkv.weight.shape == (3 * 16, 16) and small[1].heads == 2


class OneAlike(nn.Module):
    """Two layers whose widths the code takes for one another, found as the first and the fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 24)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 24)) for _ in range(2)
        )
        self.b, self.c = nn.Linear(24, 48), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.c(self.b(x).view(-1, 2, x.shape[1]).amax(1))
        return out


def test_what_the_code_keeps_alike_is_not_cut_apart() -> None:
    """Cut by the same share they would agree, and nothing else would."""
    torch.manual_seed(0)
    model, inputs = OneAlike().eval(), (torch.randn(5, 4),)
    model, pairs, _ = pairs_of(model, inputs)
    assert {pair.name for pair in pairs} >= {"blocks.0.0", "blocks.1.0"}
    for pair in pairs:
        cut = narrowed(model, [(pair, Narrowed(torch.arange(12), {}))])
        assert cut(*inputs).shape == (5, 3)
