"""The blocks of an ONNX file, by the names that its exporter gave to the nodes of a module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WEIGHTED = ("Conv", "Gemm", "MatMul")


def nodes_by_block(graph: Any) -> dict[str, list[Any]]:
    """`/blocks/blocks.3/branch/branch.0/Conv` is a node of the block `blocks.3`.

    Modules without a convolution, a linear layer or a product belong to the block before them.
    """
    nodes: dict[str, list[Any]] = {}
    for node in graph.node:
        *scopes, name = node.name.strip("/").split("/")
        block = scopes[min(1, len(scopes) - 1)] if scopes else name
        nodes.setdefault(block, []).append(node)
    blocks: dict[str, list[Any]] = {}
    for block, of_block in nodes.items():
        if any(node.op_type in WEIGHTED for node in of_block):
            blocks[block] = of_block
        elif blocks:
            blocks[next(reversed(blocks))].extend(of_block)
    return blocks


def block_files(path: Path, folder: Path) -> dict[str, Path]:
    """Every block of a file as a file of its own in a folder, by its name.

    Of a file whose nodes are not named by modules there are none.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph, files = model.graph, dict[str, Path]()
    constant = {w.name for w in graph.initializer} | {""}
    for node in graph.node:  # what is made of constants alone is one, as the exporter's Identity
        constant |= set(node.output) if set(node.input) <= constant else set()
    extractor = onnx.utils.Extractor(model)
    for block, nodes in nodes_by_block(graph).items():
        if not any("/" in node.name.strip("/") for node in nodes):
            continue
        made = {output for node in nodes for output in node.output}
        others = [node for node in graph.node if not made & set(node.output)]
        read_elsewhere = {name for node in others for name in node.input}
        read_elsewhere |= {value.name for value in graph.output}
        inputs = dict.fromkeys(x for n in nodes for x in n.input if x not in made | constant)
        outputs = [name for node in nodes for name in node.output if name in read_elsewhere]
        files[block] = folder / f"{len(files)}.onnx"
        onnx.save(extractor.extract_model(list(inputs), outputs), files[block])
    return files
