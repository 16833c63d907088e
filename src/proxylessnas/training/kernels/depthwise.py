"""The weight gradient of a depthwise convolution, a few columns of the kernel at a time.

oneDNN computes it vectorised for kernels up to three columns wide and several times slower for
wider ones: 5x5 and 7x7 kernels spend most of a training step there. Columns j to j+2 of the
gradient are those of a convolution three columns wide over the input moved by j, so strips of
three give the whole, exactly. A gradient of this gradient there is not.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, pad

from proxylessnas.training.kernels.fitting import are_images, hooked

STRIP = 3  # columns


def is_wide(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it is a depthwise convolution with a kernel wider than a strip."""
    return (
        type(module) is nn.Conv2d
        and module.groups == module.in_channels == module.out_channels > 1
        and module.kernel_size[1] > STRIP
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


class SplitCall:
    """Stands in for the call of such a convolution."""

    def __init__(self, module: nn.Conv2d) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        m = self.module
        if len(args) != 1 or kwargs or not _suits(args[0], m.weight) or hooked(m):
            return m._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        return _Split.apply(args[0], m.weight, m.bias, m.stride, m.padding)


def convolve(module: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of such a module with other weights."""
    if _suits(x, weight):
        out: Tensor = _Split.apply(x, weight, bias, module.stride, module.padding)
    else:
        out = module._conv_forward(x, weight, bias)
    return out


def _suits(x: Any, weight: Tensor) -> bool:
    """Whether there is a gradient to be taken in strips."""
    return weight.requires_grad and torch.is_grad_enabled() and are_images(x, weight)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return conv2d(x, weight, bias, stride, padding, 1, weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        grad_x = None
        if wants_x:
            grad_x, *_ = _backward(grad, x, weight, ctx.stride, ctx.padding, (True, False, False))
        grad_weight = None
        if wants_weight:
            grad_weight = weight_gradient(grad, x, weight, ctx.stride, ctx.padding)
        grad_bias = grad.sum((0, 2, 3)) if wants_bias else None
        return grad_x, grad_weight, grad_bias, None, None


def weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """∂L/∂weight [channels, 1, height, width], in strips of columns.

    grad: ∂L/∂(output) [batch, channels, rows, columns]. x: the input.
    """
    channels, _, height, width = weight.shape
    rows, columns = grad.shape[2:]
    # Padded here and in all directions, since of its own padding oneDNN is slow on small images.
    below = (rows - 1) * stride[0] + height - x.shape[2] - padding[0]
    strips = []
    for first in range(0, width, STRIP):
        wide = min(STRIP, width - first)
        left = padding[1] - first
        right = (columns - 1) * stride[1] + wide - x.shape[3] - left
        edges = (left, right, padding[0], below)
        # Zeros first and then what is negative is cut off: of an image narrower than the kernel
        # more may be cut than it has columns.
        seen = pad(x, [max(edge, 0) for edge in edges])
        seen = pad(seen, [min(edge, 0) for edge in edges])
        part = weight.new_empty(channels, 1, height, wide)  # for its shape
        _, strip, _ = _backward(grad, seen, part, stride, (0, 0), (False, True, False))
        strips.append(strip)
    return torch.cat(strips, 3)


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    backward: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), weight.shape[0], wanted
    )
    return backward
