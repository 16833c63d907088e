"""Does a search find good networks? Judged by NAS-Bench-Macro, where every answer is known.

    python benchmarks/nas_bench_macro.py [--data FOLDER/cifar10]
        [--table FOLDER/nas-bench-macro/nas-bench-macro_cifar10.json]
        [--out runs/nas_bench_macro] [--seed 0] [--epochs 8] [--arch-steps 300]
        [--joint-epochs 0] [--no-reinmax] [--learn-on 0 200] [--halved] [--no-zero-cost]
        [--estimators two_path full_path reinforce random] [--limits 35 45 55 65 80 none]

FOLDER is $PROXYLESSNAS_DATA, or else `data`; CONTRIBUTING.md says what it holds.

One set of shared weights is trained on CIFAR-10 with uniform, strictly fair gates; several
numbers of epochs are periods of the cosine, each restarted on the weights of the one before
(and each one's weights are kept: `--epochs 8 12` goes on from `--epochs 8`). Then every
estimator learns α from zero under every limit of MACs, by architecture steps alone on those
weights, at an equal budget of computation (see `BUDGET`), and then, if so asked, together with
the weights for --joint-epochs, whose paths are drawn from what α has learned; the most probable
networks within the limit are scored on the validation part with renewed BN statistics, beside what
they can express untrained (zero-cost proxies; --no-zero-cost leaves these out), and the best of
them is looked up in the table. `random` draws its paths uniformly in these epochs and
spends the budget of its architecture steps on scoring more networks. The two estimators with
gates take their slopes at both ends, unless --no-reinmax asks for the published rule.
--learn-on decodes each limit from one search without any, as it is (0 steps) or after α has
learned on under that limit, as `proxylessnas derive --latencies` does. --halved: images of half the
side, in a quarter of the time. At the end: the mean gap to the best network over the limits, and
Kendall's τ of the score, by the shared weights, with the table's accuracy.

Finished parts are kept in --out, so an interrupted run goes on. The table's figures beside
ours (best, top 1 %, most MACs, random best of 20) are computed from the table here, and so is
"additive fit": what the worths of the choices, fitted on the whole table, decode to.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from known import best_of_random
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import load_file, save_file
from scipy.stats import kendalltau
from shared_weights import Halved

from proxylessnas.config import DataSettings, DeriveSettings, MachineSettings, SearchSettings
from proxylessnas.core.adapt import adapt
from proxylessnas.core.decode import Indices
from proxylessnas.core.objective import Constraint
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.search import Search
from proxylessnas.data import Batches, load_data
from proxylessnas.hardware.costs import count_costs
from proxylessnas.hardware.trace import trace
from proxylessnas.io.console import Reporter, output
from proxylessnas.seeds import derive_seed
from proxylessnas.selection.choose import ScoreFunction, choose
from proxylessnas.selection.zero_cost import DRAWS, Beside, ZeroCost, random_networks
from proxylessnas.spaces import build_supernet
from proxylessnas.spaces.macro import code
from proxylessnas.training.callbacks import ProgressBar
from proxylessnas.training.device import make_machine
from proxylessnas.training.evaluate import Score, evaluate, recalibrate
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import Task

DATA = Path(os.environ.get("PROXYLESSNAS_DATA", "data"))
TOP_K = 20
REFERENCE = 64  # random networks by which zero-cost figures become comparable with scores
FIGURES = f"_zero{REFERENCE}x{DRAWS}_natural"  # in the names of results with them
EXAMPLE = torch.zeros(1, 3, 32, 32)
ARCH_EVERY = 5  # weight steps, while both learn
SAMPLES = 5  # networks a REINFORCE step
WITH_GATES = ("two_path", "full_path")
# Architecture steps for the price of one two-path step: forward passes of the whole network
# that a step takes, a backward pass to the inputs counted as one (a pair: 3; all three: 4).
BUDGET = {"two_path": 1.0, "full_path": 3 / 4, "reinforce": 3 / SAMPLES, "random": 0.0}
# Networks that `random` scores instead of an architecture step: a score takes 3,000 images
# forward, a step 3 passes of 64.
SCORES_A_STEP = 3 * 64 / 3000


@dataclass(frozen=True, eq=False)
class Truth:
    """The table: mean accuracy in % and MACs of every network, by its code.

    distinct: one code of every distinct network; those of one network share all their figures.
    """

    accuracy: dict[str, float]
    macs: dict[str, float]
    distinct: list[str]

    @staticmethod
    def load(path: Path) -> Truth:
        rows = json.loads(path.read_text())
        return Truth(
            {c: float(r["mean_acc"]) for c, r in rows.items()},
            {c: float(r["flops"]) for c, r in rows.items()},
            sorted({json.dumps(r, sort_keys=True): c for c, r in rows.items()}.values()),
        )

    def within(self, limit: float) -> list[str]:
        return [c for c, macs in self.macs.items() if macs <= limit]

    @cached_property
    def worth(self) -> dict[str, float]:
        """Of every code the sum of its choices' worths, fitted on the whole table.

        About what α could know at best: log p is such a sum over the layers.
        """
        codes = list(self.accuracy)
        digits = np.array([[int(d) for d in c] for c in codes])
        choices = np.eye(3)[digits].reshape(len(codes), -1)
        truth = np.array(list(self.accuracy.values()))
        fitted = choices @ np.linalg.lstsq(choices, truth, rcond=None)[0]
        return dict(zip(codes, fitted.tolist(), strict=True))

    def references(self, limit: float) -> dict[str, float]:
        """Best feasible, top 1 % of it, the fit's, most MACs, expected best of 20 by truth."""
        codes = self.within(limit)
        a = np.sort([self.accuracy[c] for c in codes])
        most = max(self.macs[c] for c in codes)
        return {
            "best": float(a[-1]),
            "top 1 %": float(a[int(np.ceil(0.99 * len(a))) - 1]),
            "additive fit": self.accuracy[max(codes, key=lambda c: self.worth[c])],
            "most MACs": statistics.mean(
                self.accuracy[c] for c in codes if self.macs[c] >= most * (1 - 1e-9)
            ),
            "random of 20": best_of_random(a),
        }

    def rank(self, found: str) -> int:
        """Among distinct networks; 1 is the best."""
        return 1 + sum(self.accuracy[c] > self.accuracy[found] for c in self.distinct)


