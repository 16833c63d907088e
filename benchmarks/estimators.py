"""What the estimators of α's gradient are worth in equal time, where every answer is known.

    python benchmarks/estimators.py --weights FILE [--table cell|macro] [--data FOLDER/cifar10]
        [--seconds 60] [--quantiles 0.3,0.6] [--seed 0] [--halved] [--json OUT]
        [--estimators two_path+both,two_path,full_path+both,full_path,reinforce,darts,gumbel]

FILE holds the shared weights of the space `cell` (two cells a stage) or `macro`, as
`nas_bench_201.py` and `nas_bench_macro.py` leave them; FOLDER is $PROXYLESSNAS_DATA, or `data`.

From the same shared weights, which stay, every estimator learns α for so many seconds under a
limit of MACs: a quantile of those of all networks. `+both` is `search.reinmax`, the slopes at both
ends of a gate. Nothing is scored: printed are the table's accuracies of the most probable network
within the limit, and of the ten most probable on average, beside what α knows before its first
step (uniform) and the expected best of 20 random networks by their true accuracy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import nas_bench_201
import nas_bench_macro
import numpy as np
import torch
from known import best_of_random
from nas_bench_201 import DATA, listed
from rich.table import Table as Printed
from safetensors.torch import load_file
from shared_weights import BATCH, Halved

from proxylessnas.config import DataSettings, DeriveSettings, MachineSettings, SearchSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Indices
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import Supernet
from proxylessnas.data import load_data
from proxylessnas.hardware.costs import count_costs
from proxylessnas.hardware.trace import trace
from proxylessnas.io.console import Reporter, output
from proxylessnas.selection.propose import propose
from proxylessnas.spaces import build_supernet, macro
from proxylessnas.training.device import make_machine
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import Task

ESTIMATORS = "two_path+both,two_path,full_path+both,full_path,reinforce,darts,gumbel"
SPACES = {"cell": {"cells": 2}, "macro": {}}
TRIED = 3  # steps that tell how many fit into the seconds
PROPOSED = 10


@dataclass(frozen=True, eq=False)
class Known:
    """A space with the accuracy of each of its networks, and their MACs."""

    supernet: Supernet
    costs: Costs
    accuracy: dict[Indices, float]

    @staticmethod
    def load(name: str, weights: Path) -> Known:
        supernet = build_supernet(name, SPACES[name])
        costs = count_costs(supernet, trace(supernet, (torch.zeros(1, 3, 32, 32),)))
        supernet.model.load_state_dict(load_file(weights))
        if name == "cell":
            table = nas_bench_201.Truth.load(DATA / "nas-bench-201" / "cifar10.csv")
            rows = dict(zip(table.codes, table.accuracy.tolist(), strict=True))
            nothing = (nas_bench_201.indices_of("000000"),)  # which no search of networks has
            networks = [*nas_bench_201.as_they_run(), *nothing]
            return Known(supernet, costs, {n: rows[nas_bench_201.code_of(n)] for n in networks})
        file = DATA / "nas-bench-macro" / "nas-bench-macro_cifar10.json"
        rows = nas_bench_macro.Truth.load(file).accuracy
        choices = {code: macro.from_code(code).values() for code in rows}
        return Known(
            *(supernet, costs),
            {tuple(map(macro.CANDIDATES.index, c)): rows[code] for code, c in choices.items()},
        )

    @cached_property
    def macs(self) -> dict[Indices, float]:
        return {network: self.costs.cost_of("macs", network) for network in self.accuracy}

    def limit(self, quantile: float) -> float:
        return float(np.quantile(list(self.macs.values()), quantile))

    def best(self, limit: float) -> tuple[float, float]:
        """Of the networks within the limit the best, and the expected best of 20 random ones."""
        within = [self.accuracy[n] for n, macs in self.macs.items() if macs <= limit]
        return max(within), best_of_random(within)


class Comparison:
    """Searches for α alone, from the same weights."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.known = args, Known.load(args.table, args.weights)
        self.machine = make_machine(MachineSettings(memory_format="channels_last"))
        self.data = load_data(
            str(args.data), DataSettings(augment="crop+flip"), image_size=32, seed=0
        )

    def found(self, estimator: str, limit: float) -> dict[str, Any]:
        """After so many seconds of steps; none of an estimator `uniform`."""
        job, steps = self._search(estimator, limit, TRIED), 0
        if estimator != "uniform":
            start = perf_counter()
            run_loop(job)
            each = (perf_counter() - start) / TRIED
            steps = max(1, round(self.args.seconds / each))
            job = self._search(estimator, limit, steps)
            run_loop(job)
        costs, settings = job.costs, DeriveSettings(top_k=PROPOSED, min_limit_share=0.0)
        space = self.known.supernet
        networks = [n for n, _ in propose(space, costs, settings, learned=True, seed=0)]
        truths = [self.known.accuracy[space.as_it_runs(n)] for n in networks]
        return {
            "estimator": estimator,
            "steps": steps,
            "entropy": job.entropy(),
            "most probable": truths[0],
            "ten": float(np.mean(truths)),
        }

    def _search(self, estimator: str, limit: float, steps: int) -> Search:
        """Of α alone, from probabilities that are all alike."""
        name, _, both = estimator.partition("+")
        torch.nn.init.zeros_(self.known.supernet.alpha)
        settings = SearchSettings(batch_size=BATCH, estimator="two_path", label_smoothing=0.0)
        if name != "uniform":
            settings = replace(settings, estimator=name, reinmax=bool(both))  # type: ignore[arg-type]
        return Search.from_settings(
            settings,
            supernet=self.known.supernet,
            task=Task.classification(),
            train=self._batches("search"),
            valid=self._batches("valid"),
            costs=self.known.costs.limited({"macs": limit}),
            schedule=Schedule.architecture_alone(steps),
            seed=self.args.seed,
            machine=self.machine,
        )

    def _batches(self, part: str) -> Any:
        seed = self.args.seed
        whole = self.data.batches(part, BATCH, augment=True, shuffle=True, seed=seed)  # type: ignore[arg-type]
        return Halved(whole) if self.args.halved else whole


