"""Any trained model under a latency limit: the network that is chosen beside what one would do.

    python benchmarks/specialise.py [--models resnet18 vit] [--targets 0.7 0.5 0.35]
        [--seeds 0 1 2] [--ways chosen no-factors uniform] [--epochs 2] [--out runs/specialise]

Every model is trained here first. Then, for every limit: the network that `specialise` chooses; the
one that it chooses without low ranks, and without kernels split into a column and a row
(`no-factors`, what `specialise(candidates=)` leaves out); the model with all its choices narrowed
alike and refitted by least squares; and, where torch-pruning is installed (`pip install
torch-pruning`), its uniform and its global pruning by group magnitude. The last three are the
largest that take as long as the chosen network, or two percent more, in the same rounds; an
asterisk marks cells that are off by more, where no width between is to be had. A cell is the
accuracy on the test part before -> after an equal fine-tuning with the model as teacher, and the
share of the model's latency, the networks of a line measured together. After torch-pruning, which
leaves the statistics of normalisations as the whole model has them, these are renewed first. A
model that is trained, measured and scored is read again from `--out`; `cells.json` there has all
figures, and what is in it is not done again: a benchmark that was stopped goes on, and further
`--ways` are added.

CIFAR-10 (5,000 images, 32 px) and flowers (64 px) are looked for under PROXYLESSNAS_DATA.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.util
import json
import os
import runpy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from proxylessnas.config import DataSettings, MeasureSettings, TrainSettings
from proxylessnas.data import Batches, LoaderBatches, load_data
from proxylessnas.errors import LimitError
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.whole_networks import measure_networks
from proxylessnas.io.console import Reporter, output
from proxylessnas.io.files import write_atomic
from proxylessnas.pretrained.space import largest_within
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.session.records import Records
from proxylessnas.surgery.around import Around, around, measured, uniform_network
from proxylessnas.surgery.brought import Trained, inputs_of
from proxylessnas.surgery.candidates import KINDS, LOW_RANK
from proxylessnas.surgery.found import Found, find
from proxylessnas.surgery.specialise import FINETUNE, finetuning, within
from proxylessnas.training.device import Machine
from proxylessnas.training.evaluate import evaluate, recalibrate
from proxylessnas.training.loop import run_loop
from proxylessnas.training.ranks import ALONE
from proxylessnas.training.task import Task
from proxylessnas.training.train import Training

WAYS = ("chosen", "no-factors", "uniform", "pruning-uniform", "pruning-global")
WITHOUT = {"no-factors": tuple(kind for kind in KINDS if kind != LOW_RANK)}  # kinds of candidates
PRUNING = importlib.util.find_spec("torch_pruning") is not None
EPOCHS = 2.0  # of every fine-tuning
SHARES = [share / 48 for share in range(4, 48)]  # of the channels, of the rivals
MATCH = 0.02  # of the chosen network's latency, that a rival's may be off by
ROUNDS = 8  # of the search for a rival as fast; a line's figures take all
RENEWED = 1000  # training examples, for statistics after torch-pruning
NOISE = 1.6  # standard deviation, of sounds of amplitude 1
BATCH, LEARN = 64, TrainSettings(optimizer="adamw", learning_rate=2e-3, warmup_epochs=0.5)
EXAMPLES, TASKS = Path(__file__).resolve().parent.parent / "examples", "specialise_tasks.py"

Parts = Mapping[str, Batches]  # search, valid, test


@dataclass(frozen=True)
class Subject:
    """A model to be trained and narrowed. data: of a seed. epochs: of its training. takes_list: of
    images, in place of a batch.
    """

    make: Callable[[], nn.Module]
    data: Callable[[int], Parts]
    inputs: tuple[int, ...]
    epochs: int
    task: Task = dataclasses.field(default_factory=Task.classification)
    takes_list: bool = False

    @property
    def example(self) -> tuple[Any, ...]:
        """The arguments of one forward pass."""
        image = torch.zeros(self.inputs)
        return ([image],) if self.takes_list else (image[None],)


# --- what is narrowed ---


def photos(name: str, size: int, limit: int | None, seed: int) -> Parts:
    spec = str(Path(os.environ.get("PROXYLESSNAS_DATA", ".")) / name)
    data = load_data(spec, DataSettings(limit=limit), image_size=size, seed=seed)
    learned = data.batches("search", BATCH, augment=True, shuffle=True, seed=seed)
    plain = {part: data.batches(part, BATCH) for part in ("valid", "test")}  # type: ignore[arg-type]
    return {"search": learned, **plain}


def tensors(make: Callable[..., TensorDataset], seed: int) -> Parts:
    sizes = {"search": 4096, "valid": 1024, "test": 2048}
    return {
        part: LoaderBatches(
            DataLoader(make(size, seed=3 * seed + k), BATCH, shuffle=part == "search"), name=part
        )
        for k, (part, size) in enumerate(sizes.items())
    }


def sounds(count: int, seed: int) -> TensorDataset:
    """The example's in so much noise that the model is not right about all of them."""
    clear, kind = _of_example("audio1d.py", "waveforms")(count, seed=seed).tensors
    generator = torch.Generator().manual_seed(10_000 + seed)
    return TensorDataset(clear + NOISE * torch.randn(clear.shape, generator=generator), kind)


