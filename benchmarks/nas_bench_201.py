"""Does a search find the best network within milliseconds? Judged by NAS-Bench-201.

    python benchmarks/nas_bench_201.py [--table FOLDER/nas-bench-201/cifar10.csv]
        [--data FOLDER/cifar10] [--devices gold_6226,raspi4,pixel3] [--quantiles 0.2,0.4,0.6,0.8]
        [--weights FILE] [--minutes 30] [--supernets 1] [--every] [--seed 0] [--networks 300]
        [--measured 100] [--no-zero-cost] [--json OUT]

FOLDER is $PROXYLESSNAS_DATA, or else `data`; CONTRIBUTING.md says what it holds. A table has the
columns code, function and test_accuracy, and a column NAME_ms of every device.

Shared weights of the space `cell` are trained on CIFAR-10 by uniform paths, one function as often
as another, for --minutes, or taken from --weights where that file exists; those of further
--supernets are beside it (FILE-1, ...), and a network's score is the mean over them. The search is
among the functions that promise most untrained (zero-cost proxies), a third at every level of MACs
as predicted, whose figures are then all computed and kept beside the weights (`untrained.py`;
--every: among all functions, which takes three times as long). Networks are scored on validation
images, beside these figures (--no-zero-cost leaves these out, and searches all functions;
--supernets 0 leaves the shared weights out): random ones, and under each limit those that a
predictor of the scores puts first, --networks in all. The search knows a device by measuring whole
networks on it (here: by looking their latency up): --measured random ones, to which a predictor is
fitted, and after these only networks of which the predictor cannot say whether they keep a limit.
The best within the limit, as measured, is the network found. Accuracies of the table are looked up
when all is found, never before.

Printed for each limit: the best accuracy of the table within it, the expected best of 20 random
networks by their true accuracy, what was found, and the gap to the best; at the end the mean gap,
also by the mean accuracy of all strings that are one function: the table trained each of them, and
which of them a search names is chance.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from known import RANDOM, best_of_random
from numpy.typing import NDArray
from rich.table import Table as Printed
from shared_weights import BATCH, Halved, SharedWeights, partial_of
from untrained import Figures, promising

from proxylessnas.config import DataSettings, MachineSettings
from proxylessnas.core.decode import Indices
from proxylessnas.core.supernet import Supernet
from proxylessnas.data import Batches, load_data
from proxylessnas.hardware.costs import count_costs
from proxylessnas.hardware.trace import trace
from proxylessnas.io.console import Reporter, output
from proxylessnas.seeds import derive_seed
from proxylessnas.selection.choose import ScoreFunction
from proxylessnas.selection.explore import Score, hopes, known, predictor_of
from proxylessnas.selection.predictor import Predictor
from proxylessnas.selection.zero_cost import Beside, ZeroCost
from proxylessnas.spaces import build_supernet
from proxylessnas.spaces.cell import CANDIDATES, CHOICES, code, contributing, from_code, function
from proxylessnas.training.device import make_machine
from proxylessnas.training.evaluate import evaluate, recalibrate
from proxylessnas.training.task import Task

DATA = Path(os.environ.get("PROXYLESSNAS_DATA", "data"))
NAMES = (CANDIDATES,) * len(CHOICES)
SCORED_IMAGES, RENEWED_IMAGES = 1000, 500  # a network: validation and training images
CERTAIN = 3.0  # standard deviations from the limit at which a prediction is believed
BETWEEN = 4  # networks that are scored between two fits of the predictor


# --- the table ---


@dataclass(frozen=True, eq=False)
class Truth:
    """The table: accuracy in % and latency in ms of every code."""

    codes: list[str]
    accuracy: NDArray[np.float64]
    latency: dict[str, NDArray[np.float64]]

    @staticmethod
    def load(file: Path) -> Truth:
        rows = pandas.read_csv(file, dtype={"code": str})
        for column in ("code", "test_accuracy"):
            if column not in rows:
                raise SystemExit(f"{file} has no column {column}: it has {', '.join(rows)}")
        devices = [column for column in rows if column.endswith("_ms")]
        return Truth(
            rows["code"].tolist(),
            rows["test_accuracy"].to_numpy(float),
            {name.removesuffix("_ms"): rows[name].to_numpy(float) for name in devices},
        )

    def measure(self, device: str, network: Indices) -> float:
        """ms of a network."""
        return float(self.latency[device][self.row[code_of(network)]])

    @cached_property
    def row(self) -> dict[str, int]:
        return {code: i for i, code in enumerate(self.codes)}

    def best(self, device: str, limit: float) -> float:
        return float(self.accuracy[self.latency[device] <= limit].max())

    def best_of_random(self, device: str, limit: float) -> float:
        """The expected best of `RANDOM` networks within the limit."""
        return best_of_random(self.accuracy[self.latency[device] <= limit])


# --- the space ---


def indices_of(code: str) -> Indices:
    return tuple(CANDIDATES.index(name) for name in from_code(code).values())


def code_of(indices: Sequence[int]) -> str:
    return code(dict(zip(CHOICES, (CANDIDATES[i] for i in indices), strict=True)))


def functions() -> dict[str, list[str]]:
    """Function -> its codes, those with the fewest operations first; not the one that is zero."""
    codes: dict[str, list[str]] = {}
    for digits in itertools.product("01234", repeat=len(CHOICES)):
        codes.setdefault(function("".join(digits)), []).append("".join(digits))
    del codes[""]
    return {f: sorted(of, key=lambda c: (6 - c.count("0"), c)) for f, of in codes.items()}


def as_they_run() -> dict[Indices, Indices]:
    """Every network without branches that lead nowhere -> the first one of the same function.

    Such branches are time at most. Networks of one function have one accuracy, but each its own
    latency: a device knows nothing of functions.
    """
    none = CANDIDATES.index("none")

    def runs(network: Indices) -> bool:
        return sum(contributing([j != none for j in network])) == 6 - network.count(none)

    groups = [[indices_of(code) for code in codes] for codes in functions().values()]
    return {network: group[0] for group in groups for network in group if runs(network)}


def fair_functions(seed: int) -> Callable[[int], Indices]:
    """The path of a step: every function as often as another, and each of its codes too."""
    # Of uniform codes a quarter would train the same few functions, most of them with dead ends.
    every = list(functions().values())

    def path(step: int) -> Indices:
        generator = torch.Generator().manual_seed(derive_seed(seed, "function", step))
        codes = every[int(torch.randint(len(every), (), generator=generator))]
        return indices_of(codes[int(torch.randint(len(codes), (), generator=generator))])

    return path


# --- the shared weights, and scores by them ---


class Scorer:
    """Supernets of the space with their weights, and the data.

    Each was trained by itself, from another seed: what one of them thinks too much of a network is
    its own opinion, and the mean of several has less of it.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.machine = make_machine(MachineSettings(memory_format="channels_last"))
        self.args = args
        self.data = load_data(
            str(args.data), DataSettings(augment="crop+flip"), image_size=32, seed=0
        )
        files = weights_files(args.weights, args.supernets)
        self.supernets = [self._trained(*seed_and_file) for seed_and_file in enumerate(files)]
        self.training = list(itertools.islice(self._batches("search", 250, 0).epoch(0), 2))
        self.valid = list(
            itertools.islice(self._batches("valid", 250, 0).epoch(0), SCORED_IMAGES // 250)
        )

    def _trained(self, seed: int, file: Path) -> Supernet:
        args = self.args
        torch.manual_seed(seed)
        supernet = build_supernet("cell", {"cells": args.cells})
        SharedWeights(
            supernet=supernet,
            train=self._batches("search", BATCH, seed, augment=True),
            valid=self._batches("valid", BATCH, seed, augment=True),
            machine=self.machine,
            seed=seed,
            minutes=args.minutes / args.supernets,
            paths=fair_functions(seed),
            facts={"cells": args.cells, "halved": args.halved},
        ).load(file)
        return supernet

    def _batches(self, part: str, size: int, seed: int, augment: bool = False) -> Batches:
        whole = self.data.batches(part, size, augment=augment, shuffle=True, seed=seed)
        return Halved(whole) if self.args.halved else whole

    def __call__(self, network: Indices) -> Score:
        """What a network is chosen by (`Score.rank`), the mean over the supernets."""
        ranks = [self._rank(supernet, network) for supernet in self.supernets]
        values, batches = zip(*ranks, strict=True)
        return float(np.mean(values)), tuple(np.mean(batches, axis=0).tolist())

    def _rank(self, supernet: Supernet, network: Indices) -> Score:
        """On validation images, with BN statistics of its own."""
        model, task = supernet.derive(network), Task.classification()
        recalibrate(model, Kept(self.training), RENEWED_IMAGES, self.machine)
        return evaluate(model, task, Kept(self.valid), self.machine, examples=SCORED_IMAGES).rank


def weights_files(first: Path, count: int) -> list[Path]:
    """FILE, FILE-1, ... of the supernets; where they were trained before, those that there are."""
    files = [first, *(first.with_stem(f"{first.stem}-{seed}") for seed in range(1, count))]
    if not first.exists():
        for file in files:
            partial_of(file).mkdir(parents=True, exist_ok=True)
    return [file for file in files if file.exists() or partial_of(file).exists()]


@dataclass(frozen=True)
class Kept:
    """Batches in memory, the same every epoch."""

    batches: list[Any]

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0, *, step: int = 1, **_: Any) -> Any:
        return iter(self.batches[start::step])


