"""A specialised network as files: figures, the table of layers, weights; what stages leave."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Indices
from proxylessnas.data.arguments import describe
from proxylessnas.errors import RunError, foreign
from proxylessnas.io.files import write_atomic
from proxylessnas.selection.choose import Choice, Proposal
from proxylessnas.surgery.attention import opened
from proxylessnas.surgery.brought import Trained
from proxylessnas.surgery.candidates import LEFT_OUT, Change, Changes
from proxylessnas.surgery.lowrank import factored
from proxylessnas.surgery.narrow import Narrowed, matched, replace_tensor, set_attribute
from proxylessnas.surgery.pairs import Pair
from proxylessnas.training.copying import copied

SUMMARY, LAYERS, WEIGHTS = "summary.json", "layers.txt", "weights.safetensors"
LEARNED = "finetuned.safetensors"  # the weights once they were fine-tuned
FIRST = "first_batches"
CALL = "call.json"  # of the Python call that a directory is of


def files_of(network: nn.Module, table: str) -> dict[str, bytes]:
    """The weights and the table of layers: name -> content."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    return {
        WEIGHTS: save({name: t.clone() for name, t in tensors.items()}),
        LAYERS: (table + "\n").encode(),
    }


def save_network(path: Path, network: nn.Module, summary: Mapping[str, Any], table: str) -> None:
    """Write weights, table and figures.

    Raises:
        RunError: the directory is not new, or cannot be written.
    """
    if os.path.lexists(path) and not (path.is_dir() and not os.listdir(path)):
        raise RunError(f"{path} exists and is not an empty directory; choose a new one")
    with foreign(RunError, f"{path} cannot be written"):
        path.mkdir(parents=True, exist_ok=True)
    figures = {SUMMARY: (json.dumps(summary, indent=2) + "\n").encode()}
    for name, content in (files_of(network, table) | figures).items():
        write_atomic(path / name, content)


def restored(model: nn.Module, path: str | Path) -> nn.Module:
    """The specialised network of a directory, made of the model that it was made of; fine-tuned,
    if it was.

    model: an instance of the same class, of whatever weights; it stays as it is.

    Raises:
        RunError: the directory holds no network of this model.
    """
    path = Path(path)
    with foreign(RunError, f"{path} holds no specialised network"):
        tensors: dict[str, Tensor] = load_file(
            path / (LEARNED if (path / LEARNED).is_file() else WEIGHTS)
        )
        summary = json.loads((path / SUMMARY).read_text())
        choices, attributes = summary["architecture"], summary["attributes"]
    with foreign(RunError, f"{path} holds a network of another model"):
        return network_of(model, choices, attributes, tensors)


def network_of(
    model: nn.Module,
    choices: Mapping[str, str],
    attributes: Mapping[str, int],
    tensors: Mapping[str, Tensor],
) -> nn.Module:
    """A copy of the model with these tensors, and without the blocks that were left out.

    choices: the candidate that was chosen, by the name of the block or the layer. attributes: of
    its modules, by their paths, as `blocks.0.attn.num_heads`.
    """
    network = opened(copied(model))
    for name, candidate in choices.items():
        if candidate == LEFT_OUT:
            network.set_submodule(name, nn.Identity())
    for name, tensor in tensors.items():
        if name.endswith(".0.weight") and f"{name[:-9]}.weight" in network.state_dict():
            taps = tensors[f"{name[:-8]}1.weight"].shape[-1] if tensor.dim() > 3 else 1
            layer = network.get_submodule(name[:-9])
            network.set_submodule(name[:-9], factored(layer, len(tensor), taps))
    for name, tensor in tensors.items():
        replace_tensor(network, name, tensor)
    for module in network.modules():
        matched(module)
    for name, value in attributes.items():
        set_attribute(network, name, value)
    network.load_state_dict(tensors)
    return network.eval()


# --- what stages leave ---


