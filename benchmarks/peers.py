"""The same search by this library, by others and at random: cost a step, limit, accuracy.

    python benchmarks/peers.py [--data mnist5k] [--space macro] [--widths 16,32] [--depths 2,2]
        [--side 16] [--batch 64] [--share 0.5] [--epochs 4] [--train-epochs 4] [--seed 0]
        [--device cpu] [--autocast] [--compile] [--steps-alone]

Everyone is given the same model (a space of these widths), the same images, the same number
of weight steps with an architecture step after every second one, and the same limit of MACs (a
share of the largest network's). The network that each comes to is trained from scratch, all alike,
and tested. Columns: ms and MiB (peak of live tensors) of a weight and of an architecture step,
MACs of the network as a share of the limit, whether the limit is kept, and the test accuracy.

proxylessnas: two-path steps, the constraint, decoding under the limit.
darts: all candidates run and are weighted (eq. 1 of the paper), in steps of both kinds; at the end
    the most probable of each.
random: uniform paths train the weights; the best of as many random networks within the limit as
    take the time of the architecture steps, by the shared weights.
nni: ProxylessMixedLayer of NNI 3.0 with its penalty |E[cost] / limit − 1| (weight 1), where it is
    installed; `export` of its strategy draws a network from α, and so does this.

PLiNIO is not on PyPI. In its SuperNet (github.com/eml-eda/plinio, `plinio/methods/supernet`, the
README and `nn/combiner.py`) the outputs of all candidates are weighted and added, as in DARTS, and
a cost joins the loss times a strength that the user finds by hand: a limit is not an input.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from nas_bench_201 import listed
from rich.table import Table as Printed
from step import peak_memory
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from proxylessnas.config import (
    DataSettings,
    DeriveSettings,
    MachineSettings,
    SearchSettings,
    TrainSettings,
)
from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import Indices
from proxylessnas.core.gates import Mixture
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import Supernet
from proxylessnas.data import BatchStream, load_data
from proxylessnas.hardware.costs import count_costs
from proxylessnas.hardware.trace import trace
from proxylessnas.io.console import output
from proxylessnas.selection.choose import choose
from proxylessnas.selection.propose import sample_within
from proxylessnas.spaces import build_supernet
from proxylessnas.training.device import make_machine, wait
from proxylessnas.training.evaluate import evaluate, recalibrate
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import Task
from proxylessnas.training.train import Training

ARCH_EVERY = 2
MIB = 1 << 20
SCORED, RENEWED = 500, 500  # images of a score


@dataclass
class Outcome:
    """What someone comes to; seconds and bytes of a weight and of an architecture step."""

    network: Indices | None = None
    seconds: tuple[float, float] = (0.0, 0.0)
    bytes: tuple[float, float] = (0.0, 0.0)


class Setting:
    """What all are given."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.machine = make_machine(
            MachineSettings(
                device=args.device,
                memory_format="channels_last",
                autocast=args.autocast,
                compile=args.compile,
            )
        )
        self.data = load_data(args.data, DataSettings(), image_size=args.side, seed=args.seed)
        self.settings = {"widths": args.widths, "depths": args.depths} if args.widths else {}
        supernet = self.supernet()
        channels = self.data.info.shape[0]
        example = torch.zeros(1, channels, args.side, args.side)
        costs = count_costs(supernet, trace(supernet, (example,)))
        self.limit = args.share * costs.range(supernet.mask)[0][1]
        self.costs = costs.limited({"macs": self.limit})
        self.steps = args.epochs * len(self.batches("search"))

    def supernet(self) -> Supernet:
        torch.manual_seed(self.args.seed)
        return build_supernet(self.args.space, self.settings, input=self.data.info)

    def batches(self, part: str, size: int | None = None) -> Any:
        size = size or self.args.batch
        return self.data.batches(part, size, shuffle=True, seed=self.args.seed)

    def search(self, estimator: str, costs: Costs) -> Search:
        settings = SearchSettings(
            warmup_epochs=0.0,
            epochs=self.args.epochs,
            arch_every=ARCH_EVERY,
            learning_rate=0.05,
            batch_size=self.args.batch,
            estimator=estimator,  # type: ignore[arg-type]
        )
        schedule = Schedule(
            warmup=self.steps // 4,
            total=self.steps,
            arch_every=ARCH_EVERY,
            arch_from=self.steps // 4,
        )
        return Search.from_settings(
            settings,
            supernet=self.supernet(),
            task=Task.classification(),
            train=self.batches("search"),
            valid=self.batches("valid"),
            costs=costs,
            schedule=schedule,
            seed=self.args.seed,
            machine=self.machine,
        )

    def score(self, supernet: Supernet, network: Indices) -> tuple[float, tuple[float, ...]]:
        model = supernet.derive(network)
        recalibrate(model, self.batches("search", 250), RENEWED, self.machine)
        valid = self.batches("valid", 125)
        return evaluate(model, Task.classification(), valid, self.machine, examples=SCORED).rank

    def accuracy(self, network: Indices) -> float:
        """On the test part, after the same training from scratch."""
        torch.manual_seed(self.args.seed + 1)
        model = self.supernet().derive(network)
        training = Training(
            network=model,
            task=Task.classification(),
            train=self.batches("train"),
            settings=TrainSettings(epochs=self.args.train_epochs, batch_size=self.args.batch),
            seed=self.args.seed,
            machine=self.machine,
        )
        run_loop(training)
        test = evaluate(model, Task.classification(), self.batches("test", 250), self.machine)
        return float(test.accuracy or 0.0)


