"""From trained weights to smaller networks: what each way is worth at equal latency.

    python benchmarks/pretrained.py [--data DATA] [--size 128] [--photos 2000] [--test 1000]
        [--targets 0.7 0.5 0.35] [--epochs 2] [--steps 0] [--seeds 0] [--cache DIR]

A teacher (--network with a linear classifier in closed form, then fine-tuned) is specialised to
every target, a share of its own latency. The rows of the table at each target:

    search     candidates of every block by least squares, priced by the KL of the outputs when
               one alone is replaced, chosen exactly under the limit; with --rescored scored again
               in the networks so chosen, with --steps after so many architecture steps from there
    uniform    every block narrowed alike by least squares, at the same measured latency
    smaller    the teacher at a smaller input, at the same measured latency

Each before and after the same fine-tuning; all but the smaller input, which has no teacher at its
size, are distilled. Latencies are those of whole networks measured in the same rounds as the
teacher, as shares of its latency. Frozen statistics everywhere, and nothing is recalibrated.
The smaller input takes the images of the larger one, reduced.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import interpolate

from proxylessnas.config import (
    DataSettings,
    DeriveSettings,
    MeasureSettings,
    SearchSettings,
    TrainSettings,
)
from proxylessnas.core.costs import Costs
from proxylessnas.core.derive import choose
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import Supernet
from proxylessnas.data import Batches, load_data
from proxylessnas.data.dataset import ImageData
from proxylessnas.export.fold import fold
from proxylessnas.hardware.costs import latency_costs
from proxylessnas.hardware.measure import measure_networks, measure_table
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.trace import trace
from proxylessnas.io.console import duration, output
from proxylessnas.pretrained import load_pretrained
from proxylessnas.pretrained.candidates import BlockFits, block_inputs
from proxylessnas.pretrained.classifier import collect_moments, fit_classifier
from proxylessnas.pretrained.distil import distilled
from proxylessnas.pretrained.scores import replacement_scores
from proxylessnas.pretrained.space import (
    largest_within,
    prior,
    rescored,
    space_around,
    uniform_network,
)
from proxylessnas.seeds import derive_seed
from proxylessnas.spaces.blocks import Network
from proxylessnas.training.device import Machine
from proxylessnas.training.evaluate import evaluate
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import Task
from proxylessnas.training.train import Training

SHARES = [share / 48 for share in range(2, 49)]  # of hidden channels, of uniform networks
HELD_OUT, FIT = 128, 1024  # photos for scores, and for moments
ARCH_TRAVEL = 3.0  # rate x architecture steps: less than from scratch, where there is no prior
MACHINE = Machine(channels_last=True, depthwise_strips=True)
TASK = Task.classification(label_smoothing=0.1)


@dataclass(frozen=True)
class Row:
    """One network: its latency as a share of the teacher's, and accuracies in [0, 1]."""

    target: float
    way: str
    latency: float
    before: float
    after: float


@dataclass
class Bench:
    """One seed's data, teacher and clock."""

    args: argparse.Namespace
    seed: int
    data: ImageData
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the block's CPU seconds to a part's; other programmes' do not count."""
        start = time.process_time()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.process_time() - start
        console().print(f"  {part}: {self.seconds[part]:.0f} CPU seconds")

    def batches(self, part: str, *, augment: bool = False, size: int | None = None) -> Batches:
        chosen = self.data.batches(
            part, 32, augment="shift+flip" if augment else False, shuffle=augment, seed=self.seed
        )
        return chosen if size in (None, self.args.size) else Reduced(chosen, size)

    def images(self, part: str, count: int, *, augment: bool = False) -> Iterator[Tensor]:
        """So many images, where the part has fewer epoch after epoch."""
        batches = self.batches(part, augment=augment)
        done = 0
        for epoch in range(count):
            for images, _ in batches.epoch(epoch):
                yield MACHINE.put(images)
                done += len(images)
                if done >= count:
                    return

    def accuracy(self, network: nn.Module, size: int | None = None) -> float:
        score = evaluate(MACHINE.place(network), TASK, self.batches("test", size=size), MACHINE)
        assert score.accuracy is not None
        return score.accuracy

    def tuned(self, network: Network, task: Task, size: int | None = None) -> Network:
        """A fine-tuned copy."""
        network = copy.deepcopy(network)
        settings = TrainSettings(
            epochs=self.args.epochs,
            batch_size=32,
            learning_rate=self.args.rate,
            frozen_statistics=True,
        )
        train = self.batches("train", augment=True, size=size)
        job = Training(network, task, train, settings, seed=self.seed, machine=MACHINE)
        run_loop(job)
        return network.eval()


