"""Figures of untrained networks, kept; and the networks that promise most by them.

A predictor of the figures smooths away what the best networks differ by, and a figure takes less
time than a score by shared weights. So a predictor says only which third of the networks is worth
to be looked at, and their figures are all computed (docs/log.md).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from proxylessnas.core.decode import Indices
from proxylessnas.io.console import Reporter, output
from proxylessnas.selection.predictor import Array, Predictor
from proxylessnas.selection.zero_cost import BATCH, DRAWS, ZeroCost

REFERENCE = 300  # random networks, from which the progressivity of all others is predicted
LEVELS = 10  # of MACs
SHARE = 3  # one network of so many
OFTEN = 50  # networks, after which what is known is written


class Figures:
    """The zero-cost figures of networks, each computed once and kept in a file.

    A file of figures that were made otherwise is not believed, and written anew.
    """

    def __init__(self, zero_cost: ZeroCost, file: Path) -> None:
        self.zero_cost, self.file = zero_cost, file
        self.made = {"examples": BATCH, "draws": DRAWS, "shape": list(zero_cost.example.shape)}
        kept = json.loads(file.read_text()) if file.exists() else {}
        rows = kept["figures"] if kept.get("made") == self.made else {}
        self.known = {tuple(map(int, key.split())): np.array(row) for key, row in rows.items()}

    def __call__(self, network: Indices) -> Array:
        if network not in self.known:
            self.known[network] = self.zero_cost(network)
        return self.known[network]

    def compute(self, networks: Sequence[Indices], title: str) -> None:
        """Those of all these networks, kept every now and then."""
        with Reporter().bar(title) as update:
            for done, network in enumerate(networks, start=1):
                new = network not in self.known
                self(network)
                if new and len(self.known) % OFTEN == 0:
                    self.keep()
                update(done, len(networks))
        self.keep()

    def keep(self) -> None:
        rows = {" ".join(map(str, n)): row.tolist() for n, row in self.known.items()}
        part = self.file.with_suffix(".tmp")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({"made": self.made, "figures": rows}))
            part.replace(self.file)
        except OSError as error:  # beside weights that somebody else keeps
            output().print(f"figures are not kept in {self.file}: {error.strerror}")


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
