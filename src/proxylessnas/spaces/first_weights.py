"""The weights that a network of the image spaces begins with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from proxylessnas.core.mixed import MixedOp, Residual
from proxylessnas.spaces.blocks import ConvBN, MBConv


def initialise(model: nn.Module) -> None:
    """He initialisation by fan-out for convolutions, small normal for linear layers."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def start_alike(model: nn.Module) -> None:
    """Let all candidates of a mixed operation begin as one function, as far as they can.

    Independent random candidates are different functions, and what follows must first learn
    to take any of them: a short search never gets beyond that. So the weights of the smallest
    inverted bottleneck are embedded in its siblings (its kernel in the middle of theirs, its
    channels among theirs, the other channels without an effect yet), a residual branch begins at
    zero, and beside a 1x1 convolution in a shortcut's place the bottleneck begins as that. Every
    weight learns within a few steps, those of channels without an effect from the second on.
    """
    for mixed in (m for m in model.modules() if isinstance(m, MixedOp)):
        inner = [c.branch if isinstance(c, Residual) else c for c in mixed.candidates.values()]
        blocks = [block for block in inner if isinstance(block, MBConv) and len(block) == 3]
        if not blocks:
            continue
        smallest = min(blocks, key=lambda b: (b.kernel, b.expansion))
        for linear in (c for c in inner if isinstance(c, ConvBN) and len(c) == 2):
            _imitate(linear, smallest)
        for block in blocks:
            if block is not smallest:
                _embed(smallest, block)
    for residual in (m for m in model.modules() if isinstance(m, Residual)):
        branch = residual.branch
        ends = list(branch.candidates.values()) if isinstance(branch, MixedOp) else [branch]
        for end in ends:
            if isinstance(end, MBConv):
                nn.init.zeros_(_norm(end[-1]).weight)


def _imitate(linear: ConvBN, block: MBConv) -> None:
    """Make `block` compute what `linear`, a 1x1 convolution, does; their strides are the same.

    relu(x) − relu(−x) is x: every input channel is expanded into itself and its negative, and the
    projection takes the convolution of their difference. A bias between keeps the second
    activation from cutting off what normalisation moved below zero.
    """
    weight = _kernel(linear)
    expand, depthwise, project = (_kernel(layer) for layer in block)
    inputs, middle = weight.shape[1], depthwise.shape[-1] // 2
    pairs = 2 * inputs
    if weight.shape[-1] != 1 or weight.shape[:2] != (project.shape[0], expand.shape[1]):
        return
    if pairs > expand.shape[0]:
        return
    identity = torch.eye(inputs).to(expand)[:, :, None, None]
    expand[:pairs] = torch.cat((identity, -identity))
    depthwise[:pairs] = 0
    depthwise[:pairs, :, middle, middle] = 1
    _norm(block[1]).bias[:pairs] = 1
    project[:, :pairs] = torch.cat((weight, -weight), 1)
    project[:, pairs:] = 0


def _embed(small: MBConv, large: MBConv) -> None:
    """Make `large` compute what `small` does; both expand, and have the same ends."""
    expand, depthwise, project = (_kernel(layer) for layer in small)
    to_expand, to_depthwise, to_project = (_kernel(layer) for layer in large)
    channels, kernel = depthwise.shape[0], depthwise.shape[-1]
    edge = (to_depthwise.shape[-1] - kernel) // 2
    if edge < 0 or channels > to_depthwise.shape[0]:
        return
    to_expand[:channels] = expand
    to_depthwise[:channels] = 0
    to_depthwise[:channels, :, edge : edge + kernel, edge : edge + kernel] = depthwise
    to_project[:, channels:] = 0
    to_project[:, :channels] = project
    for layer, to_layer in zip(small, large, strict=True):
        bias = _norm(layer).bias
        _norm(to_layer).bias[: len(bias)] = bias


def _kernel(layer: nn.Module) -> Tensor:
    assert isinstance(layer, ConvBN)
    return layer.conv.weight


def _norm(layer: nn.Module) -> nn.BatchNorm2d:
    assert isinstance(layer, ConvBN)
    return layer.norm
