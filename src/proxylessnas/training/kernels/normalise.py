"""Batch normalisation and the activation after it as one kernel.

In training both are bound by memory. In eager PyTorch normalisation reads its input three times
and writes once, the activation reads and writes the result again, the backward pass does the like
twice over, and three tensors are kept: input, normalised, activated. The kernels here read the
input twice and write once, keep the input alone, and compute again what was cut off.

torch.compile makes them, once for all shapes and in seconds: a pair for each kind of activation.
They see images in channels_last as [rows, pixels, channels], so that a row's sums fit in the cache.
A gradient of their gradient they do not have.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from proxylessnas.errors import ConfigError
from proxylessnas.training.kernels.fitting import apart, are_images, hooked

# What an activation cuts off below and above; ReLU6 is a Hardtanh.
Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-inf, inf)

FIRST = (32, 256, 64)  # kernels are compiled for it, not for what a run happens to see first
CACHED = 1024  # pixels of a row: with hundreds of channels it fits into a core's cache
LONGEST = 4096  # inductor sums more than this by another kernel


@dataclass(frozen=True)
class Kernels:
    """forward: (x, weight, bias) -> y, mean, variance, and what backward needs of them.
    backward: (∂L/∂y, x, *what it needs) -> ∂L/∂x, ∂L/∂weight, ∂L/∂bias.
    x, y: [rows, pixels, channels]; the others [channels]."""

    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def calls(modules: Sequence[nn.Module]) -> dict[nn.Module, Callable[..., object]]:
    """What stands in for the calls of sequences with a normalisation, and of those alone.

    Raises:
        ConfigError: torch.compile cannot build kernels here.
    """
    found: dict[nn.Module, Callable[..., object]] = {}
    paired: set[nn.Module] = set()
    kernels_of = cache(ready)  # made ready once for all of them
    for module in modules:
        # A subclass with a forward of its own may use its parts in any way.
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            steps = _steps(list(module), kernels_of)
            pairs = [step.norm for step in steps if isinstance(step, _Pair)]
            if pairs:
                found[module] = _Sequence(module, steps)
                paired.update(pairs)
    for module in modules:
        if is_norm(module) and module not in paired:
            alone = _Pair(module, None, kernels_of(UNBOUNDED, module.eps))
            found[module] = _Sequence(module, [alone])
    return found


def is_norm(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    known = type(module) is nn.BatchNorm2d
    return known and module.weight is not None and module.bias is not None


@dataclass(frozen=True, eq=False)
class _Pair:
    """A normalisation, the activation after it, and the kernels of both."""

    norm: nn.BatchNorm2d
    activation: nn.Module | None
    kernels: Kernels

    def __call__(self, x: Any) -> Any:
        if _suits(self.norm, x):
            return _normalised(self.norm, x, self.kernels)
        x = self.norm._call_impl(x)  # type: ignore[no-untyped-call]
        return x if self.activation is None else self.activation(x)


def _steps(
    layers: Sequence[nn.Module], kernels_of: Callable[[Bounds, float], Kernels]
) -> list[nn.Module | _Pair]:
    steps: list[nn.Module | _Pair] = []
    for layer in layers:
        bounds, norm = _bounds(layer), steps[-1] if steps else None
        if bounds and isinstance(norm, nn.Module) and is_norm(norm):
            steps[-1] = _Pair(norm, layer, kernels_of(bounds, norm.eps))
        else:
            steps.append(layer)
    return steps


def _bounds(activation: nn.Module) -> Bounds | None:
    if type(activation) is nn.ReLU:
        return 0.0, inf
    if type(activation) in (nn.ReLU6, nn.Hardtanh):
        assert isinstance(activation, nn.Hardtanh)
        return float(activation.min_val), float(activation.max_val)
    return None


class _Sequence:
    """Stands in for a module's call."""

    def __init__(self, module: nn.Module, steps: Sequence[nn.Module | _Pair]) -> None:
        self.module, self.steps = module, steps
        self.watched = [module]
        for step in steps:
            if isinstance(step, _Pair):
                self.watched += [m for m in (step.norm, step.activation) if m is not None]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs or any(map(hooked, self.watched)):
            return self.module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        (x,) = args
        for step in self.steps:
            x = step(x)
        return x


def _suits(norm: nn.BatchNorm2d, x: Any) -> bool:
    return (
        are_images(x, norm.weight)
        and norm.training
        and (not norm.track_running_stats or None not in norm._buffers.values())
        and x.shape[1] == norm.num_features > 1
        and x.is_contiguous(memory_format=torch.channels_last)
        and _rows(x.shape[0], x.shape[2], x.shape[3]) is not None
    )


@cache
def _rows(batch: int, height: int, width: int) -> tuple[int, int] | None:
    """(rows, pixels of each): as few rows as the cache allows, of whole lines of an image."""
    divisors = [n for n in range(1, height + 1) if height % n == 0]
    for longest in (CACHED, LONGEST):
        for parts in divisors:
            rows, pixels = batch * parts, height // parts * width
            if 1 < rows <= LONGEST and 1 < pixels <= longest:
                return rows, pixels
    return None  # a dimension of 1 would be another kernel


