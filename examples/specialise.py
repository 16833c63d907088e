"""Narrow a trained network to half of its latency: two lines around a model of your own.

    python examples/specialise.py            # about a minute on one core
    python examples/specialise.py --quick    # seconds, to see that it runs

A 1-D residual network learns four kinds of synthesised sound. `specialise` finds which layers can
be narrowed and which blocks left out, refits what is left in closed form, and chooses within the
limit; the result is the same class with smaller layers, and learns on from the first one.
"""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from proxylessnas import specialise
from proxylessnas.config import MeasureSettings

waveforms = runpy.run_path(str(Path(__file__).parent / "audio1d.py"))["waveforms"]
SAMPLES = 512


class Block(nn.Module):
    """x + two convolutions, as everybody writes them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, 9, padding=4, bias=False)
        self.bn1 = nn.BatchNorm1d(width)
        self.conv2 = nn.Conv1d(width, width, 9, padding=4, bias=False)
        self.bn2 = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def network(width: int = 32) -> nn.Module:
    blocks = [Block(width) for _ in range(3)]
    stem = nn.Conv1d(1, width, 9, stride=4, padding=4)
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 4))


def learn(model: nn.Module, batches: DataLoader[tuple[Tensor, ...]], epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for sound, kind in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.train()(sound), kind).backward()
            optimizer.step()
    model.eval()


def accuracy(model: nn.Module) -> float:
    sound, kind = waveforms(512, seed=3).tensors
    with torch.no_grad():
        return float((model.eval()(sound).argmax(1) == kind).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    size = 128 if quick else 2048
    train = DataLoader(waveforms(size, seed=1), batch_size=32, shuffle=True)
    valid = DataLoader(waveforms(size // 2, seed=2), batch_size=32)
    model = network()
    learn(model, train, epochs=1 if quick else 4)

    result = specialise(
        model,
        train=train,
        valid=valid,
        loss=nn.functional.cross_entropy,
        correct=lambda output, kind: (output.argmax(1) == kind).sum(),
        example_inputs=(torch.zeros(1, 1, SAMPLES),),
        target_latency="0.5x",
        runtime="torch",
        measure=MeasureSettings(network_rounds=3 if quick else 20, runs=3),
        quiet=quick,
    )
    net = result.derive()
    print(result.table)
    print(result.architecture)
    print(f"the model: test accuracy {accuracy(model):.1%}, {result.around.model_ms:.3f} ms")
    print(f"narrowed:  test accuracy {accuracy(net):.1%}, {result.measured_ms:.3f} ms")
    result.finetune(epochs=1 if quick else 2)
    print(f"fine-tuned: test accuracy {accuracy(result.derive()):.1%}")


if __name__ == "__main__":
    main()