def _rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    args, known = comparison.args, comparison.known
    asked = list(itertools.product(args.quantiles, ["uniform", *args.estimators]))
    with Reporter().bar("estimators") as update:
        for done, (quantile, estimator) in enumerate(asked, start=1):
            limit = known.limit(quantile)
            best, random = known.best(limit)
            row = comparison.found(estimator, limit)
            update(done, len(asked))
            yield {"quantile": quantile, "macs": limit, "best": best, "random": random, **row}


def main() -> None:
    args = _arguments()
    rows = []
    for row in _rows(Comparison(args)):
        rows.append(row)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")
    table = Printed(title=f"{args.table}: accuracy in % by the table, {args.seconds:g} s each")
    for column in ("limit, M", "best", "random of 20", "estimator", "steps", "entropy"):
        table.add_column(column, justify="right")
    for column in ("most probable", f"{PROPOSED} most probable"):
        table.add_column(column, justify="right")
    for r in rows:
        entropy = f"{r['entropy']:.2f}" if math.isfinite(r["entropy"]) else ""
        table.add_row(
            *(f"{r['macs'] / 1e6:.3g}", f"{r['best']:.2f}", f"{r['random']:.2f}"),
            *(r["estimator"], str(r["steps"]), entropy),
            *(f"{r['most probable']:.2f}", f"{r['ten']:.2f}"),
        )
    output().print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--weights", type=Path, required=True, help="shared weights, trained before")
    add("--table", choices=list(SPACES), default="cell")
    add("--data", type=Path, default=DATA / "cifar10")
    add("--seconds", type=float, default=60.0, help="of steps, each")
    add("--quantiles", type=partial(listed, float), default=[0.3, 0.6])
    add("--estimators", type=partial(listed, str), default=ESTIMATORS.split(","))
    add("--seed", type=int, default=0)
    add("--halved", action="store_true", help="16x16 images")
    add("--json", type=Path, help="file for the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
