"""ONNX Runtime's profile of every node, by the standard library: a kit carries this file along."""

from __future__ import annotations

import bisect
import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

RUNS = 20


def node_times(session: Any) -> list[list[tuple[str, str, float]]]:
    """Of every inference of a session that profiles: its nodes as (name, operator, ms), in order.

    Ends the profile.
    """
    with open(session.end_profiling(), encoding="utf-8") as file:
        events = json.load(file)
    ends = [e["ts"] + e["dur"] for e in events if e["name"] == "model_run"]
    runs: list[list[tuple[str, str, float]]] = [[] for _ in ends]
    nodes = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    for e in sorted(nodes, key=lambda e: float(e["ts"])):
        name = str(e["name"])[: -len("_kernel_time")]
        run = runs[bisect.bisect_left(ends, e["ts"])]
        run.append((name, str(e["args"].get("op_name")), e["dur"] / 1e3))
    return runs


def reordering_s(profiled: Callable[[str], Any], feed: Mapping[str, Any]) -> float:
    """Seconds of an inference that a block alone spends on reordering its input and output.

    ONNX Runtime keeps activations in blocks of channels within a network, where nobody pays
    for this; of a small block it is a tenth. profiled: makes a session that writes its
    profile to files with the given prefix.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = profiled(os.path.join(folder, "profile"))
        for _ in range(RUNS):
            session.run(None, feed)
        runs = node_times(session)
    spent = []
    for run in runs[RUNS // 2 :]:
        ends = [
            *itertools.takewhile(lambda node: node[1] == "ReorderInput", run),
            *itertools.takewhile(lambda node: node[1] == "ReorderOutput", reversed(run)),
        ]
        spent.append(sum(ms for _, _, ms in ends) / 1e3)
    return statistics.median(spent)