def cost_of(step: Callable[[], object], rounds: int = 15) -> tuple[float, float]:
    """(median seconds, the most bytes at the peak) of a step, whose paths differ each time."""
    step()
    seconds, peaks = [], []
    for _ in range(rounds // 3):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            peaks.append(torch.cuda.max_memory_allocated() - before)
        else:
            peaks.append(peak_memory(step))
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        step()
        wait()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), float(max(peaks))


def costs_of_steps(job: Search) -> Outcome:
    """Of a search that is thrown away afterwards."""

    def next_step(step: Callable[[], None]) -> None:
        job.step += 1  # another number: other paths
        step()

    undo = job.prepare()
    weight = cost_of(partial(next_step, job.weight_step))
    job.step = max(job.step, job.schedule.arch_from)
    learns = job.estimator.learns
    arch = cost_of(partial(next_step, job.architecture_step)) if learns else (0.0, 0.0)
    undo()
    return Outcome(seconds=(weight[0], arch[0]), bytes=(weight[1], arch[1]))


# --- those who search ---


def ours(setting: Setting) -> Outcome:
    outcome = costs_of_steps(setting.search("two_path", setting.costs))
    if not setting.args.steps_alone:
        job = setting.search("two_path", setting.costs)
        run_loop(job)
        settings, score = DeriveSettings(top_k=20), partial(setting.score, job.supernet)
        outcome.network = choose(job.supernet, job.costs, settings, score=score).chosen.indices
    return outcome


def at_random(setting: Setting) -> Outcome:
    outcome = costs_of_steps(setting.search("random", setting.costs))
    if not setting.args.steps_alone:
        job = setting.search("random", setting.costs)
        run_loop(job)
        # A score takes about as long as the images that it looks at take a two-path step forward.
        count = round(job.schedule.architecture_steps * 3 * setting.args.batch / (SCORED + RENEWED))
        generator = torch.Generator().manual_seed(setting.args.seed)
        drawn = dict.fromkeys(sample_within(job.supernet.mask, setting.costs, generator))
        outcome.network = max(
            list(drawn)[: count + 20], key=lambda n: setting.score(job.supernet, n)[0]
        )
    return outcome


# --- those whose loop is another ---


