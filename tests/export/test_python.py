"""`network.py`: torch alone, readable, the same outputs in an environment without us."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from proxylessnas import zoo
from proxylessnas.architecture import Architecture, InputInfo
from proxylessnas.errors import ExportError, RunError
from proxylessnas.export.python import python_source, to_python
from proxylessnas.spaces import build, build_supernet

SMALL: dict[str, dict[str, Any]] = {
    "mobile": {"input_shape": [3, 32, 32], "widths": [16, 24], "depths": [2, 2], "classes": 7},
    "macro": {"widths": [16, 24], "depths": [2, 1], "head": 40, "dropout": 0.2},
    "tree": {
        "blocks": [2, 1],
        "growth": 14,
        "path_drop": [0.1, 0.2, 0.3, 0.2],
        "cell_drop": [0.0, 0.1, 0.2],
        "dropout": 0.1,
    },
}
# Runs where only torch and safetensors can be imported beside the standard library.
STRANGER = """
import importlib.abc, json, sys
class Only(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"proxylessnas", "torchvision", "pydantic", "onnx"}:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Only())
import runpy
import torch
from safetensors.torch import load_file
torch.set_num_threads(1)
errors = {}
for folder in sys.argv[1:]:
    network = runpy.run_path(folder + "/network.py")
    example = load_file(folder + "/example.safetensors")
    with torch.no_grad():
        errors[folder] = (network["load"]()(example["x"]) - example["y"]).abs().max().item()
    network["Network"]().train()(example["x"]).sum().backward()
assert "proxylessnas" not in sys.modules
print(json.dumps(errors))
"""


def trained_a_little(network: nn.Module, shape: list[int]) -> nn.Module:
    """BN statistics and weights unlike the fresh ones."""
    for _ in range(2):
        network.train()(torch.randn(4, *shape))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def write_network(space: str, seed: int, folder: Path) -> None:
    """A network of the space as Python, with an example of its inputs and outputs."""
    supernet = build_supernet(space, SMALL[space])
    architecture = supernet.sample(torch.Generator().manual_seed(seed))
    shape = supernet.settings["input_shape"]
    network = trained_a_little(supernet.derive(architecture), shape)
    assert to_python(architecture, network, folder).absolute <= 1e-5
    assert {path.name for path in folder.iterdir()} >= {"network.py", "weights.safetensors"}
    assert not list(folder.glob("*.part"))
    x = torch.randn(3, *shape)
    with torch.no_grad():
        save_file({"x": x, "y": network(x)}, folder / "example.safetensors")


def test_a_stranger_gets_the_same_outputs(tmp_path: Path) -> None:
    """Two networks of every space, in one process that has torch and safetensors alone."""
    folders = [tmp_path / f"{space}{seed}" for space in SMALL for seed in (0, 1)]
    for folder in folders:
        write_network(folder.name[:-1], int(folder.name[-1]), folder)
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, *map(str, folders)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert errors.keys() == set(map(str, folders))
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.parametrize("name", list(zoo.NETWORKS))
def test_the_zoo_reads_well(name: str) -> None:
    """One line a block, nothing of ours, and it builds with the same keys and shapes."""
    architecture = zoo.load(name)
    with torch.device("meta"):
        network = build(architecture)
        source = python_source(architecture, network)
        imports = {
            (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        ours = imports - {"__future__", "collections", "functools", "pathlib"}
        assert ours == {"torch", "safetensors"}
        scope: dict[str, Any] = {"__name__": "network", "__file__": "network.py"}
        exec(compile(source, "network.py", "exec"), scope)
        written = scope["Network"]().state_dict()
    lines = source.partition("self.blocks = nn.Sequential(\n")[2].partition("\n        )\n")[0]
    blocks = network.get_submodule("blocks")
    assert len(lines.splitlines()) == len(list(blocks.children()))
    expected = {key: tensor.shape for key, tensor in network.state_dict().items()}
    assert {key: tensor.shape for key, tensor in written.items()} == expected


def test_class_names_are_data_not_code(tmp_path: Path) -> None:
    supernet = build_supernet("macro", SMALL["macro"])
    evil = ('"""\nimport os\n', "'); raise SystemExit(", "\\", "\u2028", "naïve")
    info = InputInfo(shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.2,) * 3, classes=evil)
    architecture = supernet.most_probable().with_input(info)
    source = python_source(architecture, supernet.derive(architecture))
    scope: dict[str, Any] = {"__name__": "network", "__file__": "network.py"}
    exec(compile(source, "network.py", "exec"), scope)
    assert scope["CLASSES"] == evil and scope["STD"] == info.std


def test_what_cannot_be_written(tmp_path: Path) -> None:
    custom = Architecture(space="my_model:Net", choices={})
    with pytest.raises(ExportError, match="use the format onnx or torch"):
        to_python(custom, nn.Linear(1, 1), tmp_path)
    architecture = zoo.load("mobilenet_v2")
    with pytest.raises(ExportError, match="a Linear cannot be written"):
        to_python(architecture, nn.Linear(1, 1), tmp_path)
    supernet = build_supernet("mobile", SMALL["mobile"])
    with pytest.raises(ExportError, match="a MixedOp cannot be written"):
        to_python(supernet.most_probable(), supernet.model, tmp_path)
    (tmp_path / "file").write_text("")
    network = supernet.derive(supernet.most_probable())
    with pytest.raises(RunError, match="cannot write"):
        to_python(supernet.most_probable(), network, tmp_path / "file")