class Bench:
    """The supernet with its data; shared weights, searches and scores."""

    def __init__(self, args: argparse.Namespace, console: Console) -> None:
        self.args, self.console = args, console
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.machine = make_machine(MachineSettings(memory_format="channels_last"))
        self.data = load_data(
            str(args.data), DataSettings(augment="crop+flip"), image_size=32, seed=args.seed
        )
        torch.manual_seed(args.seed)
        self.supernet = build_supernet("macro", {})
        self.costs = count_costs(self.supernet, trace(self.supernet, (EXAMPLE,)))
        self.task = Task.classification()
        self.scores: dict[tuple[int, ...], Score] = {}

    def batches(self, part: str, size: int, seed: int, *, augment: bool = False) -> Batches:
        whole = self.data.batches(part, size, augment=augment, shuffle=True, seed=seed)
        return Halved(whole) if self.args.halved else whole

    def search(
        self, limit: float, estimator: str, schedule: Schedule, *, epochs: int = 1, seed: int
    ) -> Search:
        """A search on the shared weights; epochs: of its joint phase, for the rate's cosine."""
        settings = SearchSettings(
            warmup_epochs=0,
            epochs=epochs,
            arch_every=ARCH_EVERY,
            learning_rate=0.05 if schedule.warmup else 0.025,  # as published
            batch_size=64,
            label_smoothing=0.0,
            weight_decay=1e-4,
            estimator=estimator,  # type: ignore[arg-type]
            reinmax=self.args.reinmax and estimator in WITH_GATES,
            reinforce_samples=SAMPLES,
        )
        return Search.from_settings(
            settings,
            supernet=self.supernet,
            task=self.task,
            train=self.batches("search", 64, seed, augment=True),
            valid=self.batches("valid", 64, seed, augment=True),
            costs=self.costs.limited({"macs": limit}),
            schedule=schedule,
            seed=seed,
            machine=self.machine,
        )

    def epochs(self, count: int) -> Schedule:
        """So many epochs of weight and architecture steps in turn."""
        steps = count * len(self.data.batches("search", 64))
        return Schedule(warmup=0, total=steps, arch_every=ARCH_EVERY, arch_from=0)

    # --- the shared weights ---

    def train_weights(self) -> None:
        """All periods of the cosine, or what is left of them."""
        for period in range(len(self.args.epochs)):
            file = self.file("weights", "safetensors", periods=period + 1)
            if not file.exists():
                self.train_period(period)
                state = {k: v.contiguous() for k, v in self.supernet.model.state_dict().items()}
                save_file(state, file)
            self.supernet.model.load_state_dict(load_file(file))
            self.console.print(f"shared weights: {file}")

    def train_period(self, period: int) -> None:
        # Every period draws its own batches and paths.
        seed = self.args.seed + 1000 * period
        epochs = self.args.epochs[period]
        schedule = self.epochs(epochs).weights_alone()
        job = self.search(float("inf"), "random", schedule, epochs=epochs, seed=seed)
        self.console.print(f"period {period + 1}: {job.total} uniform steps of 64 images")
        start = time.time()
        with Reporter().bar("training") as update:
            run_loop(job, callbacks=[ProgressBar(update)])
        took = {"seconds": time.time() - start, "steps": job.total}
        self.file("weights", "json", period + 1).write_text(json.dumps(took))

    # --- one estimator under one limit ---

    def found(self, estimator: str, limit: float) -> dict[str, Any]:
        start = time.time()
        self.shared()
        steps = round(BUDGET[estimator] * self.args.arch_steps)
        job = self.learned(limit, estimator, steps)
        if self.args.joint_epochs:
            job = self.joint(job, limit, estimator)
        return self.chosen(job, estimator, limit, start)

    def learned(self, limit: float, estimator: str, steps: int) -> Search:
        """α after so many architecture steps on the shared weights."""
        schedule = Schedule.architecture_alone(steps)
        job = self.search(limit, estimator, schedule, seed=self.args.seed)
        with Reporter().bar(f"{estimator} within {limit / 1e6:g} M") as update:
            run_loop(job, callbacks=[ProgressBar(update)])
        return job

    def chosen(self, job: Search, estimator: str, limit: float, start: float) -> dict[str, Any]:
        """The network that a search's α comes to, and how."""
        searched = time.time()
        choice = choose(
            job.supernet,
            job.costs,
            DeriveSettings(top_k=TOP_K + self.more(estimator)),
            score=self.chosen_by,
            known=self.reference if self.args.zero_cost else (),
            learned=job.estimator.learns,
            seed=self.args.seed,
        )
        first = max(choice.proposals, key=lambda p: p.log_p)
        named = [self.code(p.indices) for p in choice.proposals]
        objective = job.objective
        return {
            "estimator": estimator,
            "limit": limit,
            "code": self.code(choice.chosen.indices),
            "most probable": self.code(first.indices),
            "entropy": job.entropy(),
            "multiplier": objective.multipliers[0] if isinstance(objective, Constraint) else 0.0,
            "proposals": [
                (c, p.score, p.log_p) for c, p in zip(named, choice.proposals, strict=True)
            ],
            "search_s": searched - start,
            "score_s": time.time() - searched,
        }

    def adapt(self, limit: float, steps: int) -> dict[str, Any]:
        """From the α of no limit by so many steps, as `proxylessnas derive --latencies` does it."""
        job, start = self.unlimited, time.time()
        costs = job.costs.limited({"macs": limit})
        return self.chosen(adapt(job, costs, steps=steps), "two_path", limit, start)

    @cached_property
    def unlimited(self) -> Search:
        """α learned without a limit."""
        self.shared()
        return self.learned(float("inf"), "two_path", self.args.arch_steps)

    def shared(self) -> None:
        """The shared weights as they were trained; scores of any others are forgotten."""
        if self.args.joint_epochs:
            self.supernet.model.load_state_dict(load_file(self.file("weights", "safetensors")))
            self.scores.clear()
            self.__dict__.pop("chosen_by", None)

    def joint(self, job: Search, limit: float, estimator: str) -> Search:
        """Weights and α in turn, from where the steps on α alone ended."""
        epochs, seed = self.args.joint_epochs, self.args.seed + 500
        after = self.search(limit, estimator, self.epochs(epochs), epochs=epochs, seed=seed)
        tensors, values = job.state()
        after.load(tensors, {**values, "step": 0})
        run_loop(after)
        return after

    def more(self, estimator: str) -> int:
        """Networks that `random` scores besides, for the price of the others' steps on α."""
        if estimator != "random":
            return 0
        joint: int = self.args.joint_epochs * len(self.data.batches("search", 64)) // ARCH_EVERY
        steps: int = self.args.arch_steps + joint
        return round(steps * SCORES_A_STEP)

    def score(self, indices: Sequence[int]) -> Score:
        """On the validation part, with BN statistics renewed; kept for every later use."""
        key = tuple(indices)
        if key not in self.scores:
            network = self.supernet.derive(key)
            training = self.batches("search", 250, self.args.seed)
            valid = self.batches("valid", 250, self.args.seed)
            recalibrate(network, training, 1000, self.machine)
            self.scores[key] = evaluate(network, self.task, valid, self.machine, examples=2000)
        return self.scores[key]

    @cached_property
    def reference(self) -> list[Indices]:
        """Random networks, by which figures become comparable with scores."""
        return random_networks(self.supernet, REFERENCE, derive_seed(self.args.seed, "reference"))

    @cached_property
    def chosen_by(self) -> ScoreFunction:
        """The score, beside what networks can express untrained."""
        if not self.args.zero_cost:
            return lambda indices: self.score(indices).rank
        with Reporter().bar("scoring random networks") as update:
            return Beside(
                lambda indices: self.score(indices).rank,
                ZeroCost(self.supernet, EXAMPLE, partial(self.costs.cost_of, "macs")),
                self.reference,
                update,
            )

    def code(self, indices: Sequence[int]) -> str:
        return code(self.supernet.architecture(list(indices)).choices)

    # --- how true the score is ---

    def correlation(self, truth: Truth, count: int) -> dict[str, Any]:
        self.shared()
        generator = np.random.default_rng(self.args.seed)
        codes = generator.choice(truth.distinct, count, replace=False).tolist()
        scores = [self.score([int(d) for d in c]) for c in track(codes, "τ", console=self.console)]
        real = [truth.accuracy[c] for c in codes]
        return {
            "networks": count,
            "accuracy": float(kendalltau([s.accuracy for s in scores], real).statistic),
            "loss": float(kendalltau([-s.loss for s in scores], real).statistic),
            "chosen by": float(
                kendalltau([self.chosen_by(tuple(map(int, c)))[0] for c in codes], real).statistic
            ),
            "calibrated loss": float(kendalltau([s.rank[0] for s in scores], real).statistic),
            "MACs": float(kendalltau([truth.macs[c] for c in codes], real).statistic),
        }

    # --- what is kept ---

    def file(self, name: str, kind: str, periods: int | None = None) -> Path:
        epochs = "-".join(map(str, self.args.epochs[:periods]))
        halved = "_halved" * self.args.halved
        return self.out / f"{name}_seed{self.args.seed}_epochs{epochs}{halved}.{kind}"

    def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        file = self.file(name, "json")
        if not file.exists():
            file.write_text(json.dumps(make(), indent=1))
        result: dict[str, Any] = json.loads(file.read_text())
        return result