def alternating(
    setting: Setting,
    model: nn.Module,
    alphas: Sequence[nn.Parameter],
    loss_of: Callable[[str], Tensor],
    penalty: Callable[[], Tensor | float],
) -> Outcome:
    """Weight steps and architecture steps in turn. loss_of: of the next batch of a part."""
    chosen = {id(alpha) for alpha in alphas}
    weights = [p for p in model.parameters() if id(p) not in chosen]
    optimizer = torch.optim.SGD(weights, lr=0.05, momentum=0.9, nesterov=True)
    arch_steps = (setting.steps - setting.steps // 4) // ARCH_EVERY
    arch = torch.optim.Adam(alphas, lr=10 / arch_steps, betas=(0.0, 0.999))

    def step(part: str, optimizer_of_part: torch.optim.Optimizer) -> None:
        loss = loss_of(part) + (penalty() if part == "valid" else 0.0)
        loss.backward()
        optimizer_of_part.step()
        optimizer.zero_grad()
        arch.zero_grad()

    model.train()
    weight_step, arch_step = partial(step, "search", optimizer), partial(step, "valid", arch)
    weight, both = cost_of(weight_step), cost_of(arch_step)
    for done in range(0 if setting.args.steps_alone else setting.steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - done / setting.steps)
        weight_step()
        if done >= setting.steps // 4 and (done + 1) % ARCH_EVERY == 0:
            arch_step()
    return Outcome(seconds=(weight[0], both[0]), bytes=(weight[1], both[1]))


def darts(setting: Setting) -> Outcome:
    """First order; all candidates run in both kinds of step."""
    machine, supernet = setting.machine, setting.supernet()
    model = machine.place(supernet.model)
    rows = [
        nn.Parameter(1e-3 * torch.randn(len(c), device=machine.device)) for c in supernet.candidates
    ]
    streams = {part: BatchStream(setting.batches(part)) for part in ("search", "valid")}

    def loss_of(part: str) -> Tensor:
        images, target = machine.put(streams[part].draw())
        with supernet.gated([Mixture(a.softmax(0)) for a in rows]), machine.precision():
            return cross_entropy(model(images), target)

    outcome = alternating(setting, model, rows, loss_of, lambda: 0.0)
    if not setting.args.steps_alone:
        outcome.network = tuple(int(a.argmax()) for a in rows)
    return outcome


def nni(setting: Setting) -> Outcome:
    """NNI's own layer in the place of ours, with the same candidates."""
    from nni.mutable.frozen import frozen_context
    from nni.nas.oneshot.pytorch.supermodule.proxyless import ProxylessMixedLayer

    machine, supernet = setting.machine, setting.supernet()
    model = machine.place(supernet.model)
    alphas, layers = [], []
    for mixed, path in supernet.paths.items():
        alpha = nn.Parameter(1e-3 * torch.randn(len(mixed.names), device=machine.device))
        candidates = dict(mixed.candidates.items())
        with frozen_context({path: mixed.names[0]}):  # outside of one of its own model spaces
            layer = ProxylessMixedLayer(candidates, alpha, nn.Softmax(-1), path)
        model.set_submodule(path, layer)
        alphas.append(alpha)
        layers.append(layer)
    macs = setting.costs.per_candidate[0].to(machine.device)
    streams = {part: BatchStream(setting.batches(part)) for part in ("search", "valid")}

    def loss_of(part: str) -> Tensor:
        images, target = machine.put(streams[part].draw())
        memo: dict[str, Any] = {}
        for layer in layers:
            memo.update(layer.resample(memo))
        with machine.precision():
            return cross_entropy(model(images), target)

    def penalty() -> Tensor:
        p = torch.stack([a.softmax(0) for a in alphas])
        expected = (macs[:, : p.shape[1]] * p).sum() + float(setting.costs.fixed[0])
        return (expected / setting.limit - 1).abs()

    outcome = alternating(setting, model, alphas, loss_of, penalty)
    if not setting.args.steps_alone:
        p = torch.stack([a.detach().softmax(0) for a in alphas])
        outcome.network = tuple(torch.multinomial(p, 1)[:, 0].tolist())
    return outcome


PEERS: dict[str, Callable[[Setting], Outcome]] = {
    "proxylessnas": ours,
    "darts": darts,
    "random": at_random,
    "nni": nni,
}


def main() -> None:
    args = _arguments()
    setting = Setting(args)
    table = Printed(title=f"Limit {setting.limit:,.0f} MACs, {setting.steps} weight steps each")
    columns = ("weight step ms", "MiB", "architecture step ms", "MiB", "MACs / limit", "kept")
    for column in ("", *columns, "test accuracy %"):
        table.add_column(column, justify="right")
    for name in args.peers:
        try:
            outcome = PEERS[name](setting)
        except ModuleNotFoundError as error:
            table.add_row(name, f"not installed: {error.name}")
            continue
        table.add_row(name, *_cells(setting, outcome))
    output().print(table)


def _cells(setting: Setting, outcome: Outcome) -> Sequence[str]:
    cells = []
    for seconds, peak in zip(outcome.seconds, outcome.bytes, strict=True):
        cells += [f"{1e3 * seconds:.1f}", f"{peak / MIB:.1f}"]
    if outcome.network is None:
        return cells
    used = setting.costs.of(outcome.network)[0] / setting.limit
    accuracy = 100 * setting.accuracy(outcome.network)
    return [*cells, f"{used:.2f}", "yes" if used <= 1 else "no", f"{accuracy:.2f}"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--data", default="mnist5k")
    add("--space", default="macro")
    add("--batch", type=int, default=64)
    add("--widths", type=partial(listed, int), default=[16, 32])
    add("--depths", type=partial(listed, int), default=[2, 2])
    add("--side", type=int, default=16, help="of the images, in pixels")
    add("--share", type=float, default=0.5, help="of the largest network's MACs: the limit")
    add("--epochs", type=int, default=4, help="of the search")
    add("--train-epochs", type=int, default=4, help="of the network found")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--autocast", action="store_true", help="bfloat16")
    add("--compile", action="store_true", help="candidates by torch.compile")
    add("--steps-alone", action="store_true", help="no search: only what steps cost")
    add("--peers", type=partial(listed, str), default=list(PEERS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
