"""A model as a graph of ATen operations, its weights as nodes with the names they have in it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from proxylessnas.data.arguments import arguments_of
from proxylessnas.errors import SupernetError, one_line
from proxylessnas.export.quiet import exporting
from proxylessnas.training.freezing import evaluating

CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}  # and their spatial dimensions
TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}
LAYERS = {*CONVOLUTIONS, *TRANSPOSED, "linear"}


class Graph:
    """The operations of one forward pass in evaluation mode, by `torch.export`.

    inputs: the arguments of the pass, as `example_inputs`.

    Raises:
        SupernetError: torch cannot export the model; the message holds what it says.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        args, kwargs = arguments_of(inputs)
        try:
            with evaluating(model), exporting(model, "as a graph"):
                program = torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            raise SupernetError(
                f"{type(model).__name__} cannot be read as a graph of operations: "
                f"{one_line(error.__cause__ or error, 400)}; take what cannot be exported (a "
                "custom autograd function, a branch on values, numpy) out of its forward, or give "
                "the part that can be exported as the model"
            ) from error
        signature = program.graph_signature
        self.model = model
        self.nodes = list(program.graph.nodes)
        self.order = {node: k for k, node in enumerate(self.nodes)}
        self._weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        names = Counter(
            id(p) for _, p in model.named_parameters(remove_duplicate=False)
        )  # a weight that two modules share is two names of one parameter
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._shared = {name for name, p in parameters.items() if names[id(p)] > 1}

    def weight(self, node: Any) -> str | None:
        """The name of the model's tensor that a node is; None where it is computed, or no node."""
        return self._weights.get(node.name) if isinstance(node, Node) else None

    def is_shared(self, node: Node) -> bool:
        """Whether a tensor of the model has several names, or uses of several kinds.

        A module that is called several times uses its tensors in one way.
        """
        uses = {(x.target, x.args.index(node) if node in x.args else None) for x in node.users}
        return len(uses) > 1 or self.weight(node) in self._shared

    def module(self, node: Node) -> str:
        """The path of the module whose code runs an operation."""
        stack = list(node.meta.get("nn_module_stack", {}).values())
        return str(stack[-1][0]) if stack else ""

    def is_gate(self, layer: Node) -> bool:
        """Whether what a layer makes is multiplied with what it was made of."""
        return self._joins(layer) == "mul"

    def is_branch(self, path: str) -> bool:
        """Whether a shortcut is beside a module: what it makes is added to what it was made of."""
        inside = [n for n in self.nodes if f"{self.module(n)}.".startswith(f"{path}.")]
        ends = [n for n in inside if not all(user in inside for user in n.users)]
        return any(self._joins(end) == "add" for end in ends)

    def _joins(self, node: Node) -> str:
        """The operation that joins a tensor with one that it was made of, if that is the next."""
        first = node
        while len(node.users) == 1:
            source, node = node, next(iter(node.users))
            others = [x for x in node.all_input_nodes if x is not source and not self.weight(x)]
            if others:
                return operation(node) if others[0] in _before(first) else ""
        return ""

    @property
    def layers(self) -> list[Node]:
        """The convolutions and linear layers, in the order in which they run."""
        return [node for node in self.nodes if operation(node) in LAYERS]


def _before(node: Node) -> set[Node]:
    """All that a node is computed from."""
    before: set[Node] = set()
    waiting = [node]
    while waiting:
        fresh = [x for x in waiting.pop().all_input_nodes if x not in before]
        before.update(fresh)
        waiting += fresh
    return before


def operation(node: Node) -> str:
    """The name of a node's operation, as `conv2d`; of an in-place one without its underscore."""
    schema = getattr(node.target, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else str(node.target)
    return name.removesuffix("_") if node.op == "call_function" else node.op


def is_pointwise(node: Node) -> bool:
    """Whether an output is a function of the numbers at its own place alone."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """An argument of an operation, by position or by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def shape(node: Node) -> tuple[int, ...]:
    """The shape of what a node computes; () where that is no tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def channel_axis(layer: Node) -> int:
    """The axis of a layer's output that counts its output channels."""
    return len(shape(layer)) - 1 - (CONVOLUTIONS | TRANSPOSED).get(operation(layer), 0)


def weight_axes(layer: Node) -> tuple[int, int]:
    """The axes of a layer's weight that count its outputs and its inputs; of groups, the first."""
    return (1, 0) if operation(layer) in TRANSPOSED and groups(layer) == 1 else (0, 1)


def groups(layer: Node) -> int:
    """The groups of a convolution; 1 for a linear layer."""
    if operation(layer) == "linear":
        return 1
    return int(argument(layer, 7 if operation(layer) in TRANSPOSED else 6, "groups", 1))