def main() -> None:
    args, console = _arguments(), output()
    truth, bench = Truth.load(args.table), Bench(args, console)
    bench.train_weights()
    results = []
    for limit in args.limits:
        for estimator in args.estimators:
            millions = float(limit) * 1e6 if limit != "none" else float("inf")
            name = f"{estimator}_{limit}_steps{args.arch_steps}"
            if args.reinmax and estimator in WITH_GATES:
                name += "_both"
            if args.joint_epochs:
                name += f"_joint{args.joint_epochs}"
            name += FIGURES * args.zero_cost
            result = bench.kept(name, partial(bench.found, estimator, millions))
            results.append(result)
            console.print(
                f"{estimator} within {limit} M: {result['code']} "
                f"{truth.accuracy[result['code']]:.2f} % (most probable "
                f"{truth.accuracy[result['most probable']]:.2f} %; best proposal "
                f"{max(truth.accuracy[c] for c, *_ in result['proposals']):.2f} %; λ "
                f"{result['multiplier']:.2f}; entropy {result['entropy']:.2f}; "
                f"{result['search_s']:.0f} + {result['score_s']:.0f} s)"
            )
    console.print(_table(results, truth, args.estimators))
    for estimator in args.estimators:
        of = [r for r in results if r["estimator"] == estimator]
        gaps = [truth.references(r["limit"])["best"] - truth.accuracy[r["code"]] for r in of]
        console.print(f"{estimator}: {statistics.mean(gaps):.2f} points short of the best")
    for limit in args.limits if args.learn_on else []:
        for steps in args.learn_on if limit != "none" else []:
            make = partial(bench.adapt, float(limit) * 1e6, steps)
            name = f"on_{limit}_steps{args.arch_steps}-{steps}" + "_both" * args.reinmax
            name += FIGURES * args.zero_cost
            result = bench.kept(name, make)
            means = statistics.mean(truth.accuracy[c] for c, *_ in result["proposals"])
            console.print(
                f"within {limit} M, {steps} steps on from the α of no limit: {result['code']} "
                f"{truth.accuracy[result['code']]:.2f} % (proposals {means:.2f} % on average; "
                f"{result['search_s']:.0f} + {result['score_s']:.0f} s)"
            )
    if args.tau:
        tau = bench.kept(
            "tau" + FIGURES * args.zero_cost, lambda: bench.correlation(truth, args.tau)
        )
        console.print(f"Kendall's τ with the table over {tau['networks']} distinct networks: ", tau)


