"""Fake quantisation: the grid of the exporter, to the bit of the file that ships."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from proxylessnas.core.supernet import Residual
from proxylessnas.export.fake_int8 import FakeInt8
from proxylessnas.export.onnx import to_onnx
from proxylessnas.export.onnx_session import open_session
from proxylessnas.export.precision import quantised
from proxylessnas.spaces.blocks import ConvBN, Head, MBConv, Network

IMAGES = torch.randn(8, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    blocks = [Residual(MBConv(8, 8, kernel=3, expansion=3)), MBConv(8, 16, kernel=5, stride=2)]
    module = Network(ConvBN(3, 8, 3, 2), blocks, Head(16, 32, 5)).eval()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(norm.bias, std=0.3)
    return module


class Mixed(nn.Module):
    """A concatenation, a product and a sum with a number."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.one(x), self.other(x)], 1)
        y += y * 0.5
        out: Tensor = self.last(y * y)
        return out


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("module", [network(), Mixed().eval()], ids=["network", "mixed"])
def test_computes_what_the_int8_file_computes(module: nn.Module, reduced: bool) -> None:
    """Far nearer to the file than to the float network: ties of the rounding alone may differ."""
    fake = FakeInt8(module, [(x,) for x in IMAGES], reduce_range=reduced).eval()
    feeds = ({"input": x.numpy()} for x in IMAGES)
    content = quantised(to_onnx(module, (IMAGES[0],)), feeds, reduce_range=reduced)
    session, squares, cost = open_session(content), 0.0, 0.0
    for x in (*IMAGES, 1.5 * IMAGES[0]):  # the last one leaves the ranges
        expected = session.run(None, {"input": x.numpy()})[0]
        squares += float(((fake(x).detach().numpy() - expected) ** 2).sum())
        cost += float(((module(x).detach().numpy() - expected) ** 2).sum())
    assert squares < 0.15 * cost


def test_gradients_pass_the_rounding_and_stop_outside_of_the_range() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(1024, 2)).eval()
    fake = FakeInt8(module, [(x,) for x in IMAGES])
    fake(IMAGES[0]).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in fake.parameters())
    assert all(p.grad is None for p in module.parameters())  # it is a copy that learns
    image = IMAGES[0].clone()
    image[..., 0] *= 100
    image.requires_grad_()
    fake(image).sum().backward()
    inside = image.detach().abs() <= max(map(abs, fake.ranges[0][0]))
    assert image.grad is not None and not image.grad[~inside].any() and image.grad[inside].any()


def test_training_brings_back_what_rounding_cost() -> None:
    """A channel so large that the others are lost in its range: their weights learn around it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    with torch.no_grad():
        module[0].weight[0] *= 300
        module[2].weight[:, 0] /= 300
        targets = module(IMAGES.flatten(0, 1))
    fake = FakeInt8(module, [(x,) for x in IMAGES])

    def loss() -> Tensor:
        return nn.functional.mse_loss(fake(IMAGES.flatten(0, 1)), targets)

    before, optimizer = loss().item(), torch.optim.Adam(fake.parameters(), 3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.7 * before
