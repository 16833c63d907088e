"""A network as plain Python: one readable `network.py` that needs torch alone, and weights.

The layers' source is taken from the spaces as it stands, and the network is written out
block by block, from the module itself. What was written is then run and compared.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from proxylessnas.architecture import Architecture
from proxylessnas.core.mixed import Residual
from proxylessnas.errors import ExportError
from proxylessnas.export.compare import Difference, difference, eager_outputs
from proxylessnas.io.files import write_atomic
from proxylessnas.spaces import SPACES
from proxylessnas.spaces.blocks import ConvBN, Head, MBConv, Network, SamePadding
from proxylessnas.spaces.tree_layers import (
    EPS,
    Cell,
    Depthwise,
    Node,
    PreConv,
    TreeBlock,
    TreeHead,
    dropped,
    edge_layer,
)

CODE, WEIGHTS = "network.py", "weights.safetensors"
TOLERANCE = 1e-5  # of the largest output


def to_python(architecture: Architecture, module: nn.Module, directory: str | Path) -> Difference:
    """Write `network.py` and `weights.safetensors`; how far what they compute is from eager.

    architecture: says the input. module: its plain network, from which all else is taken.

    Raises:
        ExportError: the network is of a model of your own, holds layers that no space has,
            or the files compute something else.
        RunError: the files cannot be written.
    """
    if architecture.space not in SPACES:
        raise ExportError(
            f"the network of {architecture.space} cannot be written as Python: only your own "
            "code has its layers; use the format onnx or torch"
        )
    source = python_source(architecture, module)
    state = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    folder = Path(directory)
    write_atomic(folder / WEIGHTS, save(state))
    write_atomic(folder / CODE, source.encode())
    return _compare(architecture, module, folder / CODE)


def python_source(architecture: Architecture, module: nn.Module) -> str:
    """The text of `network.py`.

    Raises:
        ExportError: the module holds a layer that no space has.
    """
    if not isinstance(module, Network):
        raise ExportError(f"a {type(module).__name__} cannot be written as Python: use onnx, torch")
    tree = isinstance(module.head, TreeHead)
    parts = [
        _preamble(architecture, tree),
        _tree_layers(module) if tree else _layers(module),
        _network(module),
        LOAD,
    ]
    return "\n\n\n".join(part.strip() for part in parts) + "\n"


def _compare(architecture: Architecture, module: nn.Module, path: Path) -> Difference:
    scope: dict[str, Any] = {"__name__": "network", "__file__": str(path)}
    exec(compile(path.read_text("utf-8"), str(path), "exec"), scope)
    shape = architecture.settings["input_shape"]
    inputs = (torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)),)
    written = eager_outputs(scope["load"](), inputs)
    return difference(eager_outputs(module, inputs), written, tolerance=TOLERANCE)


# --- the text ---


def _preamble(architecture: Architecture, tree: bool) -> str:
    shape = architecture.settings["input_shape"]
    info = architecture.input
    facts = [f"INPUT_SHAPE = {tuple(shape)!r}  # channels, height, width"]
    if info and info.mean:
        facts.append(f"MEAN, STD = {info.mean!r}, {info.std!r}  # of pixels scaled to [0, 1]")
    if info and info.classes:
        facts.append(f"CLASSES = {info.classes!a}  # what the outputs mean, in order")
    of_trees = ["from collections.abc import Iterator, Sequence", "from functools import reduce"]
    title = f"A network of the space {architecture.space}, written by proxylessnas; yours to edit."
    return "\n".join(
        [
            f'"""{title}',
            "",
            "    from network import load",
            f"    network = load()  # with {WEIGHTS} beside this file; needs safetensors",
            '"""',
            "",
            "from __future__ import annotations",
            "",
            *(of_trees if tree else []),
            "from pathlib import Path",
            "",
            "import torch",
            "from torch import Tensor, nn",
            "from torch.nn import functional",
            "",
            *facts,
        ]
    )


def _source(*objects: Callable[..., Any]) -> str:
    return "\n\n\n".join(inspect.getsource(o).strip() for o in objects)


RESIDUAL = '''
class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)
'''
LOAD = f'''
def load(weights: str | Path = Path(__file__).with_name("{WEIGHTS}")) -> Network:
    """The network with its weights, in eval mode."""
    from safetensors.torch import load_file

    network = Network()
    network.load_state_dict(load_file(weights))
    return network.eval()


if __name__ == "__main__":
    print(load()(torch.zeros(1, *INPUT_SHAPE)).shape)
'''


def _layers(module: Network) -> str:
    shortcuts = any(isinstance(block, Residual) for block in module.blocks)
    residual = [RESIDUAL.strip()] if shortcuts else []
    return "\n\n\n".join([_source(SamePadding, ConvBN, MBConv), *residual, _source(Head)])


def _network(module: Network) -> str:
    blocks = "\n".join(
        f"            {_call(block)},{'  # left out' if isinstance(block, nn.Identity) else ''}"
        for block in module.blocks
    )
    return f'''
class Network(nn.Module):
    """[batch, channels, height, width] to [batch, classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = {_call(module.stem)}
        self.blocks = nn.Sequential(
{blocks}
        )
        self.head = {_call(module.head)}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))
'''


