"""Trained networks of inverted bottlenecks, in blocks of ours.

`shape_of` reads the settings of `spaces.inverted` off a network, and `convert` brings another
library's module into blocks of ours, weights included.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from proxylessnas.architecture import InputInfo
from proxylessnas.core.mixed import Residual
from proxylessnas.errors import ArchitectureError
from proxylessnas.spaces.blocks import ConvBN, Head, MBConv, Network
from proxylessnas.spaces.inverted import ACTIVATIONS, BlockShape, InvertedSettings, build_network

TOLERANCE = 1e-5  # of the largest output, between a library's module and ours
SIZE = (224, 224)  # of images, which weights do not tell


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A trained network in blocks of ours.

    network: in evaluation mode; its parts are `stem`, `blocks`, `head` and `classifier`.
    input: the input that the weights were trained for: shape [channels, height, width], mean and
        standard deviation of pixels in [0, 1], names of the classes where they are known.
    name: what it was loaded by.
    """

    network: Network
    input: InputInfo
    name: str = field(default="")

    @property
    def classes(self) -> int:
        """Outputs of the classifier."""
        return self.network.classifier.out_features


def bottleneck(block: nn.Module) -> MBConv | None:
    """The inverted bottleneck of a network's block, with or without a shortcut; None: left out.

    Raises:
        ArchitectureError: the block is something else.
    """
    inner = block.branch if isinstance(block, Residual) else block
    if isinstance(inner, nn.Identity):
        return None
    if not isinstance(inner, MBConv):
        raise ArchitectureError(
            f"a block is a {type(inner).__name__}; only networks of inverted bottlenecks, as "
            "those of the space mobile, can be specialised"
        )
    return inner


def shape_of(network: Network) -> InvertedSettings:
    """The inverse of `build_network`, but for the size of images.

    Raises:
        ArchitectureError: the network has layers of another kind.
    """
    stem, head = network.stem, network.head
    first = head[0] if isinstance(head, Head) else None
    if not isinstance(stem, ConvBN) or not isinstance(first, ConvBN):
        raise ArchitectureError(
            "the network is not one of inverted bottlenecks: other stem or head"
        )
    names = {kind: name for name, kind in ACTIVATIONS.items()}
    return InvertedSettings(
        input_shape=(stem.conv.in_channels, *SIZE),
        stem=stem.conv.out_channels,
        stem_kernel=stem.conv.kernel_size[0],
        stem_stride=stem.conv.stride[0],
        blocks=tuple(map(_block_shape, network.blocks)),
        head=first.conv.out_channels,
        classes=network.classifier.out_features,
        same=stem.same,
        eps=stem.norm.eps,
        activation=names[first.activation or nn.ReLU6],
    )


def _block_shape(block: nn.Module) -> tuple[int, ...]:
    layers = bottleneck(block)
    if layers is None:
        return ()
    conv = layers.depthwise.conv
    return BlockShape(
        kernel=conv.kernel_size[0],
        stride=conv.stride[0],
        out=layers.project.conv.out_channels,
        inner=0 if layers.expand is None else conv.out_channels,
        shortcut=int(isinstance(block, Residual)),
    )


def conv_layers(module: nn.Module) -> list[ConvBN]:
    """All convolutions with their normalisation, from the input to the output."""
    return [layer for layer in module.modules() if isinstance(layer, ConvBN)]


# --- another library's module into blocks of ours ---


