"""Loaded networks of ONNX Runtime, LiteRT and Core ML, with these and numpy alone.

The runtimes here and the kits for other machines run these same classes: a kit carries this
file along.
"""

from __future__ import annotations

import bisect
import io
import itertools
import json
import os
import statistics
import tempfile
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from proxylessnas.export.lite_names import feed
from proxylessnas.export.onnx_session import feed_of
from proxylessnas.hardware.rounds import TimedNetwork

PROFILED_RUNS = 20
MOST_REORDERING = 0.9  # of a block: it computes something besides
# Operators that only convert, at the beginning and at the end of a block alone.
FLOAT_ENDS = (("ReorderInput",), ("ReorderOutput",))
INTEGER_ENDS = (
    ("ReorderInput", "QuantizeLinear", "Transpose"),
    ("ReorderOutput", "DequantizeLinear", "Transpose"),
)
CONVERSIONS = (*INTEGER_ENDS[0], *INTEGER_ENDS[1], "Reshape", "Squeeze", "Flatten", "Identity")
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
    integers: whether the block's ends convert between float and integers too.
    reordering: what each inference spends on that a network would not.
    """

    def __init__(
        self,
        opened: Callable[[str], Any],
        arrays: Mapping[str, Array],
        *,
        block: bool,
        integers: bool = False,
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
        ends = INTEGER_ENDS if integers else FLOAT_ENDS
        self.reordering = reordering(opened, feed, ends) if block else Reordering(0.0, 0.0)

    def __call__(self) -> None:
        self.session.run_with_iobinding(self.binding)

    def timed(self, repeat: int) -> float:
        return self.reordering.taken_out(super().timed(repeat), repeat)


class Reordering(NamedTuple):
    """seconds: of an inference, as a profile says. share: of all that the profile's nodes took."""

    seconds: float
    share: float

    def taken_out(self, whole: float, repeat: int = 1) -> float:
        """Seconds of so many inferences without it.

        Profiling takes microseconds of each node, so that of a layer that takes no longer the
        nodes take more than the whole: there their shares are believed.
        """
        return whole - min(repeat * self.seconds, self.share * whole)


def reordering(
    opened: Callable[[str], Any], feed: Mapping[str, Any], ends: tuple[Collection[str], ...]
) -> Reordering:
    """What an inference of a block alone spends on reordering its input and output.

    ONNX Runtime keeps activations in blocks of channels within a network, where nobody pays
    for this; of a small block it is a tenth. ends: operators that only convert, at the beginning
    and at the end.
    """
    spent, shares = [], []
    for nodes in profiled(opened, feed):
        first = itertools.takewhile(lambda node: node.operator in ends[0], nodes)
        last = itertools.takewhile(lambda node: node.operator in ends[1], reversed(nodes))
        microseconds = sum(node.microseconds for node in (*first, *last))
        spent.append(microseconds / 1e6)
        shares.append(microseconds / max(sum(node.microseconds for node in nodes), 1e-9))
    return Reordering(statistics.median(spent), min(statistics.fmean(shares), MOST_REORDERING))


class NodeTime(NamedTuple):
    """A node's run in a profile. outputs: the types of what it computes, as `float`, `uint8`."""

    operator: str
    microseconds: float
    outputs: tuple[str, ...]


def profiled(opened: Callable[[str], Any], feed: Mapping[str, Any]) -> list[list[NodeTime]]:
    """Of some inferences their nodes, in order."""
    with tempfile.TemporaryDirectory() as folder:
        session = opened(os.path.join(folder, "profile"))
        for _ in range(PROFILED_RUNS):
            session.run(None, feed)
        with open(session.end_profiling(), encoding="utf-8") as file:
            events = json.load(file)
    ends = [e["ts"] + e["dur"] for e in events if e["name"] == "model_run"]
    inferences: list[list[NodeTime]] = [[] for _ in ends]
    nodes = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    for e in sorted(nodes, key=lambda e: float(e["ts"])):
        types = tuple(kind for output in e["args"].get("output_type_shape", ()) for kind in output)
        node = NodeTime(str(e["args"].get("op_name")), float(e["dur"]), types)
        inferences[bisect.bisect_left(ends, e["ts"])].append(node)
    return inferences[PROFILED_RUNS // 2 :]


def float_share(
    opened: Callable[[str], Any], arrays: Mapping[str, Array]
) -> dict[str, tuple[int, float]]:
    """What computes in float in the optimised graph: operator -> (nodes, share of the time).

    The conversions at the network's ends, which every network has, are left out.
    """
    inferences = profiled(opened, feed_of(opened(""), arrays))
    nodes = [node for inference in inferences for node in inference]
    total = sum(node.microseconds for node in nodes) or 1.0
    floating = [n for n in nodes if n.operator not in CONVERSIONS and "float" in n.outputs]
    return {
        operator: (
            sum(n.operator == operator for n in floating) // len(inferences),
            sum(n.microseconds for n in floating if n.operator == operator) / total,
        )
        for operator in dict.fromkeys(n.operator for n in floating)
    }


class LiteRtNetwork(TimedNetwork):
    """An interpreter with its tensors allocated; arrays: see `feed`."""

    def __init__(self, interpreter: Any, arrays: Mapping[str, Array]) -> None:
        self.interpreter = interpreter
        feed(interpreter, arrays)

    def __call__(self) -> None:
        self.interpreter.invoke()


class CoreMlNetwork(TimedNetwork):
    """A Core ML model on a Mac, on those of its units that the system chooses.

    Its time has the copies of inputs and outputs in it. content: a zipped `.mlpackage`.
    """

    def __init__(self, content: bytes, arrays: Mapping[str, Array]) -> None:
        import coremltools

        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                archive.extractall(folder)
            self.model = coremltools.models.MLModel(os.path.join(folder, "network.mlpackage"))
        self.arrays = dict(arrays)
        self()

    def __call__(self) -> None:
        self.model.predict(self.arrays)