def _call(module: nn.Module) -> str:
    """The expression that builds this module."""
    if isinstance(module, nn.Identity):
        return "nn.Identity()"
    if isinstance(module, Residual):
        return f"Residual({_call(module.branch)})"
    if isinstance(module, ConvBN):
        conv = _convolution(module)
        words = [conv.in_channels, conv.out_channels, conv.kernel_size[0]]
        words += [conv.stride[0]] if conv.stride[0] > 1 else []
        return _text("ConvBN", words, _style(module))
    if isinstance(module, MBConv):
        channels, project = _convolution(module).in_channels, module.project.conv
        ratio, rest = divmod(project.in_channels, channels)
        options: dict[str, object] = {"kernel": module.kernel}
        if module.expand is None or (not rest and module.expansion > 1):
            options["expansion"] = ratio
        else:
            options["inner"] = project.in_channels
        stride = module.depthwise.conv.stride[0]
        options |= {"stride": stride} if stride > 1 else {}
        shape = channels, project.out_channels
        return _text("MBConv", shape, options | _style(module.depthwise))
    if isinstance(module, Head | TreeHead):
        first, drop, linear = module[0], module[-2], module[-1]
        assert isinstance(linear, nn.Linear) and isinstance(drop, nn.Dropout)
        words = [linear.in_features, linear.out_features]
        options = {"dropout": drop.p} if drop.p else {}
        if isinstance(first, ConvBN):
            return _text("Head", [first.conv.in_channels, *words], options | _style(first))
        return _text("TreeHead", words, options)
    if isinstance(module, TreeBlock):
        return _tree_call(module)
    raise ExportError(
        f"a network with a {type(module).__name__} cannot be written as Python: use onnx, torch"
    )


def _text(name: str, words: object, options: dict[str, object]) -> str:
    named = [f"{key}={value}" for key, value in options.items()]
    return f"{name}({', '.join([*map(str, words), *named])})"  # type: ignore[call-overload]


def _convolution(module: nn.Module) -> nn.Conv2d:
    """The first convolution inside."""
    return next(m for m in module.modules() if isinstance(m, nn.Conv2d))


def _style(layer: ConvBN) -> dict[str, object]:
    """Activation, BN epsilon and padding of a ConvBN, where they are not its defaults."""
    activation = layer.activation
    style: dict[str, object] = {}
    if activation is not nn.ReLU6:
        style["activation"] = f"nn.{activation.__name__}" if activation else None
    style |= {} if layer.norm.eps == 1e-3 else {"eps": layer.norm.eps}
    return style | ({"same": True} if layer.same else {})


# --- trees ---

GROW = '''
def cell(channels: int, *branches: str, stride: int = 1) -> Cell:
    """A cell from the layers of each branch: a node's edges, then those of the nodes below."""
    nodes = [node(channels, iter(edges.split())) for edges in branches]
    return Cell(channels, nodes, stride=stride, groups=GROUPS, drops=PATH_DROP[:2])


def node(channels: int, edges: Iterator[str], level: int = 2) -> Node:
    here = [edge_layer(next(edges), channels) for _ in range(BRANCHING)]
    below = [node(channels, edges, level + 1) for _ in here] if level <= DEPTH else []
    return Node(here, below, drop=PATH_DROP[level])
'''


def _tree_layers(module: Network) -> str:
    block = module.blocks[0]
    assert isinstance(block, TreeBlock) and isinstance(block.cell, Cell)
    node, rates = block.cell.branches[0], list(block.cell.drops)
    assert isinstance(node, Node)
    branching = len(node.edges)
    while True:
        rates.append(node.drop)
        if not len(node.nodes):
            break
        node = node.nodes[0]
        assert isinstance(node, Node)
    constants = [
        f"EPS = {EPS}  # of every batch normalisation",
        f"BRANCHING, DEPTH = {branching}, {len(rates) - 2}  # edges below a node, levels of edges",
        f"GROUPS = {block.cell.conv.groups}  # of a cell's convolution",
        f"PATH_DROP = {tuple(rates)}  # rates of leaving out a path: cell, branch, levels of edges",
    ]
    layers = [_source(SamePadding, ConvBN, PreConv, Depthwise, edge_layer, dropped)]
    layers.append(_source(Node, Cell, TreeBlock, TreeHead))
    return "\n\n\n".join(["\n".join(constants), *layers]) + "\n\n" + GROW


def _tree_call(block: TreeBlock) -> str:
    assert isinstance(block.cell, Cell)
    conv, inner = block.cell.conv.conv, block.in_bottle.conv.out_channels
    stride: dict[str, object] = {"stride": conv.stride[0]} if conv.stride[0] > 1 else {}
    branches = [f'"{" ".join(_edges(branch))}"' for branch in block.cell.branches]
    cell = _text("cell", [inner, *branches], stride)
    shape = [block.in_bottle.conv.in_channels, inner, block.out_bottle.conv.out_channels]
    drop: dict[str, object] = {"drop": block.drop} if block.drop else {}
    return _text("TreeBlock", [*shape, cell], stride | drop)


def _edges(node: nn.Module) -> Iterator[str]:
    assert isinstance(node, Node)
    for edge in node.edges:
        yield _edge_name(edge)
    for below in node.nodes:
        yield from _edges(below)


def _edge_name(edge: nn.Module) -> str:
    if isinstance(edge, Depthwise):
        conv = edge.depth_conv
        return f"{'dil' if conv.dilation[0] > 1 else 'dw'}{conv.kernel_size[0]}"
    for kind, name in ((nn.Identity, "identity"), (nn.AvgPool2d, "avg3"), (nn.MaxPool2d, "max3")):
        if isinstance(edge, kind):
            return name
    raise ExportError(f"an edge {type(edge).__name__} cannot be written as Python: use onnx, torch")
