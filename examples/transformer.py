"""Search a transformer: heads, feed-forward widths, or no layer at all.

    python examples/transformer.py            # under half a minute on one core
    python examples/transformer.py --quick    # seconds, to see that it runs

The synthetic sequences ask which of two marked tokens comes first, so attention is needed
and much of the rest is not; the limit is on parameters.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from proxylessnas import MixedOp, Residual, Zero, search
from proxylessnas.config import DeriveSettings, MachineSettings, SearchSettings

LENGTH, TOKENS = 8, 8  # tokens 0 and 1 are the marked ones


def sequences(count: int, seed: int) -> TensorDataset:
    """[count, LENGTH] tokens with one 0 and one 1, and whether the 1 comes first."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, TOKENS, (count, LENGTH), generator=generator)
    places = torch.rand(count, LENGTH, generator=generator).argsort(1)[:, :2]
    tokens.scatter_(1, places, torch.tensor([[0, 1]]).expand(count, 2))
    return TensorDataset(tokens, (places[:, 1] < places[:, 0]).long())


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm(x)).chunk(3, dim=2)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


def feed_forward(width: int, inner: int) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)
    )


class Encoder(nn.Module):
    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, width)
        self.position = nn.Parameter(torch.randn(LENGTH, width))
        blocks: list[nn.Module] = []
        for _ in range(layers):
            heads = {f"heads{h}": Attention(width, h) for h in (1, 4)}
            widths = {f"x{m}": feed_forward(width, m * width) for m in (1, 2, 4)}
            blocks.append(Residual(MixedOp({**heads, "zero": Zero()})))
            blocks.append(Residual(MixedOp({**widths, "zero": Zero()})))
        self.blocks = nn.Sequential(*blocks)
        self.classify = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(self.embed(tokens) + self.position)
        out: Tensor = self.classify(x.mean(1))
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    size = 128 if quick else 4096
    result = search(
        Encoder(),
        train=DataLoader(sequences(size, seed=1), batch_size=32, shuffle=True),
        valid=DataLoader(sequences(size // 2, seed=2), batch_size=32, shuffle=True),
        loss=nn.functional.cross_entropy,
        correct=lambda output, target: (output.argmax(1) == target).sum(),
        example_inputs=(torch.zeros(1, LENGTH, dtype=torch.int64),),
        limits={"parameters": 16_000},
        settings=SearchSettings(warmup_epochs=1, epochs=1 if quick else 4, learning_rate=0.1),
        derive=DeriveSettings(top_k=2 if quick else 10),
        machine=MachineSettings(threads=1),
        quiet=quick,
    )
    net = result.derive().eval()
    tokens, target = sequences(512, seed=3).tensors
    with torch.no_grad():
        accuracy = (net(tokens).argmax(1) == target).double().mean()
    print(dict(result.architecture.choices))
    print(f"test accuracy {accuracy:.1%}, {sum(p.numel() for p in net.parameters()):,} parameters")


if __name__ == "__main__":
    main()