class Reduced:
    """Batches whose images are made smaller."""

    def __init__(self, batches: Batches, size: int) -> None:
        self.batches, self.size = batches, size

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, *args: Any, **options: Any) -> Iterator[Any]:
        for images, labels in self.batches.epoch(*args, **options):
            yield reduced(images, self.size), labels


def reduced(images: Tensor, size: int) -> Tensor:
    return interpolate(images, size=(size, size), mode="bilinear", antialias=True)


# --- latencies ---


@dataclass
class Stopwatch:
    """Latencies as shares of the teacher's, measured in the same rounds."""

    teacher: Network
    size: int
    settings: MeasureSettings

    def shares(
        self, networks: Mapping[str, nn.Module], sizes: Mapping[str, int] | None = None
    ) -> dict[str, float]:
        """sizes: of inputs, where they are not the teacher's."""
        plain = {name: unprepared(network) for name, network in networks.items()}
        inputs_of = {name: (noise(size),) for name, size in (sizes or {}).items()}
        report = measure_networks(
            {"teacher": unprepared(self.teacher), **plain},
            make("onnxruntime"),
            (noise(self.size),),
            self.settings,
            seed=0,
            inputs_of=inputs_of,
        )
        whole = report["teacher"].raw_ms
        return {name: report[name].raw_ms / whole for name in networks}

    def share(self, network: nn.Module, size: int | None = None) -> float:
        return self.shares({"one": network}, {"one": size or self.size})["one"]


def noise(size: int) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def unprepared(network: nn.Module) -> nn.Module:
    """A copy that is laid out in memory as a network is exported."""
    return copy.deepcopy(network).to(memory_format=torch.contiguous_format).eval()


# --- one seed ---


def run(args: argparse.Namespace, seed: int) -> list[Row]:
    bench = Bench(args, seed, photos(args, seed))
    linear, teacher = taught(bench)
    watch = Stopwatch(teacher, args.size, MeasureSettings(network_rounds=args.rounds))
    fits, candidates, scores = surrounded(bench, teacher)
    supernet = Supernet(space_around(teacher, candidates))
    costs = priced(bench, supernet)
    space = Surroundings(teacher, supernet, candidates, scores, costs)
    rows = [Row(1.0, "linear", 1.0, bench.accuracy(linear), bench.accuracy(teacher))]
    show(rows)
    task = distilled(TASK, fold(teacher).to(memory_format=torch.channels_last))
    for target in args.targets:
        networks: dict[str, tuple[Network, int]] = {}
        with bench.timed("choosing"):
            networks["search"] = searched(bench, space, target, watch), args.size
        limit = watch.share(networks["search"][0])
        for way in args.baselines:
            with bench.timed(f"{way} baseline at equal latency"):
                networks[way] = BASELINES[way](teacher, fits, watch, limit)
        shares = watch.shares(
            {way: network for way, (network, _) in networks.items()},
            {way: size for way, (_, size) in networks.items()},
        )
        for way, (network, size) in networks.items():
            before = bench.accuracy(network, size)
            with bench.timed("fine-tuning"):
                tuned = bench.tuned(network, TASK if way == "smaller" else task, size)
            label = way if size == args.size else f"{way}, {size} px"
            rows.append(Row(target, label, shares[way], before, bench.accuracy(tuned, size)))
        show(rows)
    console().print({part: round(value) for part, value in bench.seconds.items()})
    return rows