def check_same_call(
    brought: Trained, target_latency: str, blocks: Any, kinds: Sequence[str]
) -> None:
    """Whether what is in the store is of this call; kept where nothing is there yet.

    Raises:
        RunError: it is of another one; what differs is named.
    """
    several = blocks if isinstance(blocks, list | tuple | set) else [blocks]
    now = {
        "model": type(brought.model).__name__,
        "weights": _digest(brought.model.state_dict()),
        "example_inputs": describe(brought.inputs),
        "batches": [len(brought.train), len(brought.valid)],
        "target_latency": target_latency,
        "blocks": sorted(str(getattr(b, "__name__", b)) for b in several),
        "candidates": list(kinds),
        "runtime": brought.runtime.name,
        "measure": asdict(brought.measure),
        "seed": brought.seed,
        FIRST: [_tensors_of(next(each.epoch(0))) for each in (brought.train, brought.valid)],
    }
    store = brought.records.store
    if not store.has(CALL):
        store.write_json(CALL, now)
        return
    before = store.read_json(CALL)
    for name, value in now.items():
        if name == FIRST and isinstance(before, dict):
            if before.get(name, value) != value:  # no error: a loader may draw at random
                brought.reporter.say(
                    f"  WARNING: {store.file(CALL).parent} was begun with other data (the first "
                    "batches differ): what is finished there is of those"
                )
        elif not isinstance(before, dict) or before.get(name) != value:
            raise RunError(
                f"{store.file(CALL).parent} is of another call: its {name} differs; give the same "
                "model and arguments to go on with it, or choose another `out`"
            )


def _tensors_of(batch: Any) -> str:
    """A batch's tensors as a digest."""
    leaves = pytree.tree_leaves(batch)
    return _digest({str(k): v for k, v in enumerate(leaves) if isinstance(v, Tensor)})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensors_of_fits(
    fits: Mapping[Pair, Mapping[int, Narrowed]], changes: Changes
) -> dict[str, Tensor]:
    """Fits as named tensors."""
    tensors = {
        f"{path} {level} {name}": getattr(change, name).contiguous().clone()
        for level, by_path in changes.items()
        for path, change in by_path.items()
        for name in change.fitted
    }
    for pair, by_width in fits.items():
        for width, kept in by_width.items():
            tensors[_key(pair, width)] = kept.channels
            for name, (weight, bias) in kept.refits.items():
                tensors[_key(pair, width, name)] = weight
                tensors[_key(pair, width, name, "bias")] = bias
    return tensors


def fitted_changes(blanks: Changes, tensors: Mapping[str, Tensor]) -> Changes:
    """The changes as they were fitted."""
    return {
        level: {
            path: _fitted(change, {n: tensors[f"{path} {level} {n}"] for n in change.fitted})
            for path, change in by_path.items()
        }
        for level, by_path in blanks.items()
    }


def _fitted(change: Any, tensors: Mapping[str, Tensor]) -> Change:
    fitted: Change = replace(change, **tensors)
    return fitted


def fits_of(
    widths: Mapping[Pair, Sequence[int]], tensors: Mapping[str, Tensor]
) -> dict[Pair, dict[int, Narrowed]]:
    """The inverse of `tensors_of_fits`. widths: of every pair."""
    return {
        pair: {
            width: Narrowed(
                tensors[_key(pair, width)],
                {
                    cut.tensor: (tensors[key], tensors[_key(pair, width, cut.tensor, "bias")])
                    for cut in pair.consumers
                    if (key := _key(pair, width, cut.tensor)) in tensors
                },
            )
            for width in several
        }
        for pair, several in widths.items()
    }


def _key(pair: Pair, *words: str | int) -> str:
    return " ".join(map(str, (pair.name, *words)))


def plain_choice(choice: Choice) -> dict[str, Any]:
    """A choice as plain values, without the costs."""
    proposals = [asdict(p) for p in (choice.chosen, *choice.proposals)]
    return {"proposals": proposals, "rounds": choice.rounds, "correction": choice.correction}


def choice_of(facts: dict[str, Any], costs_around: Callable[[float, Indices], Costs]) -> Choice:
    """The inverse of `plain_choice`. costs_around: by a correction, and a network."""
    chosen, *proposals = map(_proposal, facts["proposals"])
    corrected = costs_around(facts["correction"], chosen.indices)
    return Choice(chosen, tuple(proposals), corrected, facts["rounds"], facts["correction"])


def _proposal(facts: Mapping[str, Any]) -> Proposal:
    tuples = ("indices", "costs", "batch_scores")  # which JSON made lists
    values: dict[str, Any] = {k: tuple(v) if k in tuples else v for k, v in facts.items()}
    return Proposal(**values)
