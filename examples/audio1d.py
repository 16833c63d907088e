"""Search a 1-D convolutional network on waveforms: any PyTorch model, your own data and loss.

    python examples/audio1d.py            # under half a minute on one core
    python examples/audio1d.py --quick    # seconds, to see that it runs

Four kinds of sound are synthesised (sine, square, saw, noise); every block of the network
chooses its kernel or is skipped, and the result is plain PyTorch within 70 % of the latency
of the largest network.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from proxylessnas import MixedOp, Residual, Zero, search
from proxylessnas.config import DeriveSettings, MachineSettings, MeasureSettings, SearchSettings

SAMPLES = 512


def waveforms(count: int, seed: int) -> TensorDataset:
    """[count, 1, SAMPLES] waveforms of random pitch and phase in noise, and their kind."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(4, (count,), generator=generator)
    pitch = 4 + 12 * torch.rand(count, 1, generator=generator)
    phase = (torch.linspace(0, 1, SAMPLES) * pitch + torch.rand(count, 1, generator=generator)) % 1
    noise = torch.randn(count, SAMPLES, generator=generator)
    sine = torch.sin(2 * torch.pi * phase)
    sounds = torch.stack((sine, sine.sign(), 2 * phase - 1, noise))
    return TensorDataset((sounds[kind, torch.arange(count)] + 0.3 * noise)[:, None], kind)


def conv(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(channels, out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm1d(out),
        nn.ReLU(),
    )


class SoundNet(nn.Module):
    """Every stage chooses the kernel of its convolution, then whether to add another one."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        stages: list[nn.Module] = [conv(1, width, 9, stride=4)]
        for _ in range(2):
            stages.append(MixedOp({f"k{k}": conv(width, 2 * width, k, 2) for k in (3, 7, 15)}))
            width *= 2
            extra = {f"k{k}": conv(width, width, k) for k in (3, 9)}
            stages.append(Residual(MixedOp({**extra, "zero": Zero()})))
        self.stages = nn.Sequential(*stages)
        self.classify = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classify(self.stages(x).mean(2))
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    size = 64 if quick else 1024
    train = DataLoader(waveforms(size, seed=1), batch_size=32, shuffle=True)
    valid = DataLoader(waveforms(size // 2, seed=2), batch_size=32, shuffle=True)
    result = search(
        SoundNet(),
        train=train,
        valid=valid,
        loss=nn.functional.cross_entropy,
        correct=lambda output, kind: (output.argmax(1) == kind).sum(),
        example_inputs=(torch.zeros(1, 1, SAMPLES),),
        target_latency="0.7x",
        runtime="torch",
        settings=SearchSettings(warmup_epochs=1, epochs=1 if quick else 5, learning_rate=0.1),
        measure=MeasureSettings(rounds=2, network_rounds=3, runs=3, networks=3),
        derive=DeriveSettings(top_k=2 if quick else 10),
        machine=MachineSettings(threads=1),
        quiet=quick,
    )
    net = result.derive().eval()
    sound, kind = waveforms(256, seed=3).tensors
    with torch.no_grad():
        accuracy = (net(sound).argmax(1) == kind).double().mean()
    print(dict(result.architecture.choices))
    print(f"test accuracy {accuracy:.1%}, {result.measured_ms:.3f} ms")


if __name__ == "__main__":
    main()
