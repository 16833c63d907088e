"""The authors' trained weights into a network of ours, by name and place.

theirs, ImageNet                                       ours
first_conv.{conv,bn}                                   stem.{0,1}
blocks.I.mobile_inverted_conv.inverted_bottleneck...   blocks.I[.branch].0.{0,1}
  .depth_conv... .point_linear...                        .1.{0,1}  .2.{0,1}
feature_mix_layer.{conv,bn}, classifier.linear         head.0.{0,1}, head.4

theirs, CIFAR-10                                       ours
blocks.0.layers.{0.conv,1.bn}                          stem.{0,1}
blocks.I.{in_bottle,out_bottle,final_bn}               blocks.(I-1).…
blocks.I.cell.edges.0                                  .cell.conv
blocks.I.cell.child_nodes.0.branch_bns.B               .cell.branch_bns.B
  ….child_nodes.B.edges.J, .child_nodes.J…               .cell.branches.B.edges.J, .nodes.J…
blocks.(last).layers.0.bn, classifier.linear           head.0, head.5
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from proxylessnas.core.mixed import MixedOp, Residual
from proxylessnas.errors import ArchitectureError, one_line
from proxylessnas.spaces.blocks import MBConv, Network
from proxylessnas.spaces.tree_layers import Cell, Depthwise, Node, PreConv, TreeBlock

Owned = Iterator[tuple[str, nn.Module]]  # (the authors' prefix, our layer that holds the tensors)
MAX_FILE_BYTES = 1 << 30
UNKNOWN = "is not in the network"  # the end of a line about a key of the file
USUAL = ("state_dict", "model", "model_state_dict", "net", "weights")  # of a checkpoint's parts
COUNTER = "num_batches_tracked"  # of BN; checkpoints before PyTorch 0.4.1 have none


def load_published_weights(network: nn.Module, path: str | Path) -> None:
    """Fill `network`, a plain network of `mobile` or `tree`, with the authors' weights.

    path: their checkpoint (`{"state_dict": ...}`, or the bare mapping), read without
        running what it holds, or the same keys in a `.safetensors` file.

    Raises:
        ArchitectureError: the file cannot be read, or its keys or shapes are not the
            network's; the first that differ are named, and nothing is loaded.
    """
    copy_weights(read_weights(Path(path)), published_keys(network), path)


def copy_weights(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str | Path
) -> None:
    """The file's tensors into the network's of the same names.

    Raises:
        ArchitectureError: keys or shapes differ; the first are named, and nothing is copied.
    """
    if problems := differences(state, expected):
        # Where a key is missing, the file's own keys tell what it is instead.
        unknown = [problem for problem in problems[2:] if problem.endswith(UNKNOWN)]
        first = [*problems[:2], *(unknown or problems[2:])[:1]]
        more = f" and {len(problems) - len(first)} more" if len(problems) > len(first) else ""
        raise ArchitectureError(
            f"the weights {path} are not this network's: {'; '.join(first)}{more}"
        )
    with torch.no_grad():
        for key, tensor in expected.items():
            if key in state:
                tensor.copy_(state[key])


def published_keys(network: nn.Module) -> dict[str, Tensor]:
    """The authors' key of each of the network's parameters and buffers, in the network's order.

    Raises:
        ArchitectureError: the network is none of the authors' two kinds.
    """
    keys = {
        f"{prefix}.{name}": tensor
        for prefix, layer in _layers(network)
        for name, tensor in layer.state_dict(keep_vars=True).items()
    }
    if len(keys) != len(network.state_dict()):
        raise ArchitectureError(
            "published weights fit the plain networks of the spaces mobile and tree; this "
            f"{type(network).__name__} has other layers"
        )
    return keys


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a checkpoint or a `.safetensors` file; runs nothing the file holds.

    Raises:
        ArchitectureError: the file cannot be read, or holds something else.
    """
    try:
        _check_size(path)
        if path.suffix == ".safetensors":
            state: object = load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # of damaged files, about its format
                state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ArchitectureError(
            f"cannot read the weights {path}: {error.strerror or one_line(error)}"
        ) from None
    except Exception as error:  # on a damaged file torch raises whatever it stumbles over
        raise ArchitectureError(f"cannot read the weights {path}: {_reason(error)}") from None
    state = _unpacked(state)
    if not isinstance(state, Mapping):
        raise ArchitectureError(f"the weights {path} hold no state_dict")
    for key, value in state.items():
        dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        if not isinstance(key, str) or not dense:
            raise ArchitectureError(f"the weights {path}: {key!r} is not a dense tensor")
    return dict(state)


def _unpacked(state: object) -> object:
    """The named tensors of what training scripts save; of several the one by a usual name."""
    while isinstance(state, Mapping):
        parts = {k: v for k, v in state.items() if isinstance(v, Mapping) and _are_tensors(v)}
        name = next((k for k in USUAL if isinstance(state.get(k), Mapping)), None)
        if name is None and len(parts) == 1 and not _are_tensors(state):
            (name,) = parts
        if name is None:
            return state
        state = state[name]
    return state


