"""Folded normalisation computes and learns what evaluation-mode normalisation does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from proxylessnas.export.fold import fold
from proxylessnas.spaces.blocks import ConvBN, Head, MBConv, Network
from proxylessnas.training.device import Machine
from proxylessnas.training.kernels import folding, speed_up


@torch.no_grad()
def used(module: nn.Module) -> nn.Module:
    """With statistics and affine parameters of a network that was trained."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.5)
            norm.running_var.uniform_(0.3, 2)
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_()
    return module


def frozen(module: nn.Module) -> nn.Module:
    """The reference: training mode, but for the normalisations."""
    module.train()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    return module


def outcome(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    (y * weights + 0.1 * y.square()).sum().backward()
    assert x.grad is not None
    grads = {f"grad {n}": p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert len(grads) == len(list(module.parameters()))
    return {"y": y.detach(), "grad x": x.grad, **grads, **module.state_dict()}


def network() -> Network:
    blocks = [
        MBConv(8, 12, kernel=5, inner=20, stride=2, same=True),
        MBConv(12, 12, kernel=3, expansion=1, activation=nn.ReLU),
    ]
    return Network(ConvBN(3, 8, 3, 2), blocks, Head(12, 16, 5))


MODULES = {
    "network": network,
    "bias": lambda: nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Sigmoid()),
    "groups": lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6, 1e-2)),
    "words": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4)),
    "reflected": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)
    ),
    "not affine": lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6, affine=False)),
    "alone": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)),
}


@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_output_and_gradients_equal_those_of_frozen_normalisation(name: str, strips: bool) -> None:
    plain = used(MODULES[name]()).double()
    faster = copy.deepcopy(plain).train()
    x = torch.randn(3, 3, 17, 17, dtype=torch.float64)
    undo = speed_up(
        faster.modules(), depthwise_strips=strips, fused_batch_norm=True, frozen_statistics=True
    )
    expected, actual = outcome(frozen(plain), x), outcome(faster, x)
    assert expected.keys() == actual.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(actual[key], tensor, rtol=1e-10, atol=1e-10, msg=key)
    undo()
    assert all(m._compiled_call_impl is None for m in faster.modules())
    assert all(m.training for m in faster.modules())


def test_strips_are_taken_where_they_are_on() -> None:
    """In float32 and channels_last, as strips want it, to the rounding of float32."""
    plain = used(network())
    faster = copy.deepcopy(plain)
    machine = Machine(channels_last=True, depthwise_strips=True)
    x = machine.put(torch.randn(4, 3, 33, 33))
    machine.place(faster).train()
    machine.prepare(faster, frozen_statistics=True)
    called: list[Any] = []
    original = folding.depthwise.convolve

    def watched(*args: Any) -> Tensor:
        called.append(args)
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding.depthwise, "convolve", watched)
        actual = outcome(faster, x)
    assert len(called) == 1  # the one convolution of kernel 5
    expected = outcome(frozen(plain), x)
    for key, tensor in expected.items():
        scale = float(tensor.abs().max()) or 1.0
        torch.testing.assert_close(actual[key] / scale, tensor / scale, rtol=0, atol=1e-5, msg=key)


def test_two_normalisations_are_saved_not_only_renamed() -> None:
    """Of the two layers one call remains: the normalisation hands its input on."""
    module = used(ConvBN(3, 4, 3)).train()
    speed_up(
        module.modules(), depthwise_strips=False, fused_batch_norm=False, frozen_statistics=True
    )
    x = torch.randn(2, 3, 5, 5)
    between = module.conv(x)
    assert module.norm(between) is between


def test_who_listens_hears_the_convolution_itself() -> None:
    module = used(ConvBN(3, 4, 3))
    x = torch.randn(2, 3, 5, 5)
    expected = module.eval().conv(x)
    module.train()
    speed_up(
        module.modules(), depthwise_strips=False, fused_batch_norm=False, frozen_statistics=True
    )
    heard: list[Tensor] = []
    module.conv.register_forward_hook(lambda _, __, out: heard.append(out.clone()))
    output = module(x)
    torch.testing.assert_close(heard[0], expected)
    torch.testing.assert_close(output, copy.deepcopy(module).eval()(x))


def test_shared_layers_are_not_folded() -> None:
    norm, conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
    module = nn.Sequential(nn.Sequential(conv, norm), nn.Sequential(nn.Conv2d(3, 3, 1), norm))
    assert not list(folding.pairs(list(module.modules())))
    module = nn.Sequential(nn.Sequential(conv, norm), nn.Sequential(conv, nn.ReLU()))
    assert not list(folding.pairs(list(module.modules())))


class Optional(nn.Module):
    """Of an argument that may be none, and then is not looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, scale: Tensor | None = None, twice: bool = False) -> Tensor:
        x = self.norm(self.conv(x))
        if scale is not None:
            x = x * scale
        return 2 * x if twice else x


def test_arguments_that_are_not_given_are_what_they_are_by_default() -> None:
    model, x, scale = used(Optional()).eval(), torch.randn(2, 3, 5, 5), torch.tensor(3.0)
    for inputs in ((x,), (x, scale)):
        folded = fold(model, len(inputs))
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        torch.testing.assert_close(folded(*inputs), model(*inputs), atol=1e-5, rtol=1e-5)
