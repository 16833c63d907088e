"""Search a network with a dense output: every pixel is classified, with a loss of your own.

    python examples/segmentation.py            # under half a minute on one core
    python examples/segmentation.py --quick    # seconds, to see that it runs

Images of a bright disc and a square on noise are synthesised. An encoder and a decoder
choose their layers, and how they are joined; the limit here is multiply-adds, so nothing
is measured.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from proxylessnas import MixedOp, Residual, Zero, search
from proxylessnas.config import DeriveSettings, MachineSettings, SearchSettings

SIZE, CLASSES = 32, 3  # background, disc, square


def scenes(count: int, seed: int) -> TensorDataset:
    """[count, 1, SIZE, SIZE] images and the class of every pixel."""
    generator = torch.Generator().manual_seed(seed)
    places = SIZE * (0.2 + 0.6 * torch.rand(2, 2, count, 1, 1, generator=generator))
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    (disc_y, disc_x), (square_y, square_x) = places
    disc = (rows - disc_y) ** 2 + (columns - disc_x) ** 2 < 36
    square = torch.maximum((rows - square_y).abs(), (columns - square_x).abs()) < 5
    labels = torch.where(square, 2, disc.long())
    noise = torch.randn(count, SIZE, SIZE, generator=generator)
    return TensorDataset(((labels > 0) + 0.4 * noise)[:, None], labels)


def conv(channels: int, out: int, kernel: int, dilation: int = 1, stride: int = 1) -> nn.Module:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    )


class Join(nn.Module):
    """Deep features, enlarged, with the shallow ones of their size."""

    def __init__(self, width: int, concatenate: bool) -> None:
        super().__init__()
        self.mix = conv(2 * width, width, 1) if concatenate else nn.Identity()
        self.concatenate = concatenate

    def forward(self, deep: Tensor, *, shallow: Tensor) -> Tensor:
        deep = functional.interpolate(deep, scale_factor=2.0)
        out: Tensor = self.mix(torch.cat((deep, shallow), 1) if self.concatenate else deep)
        return out


class Segmenter(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = conv(1, width, 3)
        self.down = conv(width, width, 3, stride=2)
        layers = {"k3": (3, 1), "k5": (5, 1), "dilated": (3, 4)}

        def choice() -> nn.Module:
            convs = {name: conv(width, width, k, d) for name, (k, d) in layers.items()}
            return Residual(MixedOp({**convs, "zero": Zero()}))

        self.deep = nn.Sequential(choice(), choice())
        self.join = MixedOp({"ignore": Join(width, False), "concatenate": Join(width, True)})
        self.classify = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.stem(x)
        out: Tensor = self.classify(self.join(self.deep(self.down(shallow)), shallow=shallow))
        return out


def dice(output: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy and 1 - Dice, the mean over the classes."""
    p, truth = output.softmax(1), functional.one_hot(labels, CLASSES).movedim(3, 1)
    overlap = 2 * (p * truth).sum((0, 2, 3)) / (p + truth).sum((0, 2, 3))
    return functional.cross_entropy(output, labels) + 1 - overlap.mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    size = 32 if quick else 512
    result = search(
        Segmenter(),
        train=DataLoader(scenes(size, seed=1), batch_size=16, shuffle=True),
        valid=DataLoader(scenes(size // 2, seed=2), batch_size=16, shuffle=True),
        loss=dice,
        example_inputs=(torch.zeros(1, 1, SIZE, SIZE),),
        limits={"macs": 2_000_000},
        settings=SearchSettings(warmup_epochs=1, epochs=1 if quick else 3, label_smoothing=0.0),
        derive=DeriveSettings(top_k=2 if quick else 5),
        machine=MachineSettings(threads=1),
        quiet=quick,
    )
    net = result.derive().eval()
    images, labels = scenes(64, seed=3).tensors
    with torch.no_grad():
        accuracy = (net(images).argmax(1) == labels).double().mean()
    print(dict(result.architecture.choices))
    print(f"{accuracy:.1%} of the test pixels right, {result.predicted['macs']:,.0f} multiply-adds")


if __name__ == "__main__":
    main()
