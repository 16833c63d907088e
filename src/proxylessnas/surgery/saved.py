"""A specialised network as files: figures, the table of layers, weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor, nn

from proxylessnas.errors import RunError, foreign
from proxylessnas.io.files import write_atomic
from proxylessnas.surgery.narrow import matched, replace_tensor
from proxylessnas.training.copying import copied

SUMMARY, LAYERS, WEIGHTS = "summary.json", "layers.txt", "weights.safetensors"


def check_new(path: Path) -> None:
    """Raises RunError where a directory for results holds something already."""
    if os.path.lexists(path) and not (path.is_dir() and not os.listdir(path)):
        raise RunError(f"{path} exists and is not an empty directory; choose a new one")


def save_network(path: Path, network: nn.Module, summary: Mapping[str, Any], table: str) -> None:
    """Write the three files.

    Raises:
        RunError: the directory is not new, or cannot be written.
    """
    check_new(path)
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    with foreign(RunError, f"{path} cannot be written"):
        path.mkdir(parents=True, exist_ok=True)
    write_atomic(path / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
    write_atomic(path / LAYERS, (table + "\n").encode())
    write_atomic(path / WEIGHTS, save({name: t.clone() for name, t in tensors.items()}))


def restored(model: nn.Module, path: str | Path) -> nn.Module:
    """The specialised network of a directory, made of the model that it was made of.

    model: an instance of the same class, of whatever weights; it stays as it is.

    Raises:
        RunError: the directory holds no network of this model.
    """
    path = Path(path)
    with foreign(RunError, f"{path} holds no specialised network"):
        tensors: dict[str, Tensor] = load_file(path / WEIGHTS)
        choices = json.loads((path / SUMMARY).read_text())["architecture"]
    network = copied(model)
    with foreign(RunError, f"{path} holds a network of another model"):
        for name, candidate in choices.items():
            if candidate == "zero":
                network.set_submodule(name, nn.Identity())
        for name, tensor in tensors.items():
            replace_tensor(network, name, tensor)
        for module in network.modules():
            matched(module)
        network.load_state_dict(tensors)
    return network.eval()