def zero_cost() -> ZeroCost:
    """Figures of untrained networks: these cost nothing to be as deep as the table's are."""
    supernet, example = build_supernet("cell", {}), torch.zeros(1, 3, 32, 32)
    costs = count_costs(supernet, trace(supernet, (example,)))
    return ZeroCost(supernet, example, partial(costs.cost_of, "macs"))


# --- a device, and the search under its limits ---


@dataclass(eq=False)
class Device:
    """What is known of a device: some networks as measured, and a predictor of the others.

    measure: ms of a network, which takes a while on a real device.
    """

    measure: Callable[[Indices], float]
    networks: list[Indices]
    measured: dict[Indices, float] = field(default_factory=dict)
    fitted: int = 0

    def know(self, count: int, generator: np.random.Generator) -> None:
        """Measure so many random networks."""
        for i in generator.choice(len(self.networks), count, replace=False).tolist():
            self.ms(self.networks[i])

    def ms(self, network: Indices) -> float:
        if network not in self.measured:
            self.measured[network] = self.measure(network)
        return self.measured[network]

    def predicted(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(mean, standard deviation) of every network in ms; 0 of those that were measured."""
        # A fit takes a second, and a few measurements more change little.
        if self.fitted < 0.95 * len(self.measured):
            predictor = Predictor.fit(NAMES, list(self.measured), list(self.measured.values()))
            self._mean, self._deviation = predictor(self.networks)
            self.fitted = len(self.measured)
        row = {network: i for i, network in enumerate(self.networks)}
        for network, ms in self.measured.items():
            self._mean[row[network]], self._deviation[row[network]] = ms, 0.0
        return self._mean, self._deviation

    def within(self, limit: float, worth: NDArray[np.float64]) -> Iterator[Indices]:
        """Networks that keep a limit, the worthiest first; uncertain ones are measured.

        Of equal ones, such as those of one function, the fastest comes first.
        """
        mean, deviation = self.predicted()
        for i in np.lexsort((mean, -worth)).tolist():
            if not np.isfinite(worth[i]) or mean[i] - CERTAIN * deviation[i] > limit:
                continue
            network = self.networks[i]
            if mean[i] + CERTAIN * deviation[i] <= limit or self.ms(network) <= limit:
                yield network


class Search:
    """Scores that all limits share, and the best network within each."""

    def __init__(
        self, score: ScoreFunction, figures: Figures | None, seed: int, among: Collection[Indices]
    ) -> None:
        self.figures = figures
        searched = set(among)
        self.function = {n: first for n, first in as_they_run().items() if first in searched}
        self.networks = list(dict.fromkeys(self.function.values()))
        self.row = {network: i for i, network in enumerate(self.networks)}
        self.rows = np.array([self.row[first] for first in self.function.values()])
        self.score, self.scores = score, dict[Indices, Score]()
        self.added = np.zeros(len(self.networks))  # by the figures, to a network's score
        self.generator = np.random.default_rng(seed)

    def begin(self, count: int) -> None:
        """Score random networks, by which zero-cost figures become comparable with scores.

        The figures are computed of all networks: they are cheap, and what a predictor of them would
        get wrong is what the best networks differ by.
        """
        drawn = self.generator.choice(len(self.networks), count, replace=False).tolist()
        reference = [self.networks[i] for i in drawn]
        if self.figures is not None:
            self.figures.compute(self.networks, "figures of untrained networks")
        with Reporter().bar("scoring random networks") as update:
            for done, network in enumerate(reference, start=1):
                self.scores[network] = self.score(network)
                update(done, count)
        if self.figures is not None:
            beside = Beside(self.scores.__getitem__, self.figures, reference)
            self.added = np.array([beside.added(network) for network in self.networks])

    def explore(self, device: Device, limit: float, count: int, title: str) -> None:
        """Score `count` more networks within the limit: those that may well be the best of it."""
        with Reporter().bar(title) as update:
            for done in range(count):
                if done % BETWEEN == 0:
                    worth = hopes(*predictor_of(NAMES, self.scores)(self.networks)) + self.added
                worth[[self.row[network] for network in self.scores]] = -np.inf
                best = next(device.within(limit, worth[self.rows]), None)
                if best is None:
                    return
                self.scores[self.function[best]] = self.score(self.function[best])
                update(done + 1, count)

    def best(self, device: Device, limit: float) -> Indices:
        """Of the networks that were scored, for all limits, the best within this one."""
        scored = known(self.scores)
        rows = [self.row[network] for network in scored]
        worth = np.full(len(self.networks), -np.inf)
        worth[rows] = predictor_of(NAMES, self.scores)(scored)[0] + self.added[rows]
        for network in device.within(limit, worth[self.rows]):
            if device.ms(network) <= limit:  # what was believed of its latency is measured now
                return network
        return min(device.measured, key=device.ms)  # the limit is not kept, and the table says so


# --- the judgement ---


def main() -> None:
    args = _arguments()
    truth = Truth.load(args.table)
    devices = args.devices or list(truth.latency)
    for name in devices:
        if name not in truth.latency:
            raise SystemExit(f"{args.table} has no column {name}_ms: {', '.join(truth.latency)}")
    figures, among = None, list(dict.fromkeys(as_they_run().values()))
    if args.zero_cost:
        figures = Figures(zero_cost(), args.weights.with_suffix(".figures.json"))
        among = among if args.every else promising(NAMES, among, figures)
    more = args.networks // 3
    if not len(devices) * len(args.quantiles) <= more <= len(among) // 3:
        raise SystemExit(
            f"--networks is {args.networks}: a third of them is for the limits, at least one "
            f"each, so it must be {3 * len(devices) * len(args.quantiles)} to {len(among)}"
        )
    score = Scorer(args) if args.supernets else lambda network: (0.0, ())
    search = Search(score, figures, args.seed, among)
    search.begin(args.networks - more)
    limits = []
    for name in devices:
        latency = truth.latency[name]
        device = Device(partial(truth.measure, name), list(search.function))
        device.know(args.measured, search.generator)
        for quantile in args.quantiles:
            limits.append((name, quantile, device, float(np.quantile(latency, quantile))))
    for name, _, device, limit in limits:
        search.explore(device, limit, more // len(limits), f"{name} within {limit:.4g} ms")
    results = [
        {
            "device": name,
            "quantile": quantile,
            "limit_ms": limit,
            "code": code_of(search.best(device, limit)),
            "measured": len(device.measured),
        }
        for name, quantile, device, limit in limits
    ]
    results = [{**r, **judged(truth, r, search.function)} for r in results]
    scores = {code_of(n): value for n, (value, _) in search.scores.items()}
    _print(results)
    if args.json:
        gap = float(np.mean([r["gap"] for r in results]))
        args.json.write_text(
            json.dumps({"mean_gap": gap, "limits": results, "scores": scores}, indent=1) + "\n"
        )


def judged(
    truth: Truth, result: dict[str, Any], function: Mapping[Indices, Indices]
) -> dict[str, Any]:
    """The truth about one network found.

    function: see `as_they_run`. Networks of one function are one network, which the table trained
    several times: by how much these differ is chance, and their mean says more.
    """
    device, limit, row = result["device"], result["limit_ms"], truth.row[result["code"]]
    accuracy, ms = float(truth.accuracy[row]), float(truth.latency[device][row])
    best = truth.best(device, limit)
    found = function[indices_of(result["code"])]
    alike = [truth.row[code_of(n)] for n, first in function.items() if first == found]
    return {
        "best": best,
        "random": truth.best_of_random(device, limit),
        "accuracy": accuracy,
        "gap": best - accuracy,
        "gap_of_function": best - float(truth.accuracy[alike].mean()),
        "ms": ms,
        "kept": ms <= limit,
    }


def _print(results: list[dict[str, Any]]) -> None:
    table = Printed(title="Accuracy in % by the table, within limits of latency")
    columns = ("device", "quantile", "limit ms", "best", f"random of {RANDOM}", "found", "gap")
    for column in (*columns, "ms", "kept", "measured"):
        table.add_column(column, justify="right")
    for r in results:
        table.add_row(
            *(r["device"], f"{r['quantile']:g}", f"{r['limit_ms']:.4g}", f"{r['best']:.2f}"),
            *(f"{r['random']:.2f}", f"{r['code']} {r['accuracy']:.2f}", f"{r['gap']:.2f}"),
            *(f"{r['ms']:.4g}", "yes" if r["kept"] else "no", str(r["measured"])),
        )
    output().print(table)
    above = sum(r["accuracy"] > r["random"] for r in results)
    output().print(
        f"mean gap {np.mean([r['gap'] for r in results]):.2f} points (by the mean of all strings "
        f"of a function {np.mean([r['gap_of_function'] for r in results]):.2f}); limits kept: "
        f"{sum(r['kept'] for r in results)} of {len(results)}; above random of {RANDOM}: {above}"
    )


def listed(kind: Callable[[str], Any], text: str) -> list[Any]:
    return [kind(part) for part in text.split(",") if part]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--table", type=Path, default=DATA / "nas-bench-201" / "cifar10.csv")
    add("--data", type=Path, default=DATA / "cifar10")
    add("--devices", type=partial(listed, str), default=[], help="names, a,b; default: all")
    add("--quantiles", type=partial(listed, float), default=[0.2, 0.4, 0.6, 0.8])
    add("--weights", type=Path, default=Path("runs/nas_bench_201/weights.safetensors"))
    add("--minutes", type=float, default=30.0, help="of training, where there are no weights")
    add("--supernets", type=int, default=1, help="that share the minutes, or 0")
    add("--cells", type=int, default=2, help="of every stage of the supernet (the table's: 5)")
    add("--halved", action=argparse.BooleanOptionalAction, default=False, help="16x16 images")
    add(
        "--every", action=argparse.BooleanOptionalAction, default=False, help="function is searched"
    )
    add("--seed", type=int, default=0, help="of the search")
    add("--networks", type=int, default=300, help="that are scored")
    add("--measured", type=int, default=100, help="that are measured to know a device")
    add("--zero-cost", action=argparse.BooleanOptionalAction, default=True)
    add("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    if not args.supernets and not args.zero_cost:
        parser.error("--supernets 0 leaves the figures of untrained networks alone: let them count")
    return args


if __name__ == "__main__":
    main()