def _are_tensors(state: Mapping[object, object]) -> bool:
    return bool(state) and all(isinstance(v, Tensor) for v in state.values())


def _check_size(path: Path) -> None:
    """No device, nothing huge, no archive that unpacks into more than it is."""
    size = path.stat().st_size
    if not path.is_file() or size > MAX_FILE_BYTES:
        raise ValueError(f"it is no regular file of at most {MAX_FILE_BYTES >> 20} MiB")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > size:
                raise ValueError("its parts are compressed, which torch.save never does")
            if bad := archive.testzip():  # torch itself does not look at the checksums
                raise ValueError(f"it is damaged: the checksum of {bad} does not agree")


def _reason(error: Exception) -> str:
    """Why torch did not read a file; without its advice to run what the file holds."""
    if isinstance(error, ValueError):  # ours
        return one_line(error)
    if match := re.search(r"(?:GLOBAL|global:?) (?:GLOBAL )?([\w.]+)", str(error)):
        return (
            f"beside tensors it holds Python objects ({match[1]}), which may run code, so that it "
            "is refused; save the weights alone, torch.save(model.state_dict(), PATH)"
        )
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or a pickle of something else than named tensors, and is refused"
    return f"it is no checkpoint ({one_line(error)})"


def differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Where a file's keys, shapes and dtypes are not the network's, a line each."""
    problems = []
    for key, tensor in expected.items():
        if key not in state:
            if not key.endswith(COUNTER):
                problems.append(f"{key} {list(tensor.shape)} is missing from the file")
        elif state[key].shape != tensor.shape:
            problems.append(
                f"{key} is {list(state[key].shape)} in the file and {list(tensor.shape)} here"
            )
        elif state[key].is_floating_point() != tensor.is_floating_point():
            problems.append(f"{key} is {state[key].dtype} in the file and {tensor.dtype} here")
        elif not state[key].to(tensor.dtype).isfinite().all():
            problems.append(f"{key} holds values that are no numbers as {tensor.dtype}")
    unknown = [key for key in state if key not in expected]
    return problems + [f"{k} {list(state[k].shape)} {UNKNOWN}" for k in unknown]


# --- which layer of ours owns which of their keys ---


def _layers(network: nn.Module) -> Owned:
    if isinstance(network, Network) and not any(isinstance(m, MixedOp) for m in network.modules()):
        tree = isinstance(network.blocks[0], TreeBlock)
        yield from _tree(network) if tree else _mobile(network)


def _mobile(network: Network) -> Owned:
    yield from _pair("first_conv", network.stem)
    for i, block in enumerate(network.blocks):
        conv = block.branch if isinstance(block, Residual) else block
        if isinstance(conv, MBConv):  # else the block is left out
            names = ("inverted_bottleneck", "depth_conv", "point_linear")[-len(conv) :]
            for name, part in zip(names, conv, strict=True):
                yield from _pair(f"blocks.{i}.mobile_inverted_conv.{name}", part)
    children = dict(network.head.named_children())
    yield from _pair("feature_mix_layer", children["0"])
    yield "classifier.linear", children["4"]


def _pair(prefix: str, conv_bn: nn.Module) -> Owned:
    conv, bn = list(conv_bn.children())[:2]
    yield f"{prefix}.conv", conv
    yield f"{prefix}.bn", bn


def _tree(network: Network) -> Owned:
    conv, bn = list(network.stem.children())
    yield "blocks.0.layers.0.conv", conv
    yield "blocks.0.layers.1.bn", bn
    for i, block in enumerate(network.blocks, 1):
        assert isinstance(block, TreeBlock) and isinstance(block.cell, Cell)
        yield from _pre(f"blocks.{i}.in_bottle", block.in_bottle)
        yield from _cell(f"blocks.{i}.cell", block.cell)
        yield from _pre(f"blocks.{i}.out_bottle", block.out_bottle)
        yield f"blocks.{i}.final_bn", block.final_bn
    children = dict(network.head.named_children())
    yield f"blocks.{len(network.blocks) + 1}.layers.0.bn", children["0"]
    yield "classifier.linear", children["5"]


def _pre(prefix: str, layer: PreConv) -> Owned:
    yield f"{prefix}.bn", layer.bn
    yield f"{prefix}.conv", layer.conv


def _cell(prefix: str, cell: Cell) -> Owned:
    yield from _pre(f"{prefix}.edges.0", cell.conv)
    split = f"{prefix}.child_nodes.0"  # its own edges are identities without tensors
    for b, (node, bn) in enumerate(zip(cell.branches, cell.branch_bns, strict=True)):
        assert isinstance(node, Node)
        yield from _node(f"{split}.child_nodes.{b}", node)
        yield f"{split}.branch_bns.{b}", bn


def _node(prefix: str, node: Node) -> Owned:
    for j, edge in enumerate(node.edges):
        if isinstance(edge, Depthwise):
            for name, layer in edge.named_children():  # bn, depth_conv, point_conv
                yield f"{prefix}.edges.{j}.{name}", layer
    for j, below in enumerate(node.nodes):
        assert isinstance(below, Node)
        yield from _node(f"{prefix}.child_nodes.{j}", below)