def _table(results: list[dict[str, Any]], truth: Truth, estimators: Sequence[str]) -> Table:
    table = Table(title="Table accuracy in % (rank among all distinct networks)")
    for name in ("limit, M MACs", *estimators, *truth.references(float("inf"))):
        table.add_column(name)
    for limit in dict.fromkeys(r["limit"] for r in results):
        row = {r["estimator"]: r["code"] for r in results if r["limit"] == limit}
        cells = [f"{truth.accuracy[c]:.2f} ({truth.rank(c)})" for c in row.values()]
        references = [f"{v:.2f}" for v in truth.references(limit).values()]
        table.add_row("none" if limit == float("inf") else f"{limit / 1e6:g}", *cells, *references)
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA / "cifar10")
    parser.add_argument(
        "--table",
        type=Path,
        default=DATA / "nas-bench-macro" / "nas-bench-macro_cifar10.json",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/nas_bench_macro"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, nargs="+", default=[8], help="of the shared weights")
    parser.add_argument("--arch-steps", type=int, default=300, help="two-path steps a limit")
    parser.add_argument("--halved", action="store_true", help="images of half the side")
    parser.add_argument("--joint-epochs", type=int, default=0, help="of weights and α, a limit")
    parser.add_argument(
        "--learn-on",
        type=int,
        nargs="+",
        default=[],
        metavar="STEPS",
        help="also let the α of no limit learn on for so many steps under each limit",
    )
    parser.add_argument("--reinmax", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--estimators", nargs="+", default=list(BUDGET), choices=list(BUDGET))
    parser.add_argument("--limits", nargs="+", default=["35", "45", "55", "65", "80", "none"])
    parser.add_argument("--zero-cost", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tau", type=int, default=500, help="networks; 0: leave it out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
