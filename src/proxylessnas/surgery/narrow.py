"""A copy of a model with some channels alone: tensors are cut by their names.

The copy is the model's own classes with smaller tensors, so that nothing of this library is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils import _pytree as pytree

from proxylessnas.data.arguments import arguments_of
from proxylessnas.errors import in_words
from proxylessnas.hardware.fingerprint import Convolution
from proxylessnas.surgery.norms import over_some
from proxylessnas.surgery.pairs import Cut, Pair, Refused, Size
from proxylessnas.training.copying import copied
from proxylessnas.training.freezing import evaluating

TOLERANCE = 1e-4  # of the outputs' largest number: what the order of float32 sums may change

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


# --- proof ---


@torch.no_grad()
def proven(
    model: nn.Module, pairs: Sequence[Pair], inputs: tuple[Any, ...]
) -> tuple[list[Pair], list[Refused]]:
    """The pairs that cut what the model computes with, and the others.

    With the weights zero that read the channels which go, and norms over the others alone, the
    model computes what it computes without these channels. That is tried on the example inputs, of
    all pairs at once, and of halves where it fails: a number of channels that is written in the
    model's code, say, shows here. So does an attribute that only happens to be as many.
    """
    good: list[Pair] = []
    refused: list[Refused] = []
    waiting = [list(pairs)] if pairs else []
    while waiting:
        several = waiting.pop()
        reason = _difference(model, [*good, *several], inputs)
        if not reason:
            good += several
        elif len(several) > 1:
            half = len(several) // 2
            waiting += [several[half:], several[:half]]
        else:
            (pair,) = several
            others = (
                p for p in _with_fewer_sizes(pair) if not _difference(model, [*good, p], inputs)
            )
            if other := next(others, None):
                good.append(other)
                continue
            refused.append(Refused(name=pair.name, kind=pair.kind, shape=pair.shape, reason=reason))
    return good, refused


def _with_fewer_sizes(pair: Pair) -> Iterator[Pair]:
    """The pair without one of several attributes of a module that are as many."""
    for size in pair.sizes:
        alike = [s for s in pair.sizes if (s.module, s.times) == (size.module, size.times)]
        if len(alike) > 1:
            yield replace(pair, sizes=tuple(s for s in pair.sizes if s is not size))


def _difference(model: nn.Module, pairs: Sequence[Pair], inputs: tuple[Any, ...]) -> str:
    """Why the pairs cannot be cut; empty where a half to three quarters of the channels can go."""
    # Not of all pairs the same share: two that the model's code keeps alike would not be noticed.
    cuts = [
        (pair, Narrowed(torch.arange(0, pair.width, 2 + k % 3), {})) for k, pair in enumerate(pairs)
    ]
    silenced = copied(model)
    for pair, kept in cuts:
        silence(silenced, pair, kept.channels)
    with over_some(silenced, [(pair, kept.channels) for pair, kept in cuts]):
        expected = outputs(silenced, inputs)
    try:
        actual = outputs(narrowed(model, cuts), inputs)
    except Exception as error:  # whatever the model's own code raises
        return f"the model fails with fewer of its channels: {in_words(error)}"
    for a, b in zip(actual, expected, strict=True):
        if not _agree(a, b):
            return (
                "the model's outputs depend on its channels in a way that the graph does not show"
            )
    return ""


def applicable(
    model: nn.Module, changes: Mapping[str, Any], inputs: tuple[Any, ...], *, exact: bool = False
) -> set[str]:
    """The layers, by their paths, whose change leaves the model running, its outputs of one shape.

    exact: and its outputs what they were. Tried of all at once, and of each where that fails.
    """
    before = outputs(model, inputs)

    def runs(several: Iterable[Any]) -> bool:
        network = copied(model)
        for change in several:
            change.apply(network, {})
        try:
            both = list(zip(outputs(network, inputs), before, strict=True))
        except Exception:  # whatever the model's own code raises
            return False
        return all(a.shape == b.shape and (not exact or _agree(a, b)) for a, b in both)

    if not changes or runs(changes.values()):
        return set(changes)
    return {path for path, change in changes.items() if runs([change])}


def _agree(a: Tensor, b: Tensor) -> bool:
    scale = float(b.abs().max().clamp_min(1e-12))
    return a.shape == b.shape and float((a - b).abs().max()) <= TOLERANCE * scale


def silence(model: nn.Module, pair: Pair, channels: Tensor) -> None:
    """Let the layers that read a pair's channels not read the others than these."""
    for cut in pair.consumers:
        gone = torch.ones(len(cut.channels), dtype=torch.bool)
        gone[cut.remaining(channels)] = False
        weight = model.get_parameter(cut.tensor).detach()
        weight.index_fill_(cut.axis, gone.nonzero()[:, 0].to(weight.device), 0.0)


def outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """The tensors of floating point that a model returns, in evaluation mode."""
    args, kwargs = arguments_of(inputs)
    with evaluating(model), torch.no_grad():
        leaves = pytree.tree_leaves(model(*args, **kwargs))
    return [v.float() for v in leaves if isinstance(v, Tensor) and v.is_floating_point()]
