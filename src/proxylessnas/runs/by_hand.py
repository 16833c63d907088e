"""What a user would do by hand, beside the network that was found: `--pretrained`'s baselines.

Always the same class; the linear classifier; the teacher as it is; the teacher at a smaller input
and a network narrowed alike in every block, both as large as keeps the measured latency of the
network that was found, and fine-tuned as long.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.config import TrainSettings
from proxylessnas.data import Batches
from proxylessnas.export.onnx import to_onnx
from proxylessnas.hardware.count import count_macs, count_parameters
from proxylessnas.hardware.precisions import paired_ratio
from proxylessnas.hardware.whole_networks import NetworkReport, measure_networks
from proxylessnas.io.console import Reporter
from proxylessnas.pretrained.space import largest_within
from proxylessnas.runs.specialised import SpecialisedProblem
from proxylessnas.runs.trials import learned, training_of_copy
from proxylessnas.seeds import derive_seed
from proxylessnas.session.deploying import as_deployed
from proxylessnas.session.durations import mean_seconds
from proxylessnas.session.exporting import exported_file, metadata_of
from proxylessnas.session.finishing import has_time, trained_network
from proxylessnas.session.problem import Problem
from proxylessnas.session.session import Session
from proxylessnas.training.evaluate import evaluate
from proxylessnas.training.ranks import Ranks
from proxylessnas.training.task import Task, batch_size
from proxylessnas.training.train import Training

SHARES = [share / 96 for share in range(8, 96)]  # of hidden channels, of uniform networks
LEAST_SIZE, SIZE_STEP = 32, 4  # pixels
ROAD = ("teach", "candidates", "search", "derive", "train")
SCRATCH = TrainSettings(learning_rate=0.025)  # as from scratch, with batches half as large
COMPARING_ROUNDS = 8  # of the search for a network as fast; the table's figures take all
STAGE, FILE = "by-hand", "by-hand/{}.onnx"


@dataclass(frozen=True, eq=False)
class Compared:
    """A network, the size of its input in pixels, and which test images it is right about.

    right: bool, in the order of the test part; of several ranks, of this one's share. file: that is
    measured, where there is one; else the network is.
    """

    network: nn.Module
    size: int
    accuracy: float
    right: Tensor
    file: Path | None = None

    @property
    def measurable(self) -> tuple[nn.Module | Path, int]:
        return self.file or self.network, self.size

    def alone(self, other: Compared, ranks: Ranks) -> list[int]:
        """How many images this one is right about and the other is not, and the other way round."""
        ours, theirs = self.right & ~other.right, other.right & ~self.right
        counts = torch.stack([ours.sum(), theirs.sum()]).double()
        ranks.sum([counts])
        return [round(count) for count in counts.tolist()]


def by_hand(session: Session, problem: SpecialisedProblem) -> None:
    """Train, evaluate and measure the baselines; one record for all."""
    session.records.require("train")
    title = "what one would do by hand, at the same latency"
    with session.records.stage(STAGE, title, session.callbacks) as facts:
        size, test = problem.data.info.shape[1], problem.batches("test", session.config)
        majority = session.records.require("teach")["majority_class"]
        facts["majority_accuracy"] = _share_of(majority, test)
        facts["linear_accuracy"] = _judged(session, problem.linear(), test, size).accuracy
        teacher = _judged(session, problem.teacher(), test, size)
        found = _found(session, test, size)
        rivals = dict(_rivals(session, problem, teacher.network, found))
        latencies = _latencies(session, {"teacher": teacher, "found": found, **rivals})
        facts["found_ms"] = latencies["found"]
        facts["baselines"] = {
            name: _row(session, row, latencies[name])
            for name, row in {"teacher": teacher, **rivals}.items()
        }
        for name, rival in rivals.items():
            facts["baselines"][name]["alone"] = found.alone(rival, session.ranks)
            if not session.is_int8:  # a file in float is not what was measured
                facts["baselines"][name]["file"] = file = FILE.format(name)
                session.ranks.of_main(partial(_write, session, file, rival))
                facts["files"] = [*facts["files"], file]


def _rivals(
    session: Session, problem: SpecialisedProblem, teacher: nn.Module, found: Compared
) -> Iterator[tuple[str, Compared]]:
    """What is as fast as the network found, as far as there is time, and such a thing."""
    if session.is_local and "latency" in session.limits:
        keeps = _as_fast_as(session, found)
        makers: dict[str, Any] = {"uniform": _uniform}
        if problem.takes_other_sizes:
            makers["smaller_input"] = _smaller_input
        for name, make in makers.items():
            if not has_time(session, session.records.require("train")["seconds"]):
                session.reporter.say(f"  {name}: left out, the budget has no time for it")
            elif (rival := make(session, problem, teacher, keeps)) is not None:
                yield name, rival
            else:
                session.reporter.say(f"  {name}: none is as fast as the network found")
    if session.config.from_scratch:
        yield "from_scratch", _from_scratch(session, problem)


def _as_fast_as(session: Session, found: Compared) -> Callable[..., bool]:
    """Whether a network with inputs of a size takes no longer, measured in the same rounds."""

    def keeps(network: nn.Module, size: int) -> bool:
        both = {"one": (network, size), "found": found.measurable}
        report = measured(session, both, rounds=COMPARING_ROUNDS)
        return paired_ratio(report["one"].raw, report["found"].raw).value <= 1

    return keeps


def _latencies(session: Session, rows: Mapping[str, Compared]) -> dict[str, float | None]:
    """Latencies that may be compared: all measured in the same rounds."""
    if not session.is_local:
        return dict.fromkeys(rows)
    report = measured(session, {name: row.measurable for name, row in rows.items()})
    return {name: report[name].raw_ms for name in rows}


def _row(session: Session, row: Compared, ms: float | None) -> dict[str, Any]:
    """A line of the table of networks."""
    image = torch.zeros((1, session.inputs[0].shape[1], row.size, row.size))
    return {
        "test_accuracy": row.accuracy,
        "measured_latency_ms": ms,
        "parameters": count_parameters(row.network),
        "macs": count_macs(_as_exported(row.network), (image,)),
        "image_size": row.size,
    }


def _write(session: Session, file: str, row: Compared) -> None:
    """The network as a file: one that is no worse than what was found may be wanted."""
    batch, channels, _, _ = session.inputs[0].shape
    shape = (channels, row.size, row.size)
    info = session.problem.input()
    metadata = metadata_of(None if info is None else replace(info, shape=shape))
    inputs = (torch.zeros((batch, *shape)),)
    session.store.write(file, to_onnx(_as_exported(row.network), inputs, metadata=metadata))


def _judged(
    session: Session,
    network: nn.Module,
    test: Batches,
    size: int,
    problem: Problem | None = None,
    file: Path | None = None,
) -> Compared:
    """A network on the test part, as the device computes it. problem, file: see `as_deployed`."""
    placed = session.machine.place(copy.deepcopy(network))
    right: list[Tensor] = []

    def see(inputs: Tensor, target: Tensor, output: Tensor) -> None:
        right.append((output.argmax(1) == target).cpu())

    task, ranks = session.problem.task, session.ranks
    with as_deployed(session, placed, problem, file) as deployed:
        score = evaluate(deployed, task, test, session.machine, ranks=ranks, see=see)
    return Compared(network, size, score.accuracy or 0.0, torch.cat(right), file)


def _found(session: Session, test: Batches, size: int) -> Compared:
    """The network found, of which `evaluate` has made the int8 file and knows the answers."""
    network = trained_network(session).cpu()
    file = exported_file(session) if session.is_int8 else None
    if session.right is None:  # an earlier process evaluated it
        return _judged(session, network, test, size, file=file)
    accuracy = session.records.require("evaluate")["accuracy"]
    return Compared(network, size, accuracy, session.right, file)


def _share_of(label: int, batches: Batches) -> float:
    right = total = 0
    for _, labels in batches.epoch(0):
        right += int((labels == label).sum())
        total += batch_size(labels)
    return right / max(1, total)


def measured(
    session: Session,
    networks: Mapping[str, tuple[nn.Module | Path, int]],
    rounds: int | None = None,
) -> NetworkReport:
    """Latencies now, of files, and of networks that are laid out in memory as they are exported."""
    batch, channels, _, _ = session.inputs[0].shape
    generator, settings = torch.Generator().manual_seed(0), session.config.measure
    inputs = {
        name: (torch.randn((batch, channels, size, size), generator=generator),)
        for name, (_, size) in networks.items()
    }
    return measure_networks(
        {
            name: network if isinstance(network, Path) else _as_exported(network)
            for name, (network, _) in networks.items()
        },
        session.runtime,
        session.inputs,
        replace(settings, network_rounds=min(settings.network_rounds, rounds or 10**6)),
        seed=session.config.seed,
        inputs_of=inputs,
    )


def _as_exported(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format).eval()


def _tuned(
    session: Session, network: nn.Module, task: Task, train: Batches, name: str
) -> nn.Module:
    """Fine-tuned as long as the network that was found."""
    settings = replace(session.config.train, keep_best="never", patience=None)
    return learned(session, training_of_copy(session, network, task, train, settings, name))


# --- from scratch ---


def _from_scratch(session: Session, problem: SpecialisedProblem) -> Compared:
    """The network that was found, from fresh weights for as long as the whole road took."""
    config, seconds = session.config, 0.0
    for stage in ROAD:
        seconds += session.records.require(stage)["seconds"]
    torch.manual_seed(derive_seed(config.seed, "from scratch"))
    network = problem.network(session.load_architecture("architecture.json"), config)
    task, train = problem.task_of_labels(config), problem.batches("train", config)

    def job(epochs: float) -> Training:
        settings = replace(SCRATCH, epochs=epochs, batch_size=config.train.batch_size)
        return training_of_copy(session, network, task, train, settings, "from scratch")

    probe = job(1.0)
    undo = probe.prepare()
    step = session.ranks.of_main(lambda: mean_seconds(probe.take_step, 3, probe))
    undo()
    trained = learned(session, job(max(1.0, seconds / step) / len(train)))
    return _judged(session, trained, problem.batches("test", config), problem.data.info.shape[1])


# --- a smaller input ---


def _smaller_input(
    session: Session, problem: SpecialisedProblem, teacher: nn.Module, keeps: Callable[..., bool]
) -> Compared | None:
    """The teacher at the largest input that keeps the latency, with images decoded at that size."""
    full = problem.data.info.shape[1]
    sizes = list(range(LEAST_SIZE, full, SIZE_STEP))

    size = largest_within(sizes, lambda size: keeps(teacher, size))
    if size is None:
        return None
    config = replace(session.config, image_size=size)
    session.reporter.say(f"  smaller_input: {size} pixels, at which the images are read anew")
    quiet = Reporter(quiet=True)  # what was read has been said
    smaller = SpecialisedProblem(config, quiet, session.store, problem.loaders)
    train = smaller.batches("train", config)
    task = problem.task_of_labels(config)
    network = _tuned(session, teacher, task, train, "smaller input")
    return _judged(session, network, smaller.batches("test", config), size, smaller)


# --- narrower everywhere ---


def _uniform(
    session: Session, problem: SpecialisedProblem, teacher: nn.Module, keeps: Callable[..., bool]
) -> Compared | None:
    """All blocks narrowed alike by least squares, distilled as the network that was found."""
    config, size = session.config, problem.data.info.shape[1]
    of_size, fitted = problem.narrowed_alike(session)
    share = largest_within(SHARES, lambda share: keeps(of_size(share), size))
    if share is None:
        return None
    train = problem.batches("train", config)
    network = _tuned(session, fitted(share), problem.training_task(config), train, "narrower")
    return _judged(session, network, problem.batches("test", config), size)