@dataclass
class _Layer:
    """A convolution, the normalisation and the activation after it."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None = None
    activation: nn.Module | None = None

    @property
    def is_depthwise(self) -> bool:
        return self.conv.groups == self.conv.in_channels == self.conv.out_channels > 1

    @property
    def is_pointwise(self) -> bool:
        return self.conv.kernel_size == (1, 1) and self.conv.groups == 1


@torch.no_grad()
def convert(reference: nn.Module, *, name: str, size: int = 64) -> Network:
    """A module of torchvision or timm in blocks of ours, with the same weights.

    The layers are read in the order in which the module registers them, and grouped around the
    depthwise convolutions. Whether that order is also the order of computation, where shortcuts
    are, and how strided convolutions pad is then tried: the outputs of both are compared on random
    images of `size` and of `size + 1` pixels.

    Raises:
        ArchitectureError: the module is no plain network of inverted bottlenecks.
    """
    reference = reference.eval()
    layers, classifier = _layers(reference, name)
    network = build_network(_shape(layers, classifier, name)).eval()
    for ours, theirs in zip(conv_layers(network), layers, strict=True):
        assert theirs.norm is not None
        ours.conv.weight.copy_(theirs.conv.weight)
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            getattr(ours.norm, tensor).copy_(getattr(theirs.norm, tensor))
    network.classifier.load_state_dict(classifier.state_dict())
    difference = max(_difference(network, reference, pixels) for pixels in (size, size + 1))
    if not difference <= TOLERANCE:
        raise _other_family(
            name,
            f"blocks of its layers compute something else (by {difference:.1g} of the largest "
            "output)",
        )
    return network


def _layers(reference: nn.Module, name: str) -> tuple[list[_Layer], nn.Linear]:
    layers: list[_Layer] = []
    classifier: nn.Linear | None = None
    for module in reference.modules():
        if isinstance(module, nn.Conv2d):
            layers.append(_Layer(module))
        elif isinstance(module, nn.Linear):
            classifier = module
        elif isinstance(module, nn.BatchNorm2d) and layers and layers[-1].norm is None:
            layers[-1].norm = module
        elif type(module) in ACTIVATIONS.values() and layers:
            layers[-1].activation = module
        elif next(module.parameters(recurse=False), None) is not None:
            raise _other_family(name, f"it has a {type(module).__name__}")
    if classifier is None or classifier.bias is None:
        raise _other_family(name, "it has no linear classifier")
    for layer in layers:
        if layer.norm is None or layer.conv.bias is not None:
            raise _other_family(name, "a convolution has no batch normalisation")
    return layers, classifier


def _pads_as_tensorflow(layers: Sequence[_Layer]) -> bool:
    strided = [layer.conv for layer in layers if layer.conv.stride[0] > 1]
    return any(conv.padding != tuple(k // 2 for k in conv.kernel_size) for conv in strided)


def _shape(layers: Sequence[_Layer], classifier: nn.Linear, name: str) -> InvertedSettings:
    stem, *middle, head = layers
    activations = {type(layer.activation) for layer in layers if layer.activation is not None}
    epsilons = {layer.norm.eps for layer in layers if layer.norm is not None}
    if len(activations) != 1 or len(epsilons) != 1:
        raise _other_family(name, "activations or BN epsilons are not the same everywhere")
    names = {kind: word for word, kind in ACTIVATIONS.items()}
    return InvertedSettings(
        input_shape=(stem.conv.in_channels, *SIZE),
        stem=stem.conv.out_channels,
        stem_kernel=stem.conv.kernel_size[0],
        stem_stride=stem.conv.stride[0],
        blocks=tuple(_blocks(middle, name)),
        head=head.conv.out_channels,
        classes=classifier.out_features,
        same=_pads_as_tensorflow(layers),
        eps=epsilons.pop(),
        activation=names[activations.pop()],
    )


def _blocks(layers: Sequence[_Layer], name: str) -> Iterator[BlockShape]:
    rest = list(layers)
    while rest:
        count = 2 if rest[0].is_depthwise else 3
        block, rest = rest[:count], rest[count:]
        depthwise, project = block[-2:] if len(block) > 1 else (block[0], block[0])
        pointwise = [*block[:-2], project]
        if len(block) != count or not depthwise.is_depthwise or project.activation is not None:
            raise _other_family(name, "its blocks are not expand, depthwise, project")
        if not all(layer.is_pointwise for layer in pointwise):
            raise _other_family(name, "its blocks are not expand, depthwise, project")
        conv, ends = depthwise.conv, (block[0].conv.in_channels, project.conv.out_channels)
        yield BlockShape(
            kernel=conv.kernel_size[0],
            stride=conv.stride[0],
            out=ends[1],
            inner=conv.out_channels if count == 3 else 0,
            shortcut=int(conv.stride[0] == 1 and ends[0] == ends[1]),
        )


def _difference(network: nn.Module, reference: nn.Module, size: int) -> float:
    """The largest difference of two outputs, as a share of the largest output."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, generator=generator)
    theirs: Tensor = reference(images)
    return float((network(images) - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))


def _other_family(name: str, reason: str) -> ArchitectureError:
    return ArchitectureError(
        f"{name} is no network of plain inverted bottlenecks: {reason}; use efficientnet_lite0, "
        "torchvision:mobilenet_v2 or timm:mobilenetv2_100 and their like"
    )


# --- images of one channel ---


@torch.no_grad()
def for_gray(pretrained: Pretrained) -> Pretrained:
    """The network for gray images [1, height, width], as if each were expanded to its channels.

    The first convolution sums its kernels over the channels, each scaled as the channel's
    normalisation is; what the channels' means differ by moves the statistic of the normalisation
    behind it. Where all channels are normalised alike that is exact; else only the outermost
    pixels differ, because zeros are padded to images that are normalised already.
    """
    network = copy.deepcopy(pretrained.network)
    stem = network.stem
    assert isinstance(stem, ConvBN) and stem.norm.running_mean is not None
    gray, moved = sum_channels(stem.conv, pretrained.input)
    stem.norm.running_mean -= moved
    return replace(pretrained, network=network, input=gray)


@torch.no_grad()
def sum_channels(conv: nn.Conv2d, info: InputInfo) -> tuple[InputInfo, Tensor]:
    """Let a first convolution take gray images of the input that is returned.

    Also returned: what its outputs are moved by, which what follows must take off again.
    """
    mean, std, weight = torch.tensor(info.mean), torch.tensor(info.std), conv.weight
    gray_mean, gray_std = float(mean.mean()), float(std.mean())
    moved = (weight.sum((2, 3)) * ((gray_mean - mean) / std)).sum(1)
    conv.weight = nn.Parameter((weight * (gray_std / std)[:, None, None]).sum(1, keepdim=True))
    conv.in_channels = 1
    return replace(info, shape=(1, *info.shape[1:]), mean=(gray_mean,), std=(gray_std,)), moved
