"""How many whole networks must be measured before others are predicted, and does it know?

    python benchmarks/predictor.py [--table FOLDER/nas-bench-201/cifar10.csv] [--devices a,b]
        [--measured 3,10,30,100] [--seeds 5]

For each device of a table as `nas_bench_201.py` takes it: so many random networks are taken as
measured, and the latency of 2,000 others is predicted, by a sum over the candidates and by a sum
with pairs where those are likelier (`selection/predictor.py`). Printed: the mean error in %, and of
the second how often the truth lies within two of the predicted standard deviations, and which
share of the networks it is sure enough of (two deviations within 10 %) not to have them measured.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from nas_bench_201 import DATA, NAMES, Truth, as_they_run, code_of, listed
from rich.table import Table as Printed

from proxylessnas.io.console import output
from proxylessnas.selection.predictor import Predictor

OTHERS = 2000  # networks that are predicted
SURE = 0.1  # two standard deviations, as a share of the latency


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--table", type=Path, default=DATA / "nas-bench-201" / "cifar10.csv")
    add("--devices", type=partial(listed, str), default=[])
    add("--measured", type=partial(listed, int), default=[3, 10, 30, 100])
    add("--seeds", type=int, default=5)
    args = parser.parse_args()
    truth, networks = Truth.load(args.table), np.array(list(as_they_run()), np.int64)
    rows = [truth.row[code_of(network)] for network in networks.tolist()]
    table = Printed(title="Error in % of predicted latencies, by the networks measured")
    for column in ("device", "measured", "sum", "with pairs", "within two deviations", "sure"):
        table.add_column(column, justify="right")
    for device in args.devices or truth.latency:
        ms = truth.latency[device][rows]
        for count in args.measured:
            figures = [_figures(networks, ms, count, seed) for seed in range(args.seeds)]
            mean = 100 * np.mean(figures, 0)
            table.add_row(device, str(count), *(f"{x:.1f}" for x in mean[:2]), *_shares(mean[2:]))
    output().print(table)


def _figures(networks: np.ndarray, ms: np.ndarray, count: int, seed: int) -> list[float]:
    """Errors of both, and two shares of the networks; see the head of this file."""
    order = np.random.default_rng(seed).permutation(len(networks))
    known, others = order[:count], order[count : count + OTHERS]
    errors = []
    for degrees in ((1,), (1, 2, 3)):
        predictor = Predictor.fit(NAMES, networks[known], ms[known], degrees=degrees)
        mean, deviation = predictor(networks[others])
        errors.append(float(np.mean(np.abs(mean / ms[others] - 1))))
    within = float(np.mean(np.abs(mean - ms[others]) <= 2 * deviation))
    return [*errors, within, float(np.mean(2 * deviation <= SURE * np.abs(mean)))]


def _shares(values: np.ndarray) -> list[str]:
    return [f"{value:.0f} %" for value in values]


if __name__ == "__main__":
    main()