def boxes(seed: int) -> Parts:
    """Of the example's shapes: lists of images, and of boxes with their classes."""
    sizes = {"search": 1024, "valid": 256, "test": 512}
    example = ([torch.zeros(SUBJECTS["detector"].inputs)],)
    parts: dict[str, Batches] = {}
    for k, (part, size) in enumerate(sizes.items()):
        generator = torch.Generator().manual_seed(3 * seed + k)
        images: Any = [_of_example(TASKS, "boxed")(generator) for _ in range(size)]
        collate = _of_example(TASKS, "lists")
        loader = DataLoader(images, BATCH, shuffle=part == "search", collate_fn=collate)
        parts[part] = LoaderBatches(loader, name=part, example=example)
    return parts


def detected(output: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    """Images whose highest score is of the right class, in a cell within the object's box."""
    scores = output["scores"]
    label, row, column = torch.unravel_index(scores.flatten(1).argmax(1), scores.shape[1:])
    boxes = torch.stack([target["boxes"][0] for target in targets])
    cell = SUBJECTS["detector"].inputs[1] / scores.shape[2]
    centres = (torch.stack((column, row), 1) + 0.5) * cell
    inside = ((centres - boxes[:, :2]).abs() <= boxes[:, 2:] / 2).all(1)
    return (inside & (label == torch.cat([target["labels"] for target in targets]))).sum()


def transformer() -> nn.Module:
    vit = importlib.import_module("timm.models.vision_transformer").VisionTransformer
    model: nn.Module = vit(
        img_size=32, patch_size=4, embed_dim=96, depth=6, num_heads=3, num_classes=10
    )
    return model


def convnext() -> nn.Module:
    model: nn.Module = importlib.import_module("timm").create_model(
        "convnext_atto", num_classes=5, depths=(2, 2, 4, 2), dims=(24, 48, 96, 192)
    )
    return model


class Segmenter(nn.Module):
    """An encoder of residual blocks and a decoder with a skip, pixel by pixel."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        block = torchvision.models.resnet.BasicBlock
        conv = torchvision.ops.Conv2dNormActivation
        self.stem = conv(1, width, 3)
        self.down = conv(width, 2 * width, 3, stride=2)
        self.deep = nn.Sequential(*(block(2 * width, 2 * width) for _ in range(3)))
        self.up = nn.Sequential(nn.Upsample(scale_factor=2.0), conv(2 * width, width, 3))
        self.head = nn.Sequential(conv(2 * width, width, 3), nn.Conv2d(width, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.stem(x)
        out: Tensor = self.head(torch.cat((self.up(self.deep(self.down(shallow))), shallow), 1))
        return out


@cache
def _of_example(file: str, name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / file))[name]


PIXELS = Task(
    loss=nn.functional.cross_entropy,
    correct=lambda output, target: (output.argmax(1) == target).float().mean((1, 2)).sum(),
)
CIFAR, FLOWERS = (3, 32, 32), (3, 64, 64)
SUBJECTS: dict[str, Subject] = {
    "resnet18": Subject(
        partial(torchvision.models.resnet18, num_classes=10),
        partial(photos, "cifar10", 32, 5000),
        CIFAR,
        8,
    ),
    "mobilenet_v3_small": Subject(
        partial(torchvision.models.mobilenet_v3_small, num_classes=5),
        partial(photos, "flowers", 64, None),
        FLOWERS,
        20,
    ),
    "vit": Subject(transformer, partial(photos, "cifar10", 32, 5000), CIFAR, 15),
    "convnext": Subject(convnext, partial(photos, "flowers", 64, None), FLOWERS, 20),
    "audio": Subject(
        lambda: _of_example("specialise.py", "network")(),
        partial(tensors, sounds),
        (1, 512),
        6,
    ),
    "segmentation": Subject(
        Segmenter,
        partial(tensors, lambda *a, **k: _of_example("segmentation.py", "scenes")(*a, **k)),
        (1, 32, 32),
        3,
        PIXELS,
    ),
    "detector": Subject(
        lambda: _of_example(TASKS, "Detector")(),
        boxes,
        (1, 48, 48),
        12,
        Task(loss=lambda *a: _of_example(TASKS, "detection_loss")(*a), correct=detected),
        takes_list=True,
    ),
}


def trained(subject: Subject, parts: Parts, seed: int, path: Path) -> nn.Module:
    """The model with its weights, learned where `path` does not hold them."""
    torch.manual_seed(seed)
    model = subject.make()
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    job = Training(
        network=model,
        task=subject.task,
        train=parts["search"],
        settings=dataclasses.replace(LEARN, epochs=subject.epochs, batch_size=BATCH),
        seed=seed,
    )
    run_loop(job)
    torch.save(model.state_dict(), path)
    return model.eval()


# --- what one would do ---


def pruned(model: nn.Module, inputs: tuple[Tensor, ...], everywhere: bool, share: float) -> Any:
    """By torch-pruning at its defaults, of widths in eights. everywhere: rank all layers as one."""
    tp: Any = importlib.import_module("torch_pruning")
    network = copy.deepcopy(model)
    last = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    pruner = tp.pruner.BasePruner(
        network,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=everywhere,
        pruning_ratio=1 - share,
        max_pruning_ratio=0.9,
        round_to=8,
        ignored_layers=[last],
    )
    pruner.step()
    return network.eval()


class Rivals:
    """Networks of a share of the channels, by the way that makes them."""

    def __init__(self, found: Found) -> None:
        self.found, brought = found, found.brought
        self.sizes: dict[str, Callable[[float], nn.Module]] = {
            "uniform": partial(uniform_network, found)
        }
        if PRUNING:
            for way, everywhere in (("pruning-uniform", False), ("pruning-global", True)):
                self.sizes[way] = partial(pruned, brought.model, brought.inputs, everywhere)

    def largest(self, way: str, keeps: Callable[[nn.Module], bool]) -> nn.Module | None:
        """The largest network that keeps the latency."""
        try:
            share = largest_within(SHARES, lambda share: keeps(self.sizes[way](share)))
        except Exception as error:  # whatever the other library raises on a model
            output().print(f"  {way}: {type(error).__name__}: {str(error)[:100]}")
            return None
        if share is None:
            return None
        if way == "uniform":
            return uniform_network(self.found, share, inputs_of(self.found.brought.train))
        return self.sizes[way](share)


# --- the table ---


class Cells:
    """What was measured so far, in a file: of each model, seed, limit and epochs all ways."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
        for row in self.rows:
            row.setdefault("epochs", EPOCHS)  # of files that were written before they said so
            row["ways"] = {way.replace(" ", "-"): cell for way, cell in row["ways"].items()}

    def row(self, **key: Any) -> dict[str, Any]:
        """A line of the table, empty where nothing of it is known."""
        for row in self.rows:
            if all(row[name] == value for name, value in key.items()):
                return row
        self.rows.append({**key, "ways": {}})
        return self.rows[-1]

    def write(self) -> None:
        write_atomic(self.path, json.dumps(self.rows, indent=1).encode())


def networks_of(
    space: Around, rivals: Rivals, target: float, ways: Iterable[str]
) -> tuple[dict[str, nn.Module | None], dict[str, float]]:
    """The networks of the ways, None where none is to be had, and their shares of the latency."""
    brought = space.brought

    def ms(networks: Mapping[str, nn.Module], rounds: int) -> dict[str, float]:
        settings = dataclasses.replace(brought.measure, network_rounds=rounds)
        both = {**networks, "model": brought.model}
        report = measure_networks(both, brought.runtime, brought.inputs, settings, seed=0)
        return {name: report[name].raw_ms for name in both}

    def searched(kinds: tuple[str, ...]) -> nn.Module | None:
        try:
            return within(space, f"{target}x", kinds).network
        except LimitError as error:
            output().print(f"  {error}")
            return None

    chosen = searched(KINDS)  # read again, where it was searched before

    def keeps(network: nn.Module) -> bool:
        both = {"one": network} if chosen is None else {"one": network, "chosen": chosen}
        now = ms(both, ROUNDS)
        limit = now["chosen"] if chosen is not None else target * now["model"]
        return now["one"] <= (1 + MATCH) * limit

    networks: dict[str, nn.Module | None] = {"chosen": chosen}
    for way in ways:
        if way in WITHOUT:
            networks[way] = searched(WITHOUT[way])
        elif way in rivals.sizes:
            networks[way] = rivals.largest(way, keeps)
    made = {way: network for way, network in networks.items() if network is not None}
    shares = ms(made, brought.measure.network_rounds)
    return networks, {way: shares[way] / shares["model"] for way in made}


def _accuracy(network: nn.Module, brought: Trained, test: Batches) -> float:
    return evaluate(network, brought.task, test, Machine()).accuracy or 0.0


def run(name: str, seed: int, args: argparse.Namespace, cells: Cells) -> None:
    """Fill in what is missing of a model's lines."""
    rows = [
        cells.row(model=name, seed=seed, target=target, epochs=args.epochs)
        for target in args.targets
    ]
    rows = [row for row in rows if set(args.ways) - set(row["ways"])]
    if not rows:
        return
    subject, out = SUBJECTS[name], args.out / f"{name}-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    parts, start = subject.data(seed), time.monotonic()
    model = trained(subject, parts, seed, out / "model.pth")
    reporter = Reporter()
    brought = Trained(
        model=model,
        inputs=subject.example,
        task=subject.task,
        train=parts["search"],
        valid=parts["valid"],
        runtime=make("onnxruntime", threads=1),
        measure=MeasureSettings(),
        seed=seed,
        reporter=reporter,
        records=Records(RunDirectory(out), ALONE, reporter),
    )
    found = find(brought)
    space = around(found, measured(found))
    teacher, rivals = _accuracy(model, brought, parts["test"]), Rivals(found)
    output().print(f"{name}, seed {seed}: {100 * teacher:.1f} %, {time.monotonic() - start:.0f} s")
    for row in rows:
        start = time.monotonic()
        row["own"], missing = teacher, [way for way in args.ways if way not in row["ways"]]
        networks, shares = networks_of(space, rivals, row["target"], missing)
        for way in missing:
            row["ways"][way] = None
            if (network := networks.get(way)) is not None:
                if way.startswith("pruning"):
                    recalibrate(network, parts["search"], RENEWED, Machine())
                before = _accuracy(network, brought, parts["test"])
                settings = dataclasses.replace(FINETUNE, epochs=args.epochs)
                run_loop(finetuning(brought, network, settings))
                after = _accuracy(network, brought, parts["test"])
                row["ways"][way] = (before, after, shares[way])
            cells.write()
        seconds = time.monotonic() - start
        output().print(f"{name} at {row['target']:g}x: {seconds:.0f} s")


def show(rows: list[dict[str, Any]], ways: Iterable[str]) -> None:
    """Means over the seeds, with the standard deviation where there are several."""
    table = Table("model", "limit", "the model", *ways)
    for name, target in dict.fromkeys((row["model"], row["target"]) for row in rows):
        same = [row for row in rows if (row["model"], row["target"]) == (name, target)]
        columns = []
        for way in ways:
            known = [row["ways"][way] for row in same if row["ways"].get(way) is not None]
            if not known:
                columns.append("-")
                continue
            before, after, share = zip(*known, strict=True)
            chosen = [row["ways"].get("chosen") or known[0] for row in same]
            off = abs(statistics.mean(share) / statistics.mean(c[2] for c in chosen) - 1) > MATCH
            cell = f"{percent(before)} -> {percent(after)} ({statistics.mean(share):.2f})"
            columns.append(cell + "*" * off)
        table.add_row(name, f"{target:g}x", percent(row["own"] for row in same), *columns)
    output().print(table)


def percent(values: Iterable[float]) -> str:
    several = [100 * value for value in values]
    spread = f" ± {statistics.stdev(several):.1f}" if len(several) > 1 else ""
    return f"{statistics.mean(several):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SUBJECTS), choices=SUBJECTS)
    parser.add_argument("--targets", type=float, nargs="+", default=[0.7, 0.5, 0.35])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="of every fine-tuning")
    parser.add_argument("--out", type=Path, default=Path("runs/specialise"))
    args = parser.parse_args()
    args.ways = [way for way in args.ways if PRUNING or not way.startswith("pruning")]
    args.out.mkdir(parents=True, exist_ok=True)
    cells = Cells(args.out / "cells.json")
    for seed in args.seeds:
        for name in args.models:
            run(name, seed, args, cells)
    show([row for row in cells.rows if row["epochs"] == args.epochs], args.ways)


if __name__ == "__main__":
    main()
