"""A network as it computes in int8, in PyTorch: to score it unconverted, and to train it.

What goes into a convolution, a linear layer, a sum, a product or a mean is rounded to the 256
values of its range, a weight to those of its output channel, as `precision.quantised` does: the
same grid. Gradients pass the rounding as they are, and stop where a value is outside of its range
(a straight-through estimator; Jacob et al., CVPR 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from proxylessnas.export.fold import fold

Inputs = tuple[Tensor, ...]
Range = tuple[float, float]
WEIGHTED = (torch.conv1d, torch.conv2d, torch.conv3d, F.linear)
# Operations of activations alone, in every spelling; `x.add_(y)` may be called for its effect on x.
PLAIN = (
    *(torch.add, Tensor.add, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__),
    *(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__imul__, Tensor.__rmul__),
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.cat),
    *(torch.mean, Tensor.mean, F.adaptive_avg_pool2d, F.avg_pool2d),
)


class FakeInt8(nn.Module):
    """A network with batch normalisation folded in, which rounds as its int8 file does.

    calibration: inputs of the network, which the ranges of activations are of; they stay.
    reduce_range: see `precision.quantised`.
    """

    def __init__(
        self, network: nn.Module, calibration: Iterable[Inputs], *, reduce_range: bool = False
    ) -> None:
        super().__init__()
        self.network = fold(network)
        self.limit = 64 if reduce_range else 127
        self.ranges: list[list[Range]] = []
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        with torch.no_grad():
            for inputs in calibration:
                watch = _Watch(self.ranges)
                with watch:
                    outputs = self.network(*(x.to(device) for x in inputs))
                watch.seen([outputs] if isinstance(outputs, Tensor) else [])

    def forward(self, *inputs: Tensor) -> Any:
        rounding = _Rounding(self.ranges, self.limit)
        with rounding:
            outputs = self.network(*inputs)
        if not isinstance(outputs, Tensor):  # of several outputs those of a list are not rounded
            return outputs
        return rounding.rounded([outputs])[0]


class _Calls(TorchFunctionMode):
    """Every call that int8 computes in integers, in order: a network makes the same ones again."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in WEIGHTED and len(args) > 1:
            args = [*self.seen([args[0]]), self.weight(args[1]), *args[2:]]
        elif function is torch.cat:
            args = [self.seen(list(args[0])), *args[1:]]
        elif function in PLAIN:
            values = [x for x in args[:2] if _is_activation(x)]
            later = iter(self.seen(values)) if values else iter(())
            args = [next(later) if _is_activation(x) else x for x in args[:2]] + list(args[2:])
        return function(*args, **(kwargs or {}))

    def seen(self, activations: list[Tensor]) -> list[Tensor]:
        """What the call gets in their place."""
        self.count += 1
        return activations

    def weight(self, weight: Tensor) -> Tensor:
        """What the call gets in its place."""
        return weight


class _Watch(_Calls):
    """Widens the ranges by what goes into every call."""

    def __init__(self, ranges: list[list[Range]]) -> None:
        super().__init__()
        self.ranges = ranges

    def seen(self, activations: list[Tensor]) -> list[Tensor]:
        new = [(min(0.0, float(x.min())), max(0.0, float(x.max()))) for x in activations]
        if self.count == len(self.ranges):
            self.ranges.append(new)
        pairs = zip(self.ranges[self.count], new, strict=True)
        self.ranges[self.count] = [(min(a[0], b[0]), max(a[1], b[1])) for a, b in pairs]
        return super().seen(activations)


class _Rounding(_Calls):
    def __init__(self, ranges: list[list[Range]], limit: int) -> None:
        super().__init__()
        self.ranges, self.limit = ranges, limit

    def seen(self, activations: list[Tensor]) -> list[Tensor]:
        ranges = self.ranges[self.count]
        super().seen(activations)
        return self.rounded(activations, ranges)

    def rounded(
        self, activations: list[Tensor], ranges: Sequence[Range] | None = None
    ) -> list[Tensor]:
        """ranges: default those of the outputs, which come last."""
        pairs = zip(activations, ranges or self.ranges[-1], strict=True)
        return [_rounded(x, low, high) for x, (low, high) in pairs]

    def weight(self, weight: Tensor) -> Tensor:
        largest = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-12)
        zeros = torch.zeros_like(largest, dtype=torch.int32)
        scale = largest / self.limit
        return torch.fake_quantize_per_channel_affine(
            weight, scale, zeros, 0, -self.limit, self.limit
        )


def _rounded(x: Tensor, low: float, high: float) -> Tensor:
    scale = (high - low) / 255 or 1.0
    return torch.fake_quantize_per_tensor_affine(x, scale, round(-low / scale), 0, 255)


def _is_activation(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1