def _normalised(norm: nn.BatchNorm2d, x: Tensor, kernels: Kernels) -> Tensor:
    out: Tensor
    out, mean, variance = _Normalised.apply(x, norm.weight, norm.bias, kernels)
    if norm.track_running_stats:
        _track(norm, mean, variance, x.numel() // x.shape[1])
    return out


@torch.no_grad()
def _track(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Running statistics, as PyTorch keeps them: the variance is the unbiased one."""
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum
    if momentum is None:  # a cumulative average
        momentum = 1.0 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * (count / (count - 1)), momentum)


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kernels: Kernels
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Detached: kernels are compiled for tensors that require nothing.
        seen = _as_rows(x.detach())
        y, mean, variance, *rest = kernels.forward(seen, weight.detach(), bias.detach())
        ctx.kernels, ctx.shape = kernels, x.shape
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, mean, *rest)
        # A tensor of its own and not a view, so that what follows may work on it in place.
        images = _as_images(y, x.shape)
        out = y.new_empty(0).set_(y.untyped_storage(), 0, x.shape, images.stride())
        return out, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        x, *rest = (saved.detach() for saved in ctx.saved_tensors)
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x, grad_weight, grad_bias = ctx.kernels.backward(_as_rows(grad), _as_rows(x), *rest)
        return _as_images(grad_x, ctx.shape), grad_weight, grad_bias, None


def _as_rows(images: Tensor) -> Tensor:
    batch, channels, height, width = images.shape
    split = _rows(batch, height, width)
    assert split is not None
    return images.permute(0, 2, 3, 1).view(*split, channels)


def _as_images(rows: Tensor, shape: torch.Size) -> Tensor:
    batch, channels, height, width = shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


# --- the kernels ---


def ready(bounds: Bounds, eps: float) -> Kernels:
    """The kernels for an activation and a normalisation's eps, compiled for all shapes.

    torch.compile compiles again where threads, precisions and the like have changed since. It does
    that here, for one and the same first shape, and not for what a run happens to meet first.

    Raises:
        ConfigError: torch.compile cannot build them here.
    """
    of = {"dtype": torch.float32, "device": "cpu"}
    x, grad = torch.zeros(FIRST, **of), torch.zeros(FIRST, **of)  # type: ignore[call-overload]
    # Each its own: one of them twice would be another kernel.
    vectors = [torch.ones(FIRST[-1], **of) for _ in range(4)]  # type: ignore[call-overload]
    for tensor in (x, grad, *vectors):
        torch._dynamo.mark_dynamic(tensor, tuple(range(tensor.dim())))
    noise = logging.getLogger("torch.utils.cpp_extension")  # a toolkit without a GPU, it says
    level = noise.level
    noise.setLevel(logging.ERROR)
    try:
        found = kernels(bounds, eps)
        with torch.no_grad():
            found.forward(x, *vectors[:2])
            found.backward(grad, x, *vectors)
    except (RuntimeError, OSError) as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            "machine.fused_batch_norm is true, but torch.compile cannot build a kernel here "
            f"({why[0]}); install a C++ compiler (g++), or set fused_batch_norm to false, in a "
            "run's config.yaml too: the network computes the same to rounding"
        ) from error
    finally:
        noise.setLevel(level)
    return found


@cache
def kernels(bounds: Bounds, eps: float) -> Kernels:
    """The same, not compiled yet."""
    low, high = bounds

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        count = x.shape[0] * x.shape[1]
        origin = x[0].mean(0)  # sums of squares about it do not cancel
        apart = x - origin
        offset = _total(apart) / count
        variance = (_total(apart * apart) / count - offset * offset).clamp_min(0)
        mean = origin + offset
        inverse = torch.rsqrt(variance + eps)
        scale = weight * inverse
        shift = bias - mean * scale
        y = x * scale + shift
        if high < inf:
            y = y.clamp_max(high)
        if low > -inf:
            y = y.clamp_min(low)
        return y, mean, variance, inverse, scale, shift

    def backward(
        grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, scale: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = x.shape[0] * x.shape[1]
        y = x * scale + shift
        if high < inf:
            grad = torch.where(y < high, grad, 0.0)
        if low > -inf:
            grad = torch.where(y > low, grad, 0.0)
        apart = x - mean
        grad_bias, along = _total(grad), _total(grad * apart)
        level, slope = scale * grad_bias / count, scale * inverse * inverse * along / count
        return scale * grad - level - slope * apart, along * inverse, grad_bias

    return Kernels(_compiled(forward), _compiled(backward))


def _total(values: Tensor) -> Tensor:
    """Over rows and pixels, in two steps: rounding grows with the length of a sum."""
    return values.sum(1).sum(0)


def _compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    # Bounds and eps are constants to it; which dimensions are not is marked.
    compiled: Callable[..., Any] = torch.compile(kernel, **apart())
    return compiled