def photos(args: argparse.Namespace, seed: int) -> ImageData:
    """The data, normalised as the network's weights want it, and only so many of them."""
    data = load_data(args.data, DataSettings(), image_size=args.size, seed=seed)
    info = load_pretrained(args.network).input
    generator = torch.Generator().manual_seed(derive_seed(seed, "photos"))

    def some(part: str, count: int) -> Any:
        rows = data.rows[part]
        return rows[torch.randperm(len(rows), generator=generator)[:count].numpy()]

    train, held_out = some("train", args.photos), min(HELD_OUT, args.photos // 8)
    rows = {"train": train, "valid": train[:held_out], "search": train[held_out:]}
    rows["test"] = some("test", args.test)
    return replace(data, rows=rows, info=replace(data.info, mean=info.mean, std=info.std))


def taught(bench: Bench) -> tuple[Network, Network]:
    """The linear classifier on frozen features, and the teacher."""
    network = MACHINE.place(load_pretrained(bench.args.network).network).eval()
    assert isinstance(network, Network)
    classes = len(bench.data.info.classes)
    with bench.timed("classifier"):
        moments = collect_moments(network, bench.batches("train"), classes, MACHINE)
        network.replace_classifier(fit_classifier(moments).layer())
    file = bench.args.cache / f"teacher-{bench.seed}-{bench.args.photos}.pt"
    if file.exists():
        teacher = copy.deepcopy(network)
        teacher.load_state_dict(torch.load(file, weights_only=True))
        return network, teacher
    with bench.timed("teacher"):
        teacher = bench.tuned(network, TASK)
    # A rate that suits no data set of this size must not ruin what the classifier can do.
    teacher = max((teacher, network), key=bench.accuracy)
    torch.save(teacher.state_dict(), file)
    return network, teacher


def surrounded(
    bench: Bench, teacher: Network
) -> tuple[list[BlockFits], list[dict[str, nn.Module]], list[dict[str, float]]]:
    """Fits of every block, their candidates, and the candidates' scores."""
    with bench.timed("candidates"), torch.no_grad():
        inputs = block_inputs(teacher, bench.images("search", FIT, augment=bench.args.photos < FIT))
        fits = [BlockFits(b, x) for b, x in zip(teacher.blocks, inputs, strict=True)]
        candidates = [fit.candidates() for fit in fits]
    with bench.timed("scores"):
        scores = replacement_scores(teacher, candidates, bench.images("valid", HELD_OUT))
    for index, named in enumerate(scores):
        console().print(f"  block {index}: " + " ".join(f"{n} {v:.3f}" for n, v in named.items()))
    return fits, candidates, scores


def priced(bench: Bench, supernet: Supernet) -> Costs:
    """The latency of every candidate, from a table that the next run finds again."""
    supernet.model.to(memory_format=torch.contiguous_format)
    with bench.timed("latency table"):
        settings = MeasureSettings(rounds=bench.args.rounds, networks=6)
        inputs = (noise(bench.args.size),)
        table = measure_table(
            supernet,
            make("onnxruntime"),
            inputs,
            settings,
            seed=0,
            path=bench.args.cache / f"table-{bench.args.size}.json",
            force=True,
        )
    return latency_costs(supernet, trace(supernet, inputs), table)


@dataclass(frozen=True)
class Surroundings:
    """The space around a teacher: candidates with their scores and costs."""

    teacher: Network
    supernet: Supernet
    candidates: list[dict[str, nn.Module]]
    scores: list[dict[str, float]]
    costs: Costs


def searched(bench: Bench, space: Surroundings, target: float, watch: Stopwatch) -> Network:
    """The network of the least loss under the limit."""
    supernet, scores = space.supernet, space.scores
    whole = space.costs.cost_of("latency", (0,) * len(supernet.names))
    costs = space.costs.limited({"latency": target * whole})
    if bench.args.rescored:
        images = list(bench.images("valid", HELD_OUT))
        with bench.timed("scores around chosen networks"):
            scores = rescored(
                space.teacher,
                supernet,
                space.candidates,
                images,
                scores,
                costs,
                rounds=bench.args.rescored,
            )
    if bench.args.steps:
        through_gates(bench, supernet, costs, prior(supernet, scores, costs))
    else:
        with torch.no_grad():
            supernet.alpha.copy_(prior(supernet, scores))

    def measured(networks: Sequence[tuple[int, ...]]) -> list[tuple[float, float]]:
        derived = {str(i): supernet.derive(indices) for i, indices in enumerate(networks)}
        return [(whole * share, 0.0) for share in watch.shares(derived).values()]

    choice = choose(
        supernet,
        costs,
        DeriveSettings(top_k=1, measure_best=1, recalibrate_images=0),
        score=lambda _: (0.0, ()),
        measure=measured,
    )
    chosen = supernet.architecture(choice.chosen.indices).choices
    console().print(f"{target}x: " + " ".join(chosen.values()))
    network = supernet.derive(choice.chosen.indices)
    assert isinstance(network, Network)
    return network


def through_gates(bench: Bench, supernet: Supernet, costs: Costs, alpha: Tensor) -> None:
    """Architecture steps on the real loss, from the prior."""
    batches = bench.batches("search", augment=True)
    search = Search.from_settings(
        SearchSettings(batch_size=32, arch_learning_rate=ARCH_TRAVEL / bench.args.steps),
        costs=costs,
        train=batches,
        valid=batches,
        supernet=supernet,
        task=TASK,
        schedule=Schedule.architecture_alone(bench.args.steps),
        seed=bench.seed,
        machine=MACHINE,
        alpha=alpha,
        frozen_statistics=True,
    )
    with bench.timed("gates"):
        run_loop(search)
    supernet.model.to(memory_format=torch.contiguous_format)


def uniform(
    teacher: Network, fits: Sequence[BlockFits], watch: Stopwatch, limit: float
) -> tuple[Network, int]:
    def network(share: float) -> Network:
        return uniform_network(teacher, fits, share)

    share = largest_within(SHARES, lambda value: watch.share(network(value)), limit)
    return network(share or SHARES[0]), watch.size


def smaller(
    teacher: Network, fits: Sequence[BlockFits], watch: Stopwatch, limit: float
) -> tuple[Network, int]:
    sizes = [float(size) for size in range(32, watch.size + 1, 4)]
    size = largest_within(sizes, lambda value: watch.share(teacher, int(value)), limit)
    return teacher, int(size or sizes[0])


BASELINES = {"uniform": uniform, "smaller": smaller}

# --- what is printed ---


def console() -> Any:
    return output()


def show(rows: Sequence[Row]) -> None:
    """The mean over seeds of every row, with the standard deviation where there are several."""
    table = Table("target", "network", "latency", "before", "after fine-tuning")
    keys = list(dict.fromkeys((row.target, row.way.partition(",")[0]) for row in rows))
    for target, way in keys:
        same = [r for r in rows if (r.target, r.way.partition(",")[0]) == (target, way)]
        columns = [[r.latency for r in same], [r.before for r in same], [r.after for r in same]]
        latency, before, after = columns
        table.add_row(
            f"{target:g}x",
            same[0].way,
            f"{statistics.mean(latency):.3f}",
            *(percent(values) for values in (before, after)),
        )
    console().print(table)


def percent(values: Sequence[float]) -> str:
    text = f"{100 * statistics.mean(values):.1f}"
    return text + (f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    args, start = _arguments(), time.monotonic()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = [row for seed in args.seeds for row in run(args, seed)]
    if len(args.seeds) > 1:
        show(rows)
    console().print(f"took {duration(time.monotonic() - start)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flowers = Path(os.environ.get("PROXYLESSNAS_DATA", ".")) / "flowers"
    parser.add_argument("--data", default=str(flowers))
    parser.add_argument("--network", default="efficientnet_lite0")
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--photos", type=int, default=2000, help="for training")
    parser.add_argument("--test", type=int, default=1000, help="photos")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.7, 0.5, 0.35])
    parser.add_argument("--baselines", nargs="*", default=list(BASELINES), choices=BASELINES)
    parser.add_argument("--epochs", type=int, default=2, help="of every fine-tuning")
    parser.add_argument("--rate", type=float, default=0.002, help="of every fine-tuning")
    parser.add_argument("--rescored", type=int, default=2, help="rounds around chosen networks")
    parser.add_argument("--steps", type=int, default=0, help="architecture steps after the prior")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, default=10, help="of measuring")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("runs/pretrained"))
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
