"""Layers of the image spaces: MobileNetV2's inverted bottleneck and its parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional

from proxylessnas.core.mixed import MixedOp
from proxylessnas.errors import ArchitectureError, did_you_mean

Candidates = Mapping[str, Callable[[], nn.Module]]


def choose(
    name: str,
    candidates: Candidates,
    choices: dict[str, str] | None,
    *,
    shared: bool = False,
) -> nn.Module:
    """A mixed operation over all candidates, or the chosen one alone; only those are built.

    The choice is taken out of `choices`: what is left there in the end fits nowhere. One that
    several positions share stays, until whoever builds them has built all.

    Raises:
        ArchitectureError: nothing, or no candidate of this operation, is chosen.
    """
    if choices is None:
        made = {key: make() for key, make in candidates.items()}
        return MixedOp(made, choice=name if shared else None)
    chosen = choices.get(name) if shared else choices.pop(name, None)
    if chosen is None:
        raise ArchitectureError(f"the architecture chooses nothing for {name!r}")
    if chosen not in candidates:
        raise ArchitectureError(
            f"{name!r} has no candidate {chosen!r}; {did_you_mean(chosen, candidates)}"
        )
    return candidates[chosen]()


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, never under 90 % of `channels` (as MobileNetV2)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class SamePadding(nn.Module):
    """TensorFlow's "same" padding in front of a convolution with stride.

    Zeros are added until the output has ceil(size / stride) pixels; where their number is odd,
    the last one stands below and to the right, while PyTorch pads all sides alike. With a stride
    of 1 both are the same.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.overlap, self.stride = kernel - stride, stride

    def forward(self, x: Tensor) -> Tensor:
        below = self.overlap + -x.shape[2] % self.stride
        right = self.overlap + -x.shape[3] % self.stride
        sides = (right // 2, right - right // 2, below // 2, below - below // 2)
        return functional.pad(x, sides)


class ConvBN(nn.Sequential):
    """Convolution without bias, batch normalisation, activation; "same" padding.

    same: pad as TensorFlow does, see `SamePadding`; default: all sides alike.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        activation: type[nn.Module] | None = nn.ReLU6,
        eps: float = 1e-3,
        same: bool = False,
    ) -> None:
        uneven = same and stride > 1
        layers: list[nn.Module] = [SamePadding(kernel, stride)] if uneven else []
        padding = 0 if uneven else kernel // 2
        layers += [
            nn.Conv2d(channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels, eps=eps, momentum=0.1),
        ]
        super().__init__(*layers, *([activation()] if activation else []))

    @property
    def conv(self) -> nn.Conv2d:
        return next(layer for layer in self if isinstance(layer, nn.Conv2d))

    @property
    def norm(self) -> nn.BatchNorm2d:
        return next(layer for layer in self if isinstance(layer, nn.BatchNorm2d))

    @property
    def activation(self) -> type[nn.Module] | None:
        last = self[-1]
        return None if last is self.norm else type(last)

    @property
    def same(self) -> bool:
        return isinstance(self[0], SamePadding)


class MBConv(nn.Sequential):
    """Inverted bottleneck: expand 1x1, depthwise kxk, project 1x1.

    expansion: hidden channels over input channels; without an expanding convolution at 1.
    inner: hidden channels, of any number, behind an expanding convolution; overrules expansion.
    same: see `SamePadding`.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        kernel: int,
        expansion: float = 1,
        inner: int | None = None,
        stride: int = 1,
        activation: type[nn.Module] = nn.ReLU6,
        eps: float = 1e-3,
        same: bool = False,
    ) -> None:
        hidden = round(channels * expansion) if inner is None else inner
        layers: list[nn.Module] = []
        if expansion != 1 or inner is not None:
            layers.append(ConvBN(channels, hidden, 1, activation=activation, eps=eps))
        layers.append(
            ConvBN(
                hidden,
                hidden,
                kernel,
                stride,
                groups=hidden,
                activation=activation,
                eps=eps,
                same=same,
            )
        )
        layers.append(ConvBN(hidden, out_channels, 1, activation=None, eps=eps))
        super().__init__(*layers)
        self.kernel, self.expansion = kernel, expansion if inner is None else inner / channels

    @property
    def expand(self) -> ConvBN | None:
        return self._part(0) if len(self) == 3 else None

    @property
    def depthwise(self) -> ConvBN:
        return self._part(-2)

    @property
    def project(self) -> ConvBN:
        return self._part(-1)

    def _part(self, index: int) -> ConvBN:
        layer = self[index]
        assert isinstance(layer, ConvBN)
        return layer


class Head(nn.Sequential):
    """Convolution 1x1, global average pool, dropout, linear."""

    def __init__(
        self,
        channels: int,
        width: int,
        classes: int,
        *,
        dropout: float = 0.0,
        activation: type[nn.Module] = nn.ReLU6,
        eps: float = 1e-3,
    ) -> None:
        super().__init__(
            ConvBN(channels, width, 1, activation=activation, eps=eps),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(width, classes),
        )


class WithClassifier(nn.Module, ABC):
    """A network of images that ends in a linear classifier."""

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """What the classifier sees of images [batch, channels, height, width]: [batch, width]."""

    @property
    @abstractmethod
    def classifier(self) -> nn.Linear:
        """The last layer."""

    @abstractmethod
    def replace_classifier(self, classifier: nn.Linear) -> None: ...


class Network(WithClassifier):
    """stem, blocks, head."""

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.Sequential(*blocks), head

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x)))
        return out

    def features(self, x: Tensor) -> Tensor:
        assert isinstance(self.head, nn.Sequential)
        x = self.blocks(self.stem(x))
        for layer in list(self.head)[:-1]:
            x = layer(x)
        return x

    @property
    def classifier(self) -> nn.Linear:
        """The last layer of the head."""
        assert isinstance(self.head, nn.Sequential)
        layer = self.head[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def replace_classifier(self, classifier: nn.Linear) -> None:
        assert isinstance(self.head, nn.Sequential)
        self.head[-1] = classifier
