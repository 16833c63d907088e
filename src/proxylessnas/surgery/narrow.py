"""A copy of a model with some channels alone: tensors are cut by their names.

The copy is the model's own classes with smaller tensors, so that nothing of this library is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd

from proxylessnas.hardware.fingerprint import Convolution
from proxylessnas.surgery.pairs import Cut, Pair, Size
from proxylessnas.training.copying import copied

Remaining = dict[tuple[str, int], Tensor]


@dataclass(frozen=True, eq=False)
class Narrowed:
    """What remains of a pair.

    channels: those that remain, rising. refits: by the weight of a layer that reads them, (their
    numbers in it, channel by channel along the axis that they are on; what is added to its bias,
    [out]). A layer without one keeps the weights that it has.
    """

    channels: Tensor
    refits: Mapping[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def narrowed(model: nn.Module, cuts: Sequence[tuple[Pair, Narrowed]]) -> nn.Module:
    """A copy of the model with these channels of these pairs alone."""
    network = copied(model)
    narrow(network, cuts)
    return network


@torch.no_grad()
def narrow(network: nn.Module, cuts: Sequence[tuple[Pair, Narrowed]]) -> Remaining:
    """Leave a network these channels of these pairs alone; tensors are replaced, not written to.

    Returns which indices remain of every tensor that is cut, [size], by name and axis.

    Pairs may cut one tensor, along two axes or one: a layer between two pairs loses inputs to the
    one and outputs to the other, one that reads a concatenation loses inputs to several.
    """
    for pair, kept in cuts:
        for cut in pair.consumers:
            if cut.tensor in kept.refits:
                _refitted(network, cut, kept)
    remaining: Remaining = {}
    for pair, kept in cuts:
        for cut in (*pair.cuts, *pair.consumers):
            stays = torch.zeros(len(cut.channels), dtype=torch.bool)
            stays[cut.remaining(kept.channels)] = True
            at = (cut.tensor, cut.axis)
            remaining[at] = remaining[at] & stays if at in remaining else stays
    for (name, axis), stays in remaining.items():
        _select(network, name, axis, stays.nonzero()[:, 0])
    for pair, _ in cuts:
        # A bias that a refit brought is of no pair.
        for path in pair.producers:
            _match_bias(network, path, remaining)
        for path in pair.layers:
            matched(network.get_submodule(path))
    for size, value in sizes_of(cuts).items():
        set_attribute(network, f"{size.module}.{size.attribute}", value)
    return remaining


def sizes_of(cuts: Sequence[tuple[Pair, Narrowed]]) -> dict[Size, int]:
    """What attributes of modules then are."""
    return {size: size.times * len(kept.channels) for pair, kept in cuts for size in pair.sizes}


def set_attribute(network: nn.Module, name: str, value: int) -> None:
    """Set a number; `shape[0]` is one in a tuple."""
    path, _, attribute = name.rpartition(".")
    owner = network.get_submodule(path)
    attribute, _, place = attribute.partition("[")
    if not place:
        setattr(owner, attribute, value)
        return
    held = list(getattr(owner, attribute))
    held[int(place[:-1])] = value
    setattr(owner, attribute, tuple(held))


def _refitted(network: nn.Module, cut: Cut, kept: Narrowed) -> None:
    weight = network.get_parameter(cut.tensor).detach()
    numbers, shift = (tensor.to(weight) for tensor in kept.refits[cut.tensor])
    places = cut.places[kept.channels].flatten().to(weight.device)
    replace_tensor(network, cut.tensor, weight.index_copy(cut.axis, places, numbers))
    layer: Any = network.get_submodule(cut.module)
    bias = 0.0 if layer.bias is None else layer.bias.detach()
    replace_tensor(network, f"{cut.module}.bias", bias + shift)


def _match_bias(network: nn.Module, path: str, remaining: Mapping[tuple[str, int], Tensor]) -> None:
    layer: Any = network.get_submodule(path)
    bias = getattr(layer, "bias", None)
    if bias is not None and (path + ".bias", 0) not in remaining:
        axis = 1 if isinstance(layer, _ConvTransposeNd) and layer.groups == 1 else 0
        stays = remaining[f"{path}.weight", axis]
        if len(bias) == len(stays):
            _select(network, f"{path}.bias", 0, stays.nonzero()[:, 0])


def _select(network: nn.Module, name: str, axis: int, indices: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    tensor: Tensor = getattr(network.get_submodule(path), attribute)
    replace_tensor(network, name, tensor.index_select(axis, indices.to(tensor.device)))


def replace_tensor(network: nn.Module, name: str, tensor: Tensor) -> None:
    """Put another tensor in the place of a parameter or a buffer."""
    path, _, attribute = name.rpartition(".")
    owner = network.get_submodule(path)
    if attribute in owner._buffers:
        owner._buffers[attribute] = tensor
        return
    like = owner._parameters[attribute]
    like = next(iter(owner._parameters.values())) if like is None else like
    assert like is not None
    tensor = tensor.detach().to(device=like.device, dtype=like.dtype).contiguous()
    owner._parameters[attribute] = nn.Parameter(tensor, requires_grad=like.requires_grad)


def precise(tensor: Tensor) -> Tensor:
    """Numbers of half a precision in single precision, others as they are."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def matched(module: nn.Module) -> None:
    """Let a module's attributes say what its tensors are."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _ConvTransposeNd):
        inside, out = module.weight.shape[:2]
        if module.groups > 1:
            module.groups = module.groups * inside // module.in_channels
        module.in_channels, module.out_channels = inside, out * module.groups
    elif isinstance(module, Convolution):
        out, inside = module.weight.shape[:2]
        module.kernel_size = tuple(module.weight.shape[2:])
        if module.groups > 1:  # channels of a group go together
            module.groups = module.groups * out // module.out_channels
        module.out_channels, module.in_channels = out, inside * module.groups
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        if module.num_groups > 1:
            module.num_groups = module.num_groups * len(module.weight) // module.num_channels
        module.num_channels = len(module.weight)
    elif isinstance(module, _NormBase):
        tensor = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if tensor is None else len(tensor)
    elif hasattr(module, "normalized_shape") and isinstance(module.weight, Tensor):
        setattr(module, "normalized_shape", tuple(module.weight.shape))  # noqa: B010
