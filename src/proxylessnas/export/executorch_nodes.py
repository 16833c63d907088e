"""What a .pte file computes in float, read from the file: its own kernels', and XNNPACK's graphs.

The package has readers of its files for its own use alone; another version may have others.
"""

from __future__ import annotations

import importlib.resources
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxylessnas.export.quiet import quietly

CONVERSIONS = ("Convert", "Copy", "StaticReshape", "StaticTranspose")
FLOATS = ("FLOAT", "HALF", "BFLOAT16")


def float_nodes(content: bytes) -> Counter[str] | None:
    """Operators of a .pte's method that compute in float, and how many nodes of each.

    None where this version of the package does not tell.
    """
    with quietly():
        try:
            from executorch.backends.xnnpack import serialization
            from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
            from executorch.exir._serialize._flatbuffer import _flatc_decompile
            from executorch.exir._serialize._program import (
                _extract_delegate_payload,
                deserialize_pte_binary,
            )
        except ImportError:
            return None

        def graph(payload: bytes) -> dict[str, Any]:
            header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
            start, schema = header.flatbuffer_offset, "schema.fbs"
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "graph.bin")
                file.write_bytes(payload[start : start + header.flatbuffer_size])
                source = importlib.resources.files(serialization) / schema
                Path(folder, schema).write_bytes(source.read_bytes())
                _flatc_decompile(folder, f"{folder}/{schema}", str(file), ["--raw-binary"])
                return dict(json.loads(file.with_suffix(".json").read_bytes()))

        plan = next(
            p for p in deserialize_pte_binary(content).program.execution_plan if p.name == "forward"
        )
        nodes = Counter(_of_kernels(plan))
        parts = (_extract_delegate_payload(content, "xnnpack", i) for i in itertools.count())
        for payload in itertools.takewhile(bool, parts):
            nodes.update(_of_graph(graph(payload)))
        return nodes


def _of_kernels(plan: Any) -> Iterator[str]:
    """Nodes that are not XNNPACK's, by the type of what each writes, its last tensor."""
    for instruction in itertools.chain.from_iterable(chain.instructions for chain in plan.chains):
        call = instruction.instr_args
        if not hasattr(call, "op_index"):
            continue
        values = (plan.values[i].val for i in call.args)
        kinds = [value.scalar_type.name for value in values if hasattr(value, "scalar_type")]
        namespace, _, name = plan.operators[call.op_index].name.partition("::")
        if namespace != "quantized_decomposed" and kinds and kinds[-1] in FLOATS:
            yield name


def _of_graph(graph: dict[str, Any]) -> Iterator[str]:
    tensors = (value["xvalue_union"] for value in graph["xvalues"])
    plain = [tensor.get("tensor_value", tensor) for tensor in tensors]
    kinds = {tensor["id_out"]: tensor["datatype"].rpartition("_")[2] for tensor in plain}
    for node in graph["xnodes"]:
        name = node["xnode_union_type"].removeprefix("XNN")
        output = kinds.get(node["xnode_union"].get("output_id"))
        if name not in CONVERSIONS and output in ("fp32", "fp16", "bf16"):
            yield name
