"""Loaded networks of ONNX Runtime and LiteRT, with these and numpy alone.

The runtimes here and the kits for other machines run these same classes: a kit carries this
file along.
"""

from __future__ import annotations

import bisect
import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from proxylessnas.export.lite_names import lite_name
from proxylessnas.export.onnx_session import feed_of
from proxylessnas.hardware.rounds import TimedNetwork

PROFILED_RUNS = 20
Array = np.ndarray[Any, Any]


def stand_in(shape: Sequence[int], dtype: str) -> np.ndarray[Any, Any]:
    """An input: normal noise, or zeros where numbers are no measurements."""
    if np.issubdtype(np.dtype(dtype), np.floating):
        return np.random.default_rng(0).standard_normal(shape).astype(dtype)
    return np.zeros(shape, dtype)


class OnnxNetwork(TimedNetwork):
    """A session whose inputs and outputs are bound to memory allocated once.

    opened: makes a session; with a prefix, one that writes a profile to files of this prefix.
    arrays: inputs by name, also such as the graph does not read.
    block: a part of a network, whose reorders are taken out of its time.
    reordering_s: seconds of each inference that a network would not spend.
    """

    def __init__(
        self, opened: Callable[[str], Any], arrays: Mapping[str, Array], *, block: bool
    ) -> None:
        from onnxruntime import OrtValue

        self.session = opened("")
        self.binding = self.session.io_binding()
        feed = feed_of(self.session, arrays)
        for name, array in feed.items():
            value = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
            self.binding.bind_ortvalue_input(name, value)
        outputs = zip(self.session.get_outputs(), self.session.run(None, feed), strict=True)
        for node, array in outputs:
            self.binding.bind_ortvalue_output(node.name, OrtValue.ortvalue_from_numpy(array))
        self.reordering_s = reordering_s(opened, feed) if block else 0.0

    def __call__(self) -> None:
        self.session.run_with_iobinding(self.binding)

    def timed(self, repeat: int) -> float:
        whole = super().timed(repeat)
        return max(whole - repeat * self.reordering_s, 0.1 * whole)


def reordering_s(opened: Callable[[str], Any], feed: Mapping[str, Any]) -> float:
    """Seconds of an inference that a block alone spends on reordering its input and output.

    ONNX Runtime keeps activations in blocks of channels within a network, where nobody pays
    for this; of a small block it is a tenth.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = opened(os.path.join(folder, "profile"))
        for _ in range(PROFILED_RUNS):
            session.run(None, feed)
        with open(session.end_profiling(), encoding="utf-8") as file:
            inferences = _node_times(json.load(file))
    spent = []
    for nodes in inferences[PROFILED_RUNS // 2 :]:
        first = itertools.takewhile(lambda node: node[0] == "ReorderInput", nodes)
        last = itertools.takewhile(lambda node: node[0] == "ReorderOutput", reversed(nodes))
        spent.append(sum(us for _, us in (*first, *last)) / 1e6)
    return statistics.median(spent)


def _node_times(events: list[dict[str, Any]]) -> list[list[tuple[str, float]]]:
    """Of every inference of a profile, its nodes in order: the operator and microseconds."""
    ends = [e["ts"] + e["dur"] for e in events if e["name"] == "model_run"]
    inferences: list[list[tuple[str, float]]] = [[] for _ in ends]
    nodes = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    for e in sorted(nodes, key=lambda e: float(e["ts"])):
        operator = str(e["args"].get("op_name"))
        inferences[bisect.bisect_left(ends, e["ts"])].append((operator, float(e["dur"])))
    return inferences


class LiteRtNetwork(TimedNetwork):
    """An interpreter with its tensors allocated.

    arrays: inputs by name, also such as the file does not read, see `lite_name`.
    """

    def __init__(self, interpreter: Any, arrays: Mapping[str, Array]) -> None:
        self.interpreter = interpreter
        for tensor in interpreter.get_input_details():
            array = arrays[lite_name(tensor)].astype(tensor["dtype"], copy=False)
            interpreter.set_tensor(tensor["index"], array)

    def __call__(self) -> None:
        self.interpreter.invoke()
