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
from torch.utils import _pytree as pytree

from proxylessnas.data.arguments import arguments_of
from proxylessnas.errors import in_words
from proxylessnas.hardware.fingerprint import Convolution
from proxylessnas.pretrained.least_squares import rows_of
from proxylessnas.surgery.pairs import Pair, Refused
from proxylessnas.training.copying import copied
from proxylessnas.training.freezing import evaluating

TOLERANCE = 1e-4  # of the outputs' largest number: what the order of float32 sums may change


@dataclass(frozen=True, eq=False)
class Narrowed:
    """What remains of a pair.

    channels: those that remain, rising. refits: by the weight of a layer that reads them, its new
    (weight [out, inputs...], bias [out]); a layer without one keeps the weights that it has.
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
def narrow(network: nn.Module, cuts: Sequence[tuple[Pair, Narrowed]]) -> None:
    """Leave a network these channels of these pairs alone; tensors are replaced, not written to.

    A layer between two pairs loses inputs to the one and outputs to the other.
    """
    # First what reads the channels: refits are of all outputs, which other pairs cut afterwards.
    for pair, kept in cuts:
        for cut in pair.consumers:
            if cut.tensor in kept.refits:
                weight, bias = kept.refits[cut.tensor]
                replace_tensor(network, cut.tensor, weight)
                replace_tensor(network, f"{cut.module}.bias", bias)
            else:
                _select(network, cut.tensor, cut.axis, rows_of(kept.channels, cut.rows))
    for pair, kept in cuts:
        for cut in pair.cuts:
            _select(network, cut.tensor, cut.axis, rows_of(kept.channels, cut.rows))
        # A refit that brought a bias: the pair whose outputs it belongs to did not have it to cut.
        for path in pair.producers:
            layer: Any = network.get_submodule(path)
            if layer.bias is not None and len(layer.bias) != len(layer.weight):
                _select(network, f"{path}.bias", 0, kept.channels)
    for pair, _ in cuts:
        for path in pair.layers:
            matched(network.get_submodule(path))


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
    elif isinstance(module, Convolution):
        out, inside = module.weight.shape[:2]
        if inside == 1 and 1 < module.groups == module.in_channels:  # depthwise
            module.groups = out
        module.out_channels, module.in_channels = out, inside * module.groups
    elif isinstance(module, _NormBase):
        tensor = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if tensor is None else len(tensor)


# --- proof ---


@torch.no_grad()
def proven(
    model: nn.Module, pairs: Sequence[Pair], inputs: tuple[Any, ...]
) -> tuple[list[Pair], list[Refused]]:
    """The pairs that cut what the model computes with, and the others.

    With the weights zero that read the channels which go, the model computes what it computes
    without these channels. That is tried on the example inputs, of all pairs at once, and of each
    where it fails: a number of channels that is written in the model's code, say, shows here.
    """
    if not pairs or not _difference(model, pairs, inputs):
        return list(pairs), []
    good: list[Pair] = []
    refused: list[Refused] = []
    for pair in pairs:
        if reason := _difference(model, [*good, pair], inputs):
            refused.append(Refused(name=pair.name, kind=pair.kind, shape=pair.shape, reason=reason))
        else:
            good.append(pair)
    return good, refused


def _difference(model: nn.Module, pairs: Sequence[Pair], inputs: tuple[Any, ...]) -> str:
    """Why the pairs cannot be cut; empty where every second channel can go."""
    cuts = [(pair, Narrowed(torch.arange(0, pair.width, 2), {})) for pair in pairs]
    silenced = copied(model)
    for pair, kept in cuts:
        gone = torch.ones(pair.width, dtype=torch.bool)
        gone[kept.channels] = False
        for cut in pair.consumers:
            weight = silenced.get_parameter(cut.tensor)
            weight[:, rows_of(gone.nonzero()[:, 0], cut.rows)] = 0.0
    expected = outputs(silenced, inputs)
    try:
        actual = outputs(narrowed(model, cuts), inputs)
    except Exception as error:  # whatever the model's own code raises
        return f"the model fails with fewer of its channels: {in_words(error)}"
    for a, b in zip(actual, expected, strict=True):
        scale = float(b.abs().max().clamp_min(1e-12))
        if a.shape != b.shape or not float((a - b).abs().max()) <= TOLERANCE * scale:
            return (
                "the model's outputs depend on its channels in a way that the graph does not show"
            )
    return ""


def outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """The tensors of floating point that a model returns, in evaluation mode."""
    args, kwargs = arguments_of(inputs)
    with evaluating(model), torch.no_grad():
        leaves = pytree.tree_leaves(model(*args, **kwargs))
    return [v.float() for v in leaves if isinstance(v, Tensor) and v.is_floating_point()]
