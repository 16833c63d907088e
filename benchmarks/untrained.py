"""Figures of untrained networks, kept; and the networks that promise most by them.

A predictor of the figures smooths away what the best networks differ by, and a figure takes less
time than a score by shared weights. So a predictor says only which third of the networks is worth
to be looked at, and their figures are all computed (docs/log.md).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from proxylessnas.core.decode import Indices
from proxylessnas.errors import RunError
from proxylessnas.io.console import Reporter, output
from proxylessnas.io.files import write_atomic
from proxylessnas.selection.predictor import Array, Predictor
from proxylessnas.selection.zero_cost import BATCH, DRAWS, ZeroCost

REFERENCE = 300  # random networks, from which the progressivity of all others is predicted
LEVELS = 10  # of MACs
SHARE = 3  # one network of so many
OFTEN = 50  # networks, after which what is known is written


class Figures:
    """The zero-cost figures of networks, each computed once and kept in a file.

    A file that cannot be read, or of figures that were made otherwise, is written anew.
    """

    def __init__(self, zero_cost: ZeroCost, file: Path) -> None:
        self.zero_cost, self.file = zero_cost, file
        self.made = {
            "noise": "1/f",
            "examples": BATCH,
            "draws": DRAWS,
            "shape": list(zero_cost.example.shape),
            "seed": zero_cost.seed,
            "blocks": len(zero_cost.blocks),
        }
        self.known = self._read()
        self.written = len(self.known)

    def _read(self) -> dict[Indices, Array]:
        try:
            kept = json.loads(self.file.read_text())
        except (OSError, ValueError):
            return {}
        rows = kept["figures"] if isinstance(kept, dict) and kept.get("made") == self.made else {}
        return {tuple(map(int, key.split())): np.array(row) for key, row in rows.items()}

    def __call__(self, network: Indices) -> Array:
        if network not in self.known:
            self.known[network] = self.zero_cost(network)
        return self.known[network]

    def compute(self, networks: Sequence[Indices], title: str) -> None:
        """Those of all these networks, kept every now and then."""
        self.known |= self._read()  # a search beside this one may have been faster
        with Reporter().bar(title) as update:
            for done, network in enumerate(networks, start=1):
                self(network)
                if len(self.known) >= self.written + OFTEN:
                    self._write()
                update(done, len(networks))
        if len(self.known) > self.written:
            self._write()

    def _write(self) -> None:
        # Searches with other seeds or tables may be computing the same figures at the same time.
        rows = {" ".join(map(str, n)): r.tolist() for n, r in (self._read() | self.known).items()}
        try:
            write_atomic(self.file, json.dumps({"made": self.made, "figures": rows}).encode())
            self.written = len(self.known)
        except RunError as error:  # beside weights that somebody else keeps
            output().print(f"figures are not kept: {error}")
            self.written = sys.maxsize


def promising(
    names: Sequence[Sequence[str]], networks: Sequence[Indices], figures: Figures
) -> list[Indices]:
    """Of the networks of about the same MACs the third of the highest progressivity, as predicted.

    names: of the candidates of every choice. networks: those that there are. Whatever the limits
    are, the best within them are of several levels of MACs, so every level keeps its share.
    """
    drawn = np.random.default_rng(0).permutation(len(networks))[:REFERENCE]
    reference = [networks[i] for i in drawn.tolist()]
    figures.compute(reference, "figures of random networks")
    values = np.array([figures(network)[0] for network in reference])
    finite = np.isfinite(values)
    predictor = Predictor.fit(names, np.array(reference)[finite].tolist(), values[finite].tolist())
    predicted, _ = predictor(networks)
    macs = np.array([figures.zero_cost.macs(network) for network in networks])
    levels = np.array_split(np.argsort(macs, kind="stable"), LEVELS)
    best = [level[np.argsort(-predicted[level], kind="stable")] for level in levels]
    return [networks[i] for level in best for i in level[: -(-len(level) // SHARE)].tolist()]
