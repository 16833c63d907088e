"""How many whole networks must be measured before others are predicted, and does it know?

    python benchmarks/predictor.py [--table FOLDER/nas-bench-201/cifar10.csv] [--devices a,b]
        [--measured 3,10,30,100] [--seeds 5]
    python benchmarks/predictor.py --latencies runs/predictor.json [--space mobile]
        [--image-size 96] [--measured 3,10,30,100]

First form: for each device of a table as `nas_bench_201.py` takes it so many random networks are
taken as measured, and the latency of 2,000 others is predicted, by a sum over the candidates and by
a sum with pairs where those are likelier (`selection/predictor.py`). Printed: the mean error in %,
and of the second how often the truth lies within two of the predicted standard deviations, and
which share of the networks it is sure enough of (two deviations within 10 %) not to have them
measured.

Second form: the latencies of a space's candidates and of whole networks on this machine, measured
into the file unless it is there (130 networks of the published ImageNet space, about ten minutes).
Printed: the mean error in % on 30 unseen networks, beside how far a second measurement of them is
from the first, of the cost model (the candidates, corrected to so many networks), of the predictor
that knows these networks alone, and of one whose prior is the cost model; of the last also how
often the truth lies within two of its deviations.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from nas_bench_201 import DATA, NAMES, Truth, as_they_run, code_of, listed
from rich.table import Table as Printed

from proxylessnas.config import MeasureSettings
from proxylessnas.hardware.costs import indices_of, latency_costs
from proxylessnas.hardware.space_table import measure_space, supernet_to_measure
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.trace import trace
from proxylessnas.hardware.validate import validate
from proxylessnas.io.console import Reporter, output
from proxylessnas.selection.predictor import Predictor

OTHERS, UNSEEN = 2000, 30  # networks that are predicted, of a table and of those measured here
SURE = 0.1  # two standard deviations, as a share of the latency


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--table", type=Path, default=DATA / "nas-bench-201" / "cifar10.csv")
    add("--devices", type=partial(listed, str), default=[])
    add("--measured", type=partial(listed, int), default=[3, 10, 30, 100])
    add("--seeds", type=int, default=5)
    add("--latencies", type=Path, help="a space's latency table, which is measured if not there")
    add("--space", default="mobile")
    add("--image-size", type=int, default=96)
    args = parser.parse_args()
    if args.latencies is not None:
        _of_this_machine(args)
        return
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


# --- a space on this machine ---


def _of_this_machine(args: argparse.Namespace) -> None:
    if not args.latencies.exists():
        args.latencies.parent.mkdir(parents=True, exist_ok=True)
        settings = MeasureSettings(networks=max(args.measured), validation=UNSEEN)
        with Reporter().bar("measuring") as update:
            measure_space(
                *(args.space, {}),
                image_size=args.image_size,
                settings=settings,
                path=args.latencies,
                progress=update,
            )
    whole = LatencyTable.load(args.latencies)
    supernet, inputs = supernet_to_measure(args.space, image_size=args.image_size)
    traced = trace(supernet, inputs)
    known, unseen = whole.of_role("fit", "canary"), whole.of_role("validation")
    asked = [indices_of(supernet, n.choices) for n in unseen]
    truth = np.array([n.measurement.median_ms for n in unseen])
    table = Printed(title="Mean error in %, by the networks measured")
    for column in ("measured", "cost model", "predictor", "both", "within two deviations", "noise"):
        table.add_column(column, justify="right")
    for count in args.measured:
        few = replace(whole, networks=(*known[:count], *unseen))
        with warnings.catch_warnings():  # of the raw sum, where the networks are too few to fit
            warnings.simplefilter("ignore")
            costs = latency_costs(supernet, traced, few)
        networks = [indices_of(supernet, n.choices) for n in known[:count]]
        ms = [n.measurement.median_ms for n in known[:count]]
        alone = Predictor.fit(supernet.candidates, networks, ms)(asked)[0]
        prior, of_asked = (
            np.array([costs.cost_of("latency", n) for n in some]) for some in (networks, asked)
        )
        both = Predictor.fit(supernet.candidates, networks, ms, prior=prior)
        mean, deviation = both(asked, of_asked)
        errors = [100 * float(np.mean(np.abs(p / truth - 1))) for p in (of_asked, alone, mean)]
        within = 100 * float(np.mean(np.abs(mean - truth) <= 2 * deviation))
        noise = validate(costs, supernet, few)["noise_floor_pct"]
        table.add_row(str(count), *(f"{e:.1f}" for e in errors), f"{within:.0f} %", f"{noise:.1f}")
    output().print(table)


def _shares(values: np.ndarray) -> list[str]:
    return [f"{value:.0f} %" for value in values]


if __name__ == "__main__":
    main()
