"""From trained weights: the network that is found beside what one would do by hand.

    python benchmarks/pretrained.py [--sets flowers cifar10] [--targets 0.7 0.5 0.35]
        [--seeds 0 1 2] [--leave-out PART...] [--out runs/pretrained] [-- OPTION...]

Every cell is `proxylessnas run --pretrained efficientnet_lite0`, whose own summary has the rows:
the teacher, the network found within the limit, the teacher at a smaller input, and uniform
narrowing by least squares, the last two at the measured latency of the network found and fine-tuned
as long. Latencies are shares of the teacher's, measured in the same rounds. The teacher of a seed
serves all targets. A cell that is done is read again, so a benchmark that was stopped goes on.
--leave-out tells what a part is worth: the network that is found without it. Options after `--` go
to every run.

The sets: `flowers`, all photos at 128 px, a fifth of them for the test; `cifar10`, 5,000 images at
96 px, another 5,000 for the test. They are looked for under PROXYLESSNAS_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from proxylessnas.io.console import output

SETS = {
    "flowers": ["--data={}/flowers", "--image-size=128"],
    "cifar10": ["--data={}/cifar10", "--image-size=96", "--loading.limit=5000"],
}
WAYS = ("teacher", "found", "smaller_input", "uniform")
# Options that leave a part out; the teacher is another one where its statistics are not frozen.
PARTS = {
    "distillation": ["--train.teacher-share=0"],
    "gates": ["--search.epochs=0.001"],
    "least-squares": ["--candidates.ridge=1000"],
    "second-scores": ["--candidates.score-rounds=0"],
    "frozen-statistics": ["--teach.frozen-statistics=false", "--train.frozen-statistics=false"],
}
# What does not depend on the limit: a seed's further targets begin with it.
SHARED = ("teach", "candidates", "measure")


@dataclass(frozen=True)
class Cell:
    """A set at one target and seed: of each way the accuracy in [0, 1], and its latency as a share
    of the teacher's."""

    name: str
    target: float
    accuracies: dict[str, float]
    latencies: dict[str, float]
    limit_kept: float  # measured latency over the limit


def run(
    args: argparse.Namespace, name: str, seed: int, target: float, first: Path, without: str = ""
) -> Path:
    """The directory of a finished run."""
    out = first.parent / f"{name}-{seed}-{target:g}{'-' if without else ''}{without}"
    left_out = [*PARTS[without], "--baselines=false"] if without else []
    if (out / "summary.json").exists():
        return out
    words = [sys.executable, "-m", "proxylessnas", "run", f"--out={out}"]
    if out.exists():
        words += ["--resume"]
    elif out != first and not _changes("teach", left_out):
        begin_with(first, out, [s for s in SHARED if not _changes(s, left_out)])
        words += ["--resume", f"--target-latency={target:g}x", *left_out]
    else:
        data = os.environ.get("PROXYLESSNAS_DATA", ".")
        words += [word.format(data) for word in SETS[name]]
        words += ["--pretrained=efficientnet_lite0", f"--seed={seed}"]
        words += [f"--target-latency={target:g}x", *left_out, *args.options]
    start = time.monotonic()
    subprocess.run(words, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    minutes, gigabytes = (used.ru_utime + used.ru_stime) / 60, used.ru_maxrss / 2**20
    output().print(
        f"{out.name}: {time.monotonic() - start:.0f} s; all runs so far {minutes:.1f} CPU minutes, "
        f"at most {gigabytes:.1f} GB"
    )
    return out


def _changes(stage: str, options: Sequence[str]) -> bool:
    """Whether options change what a stage does; the scores within a limit belong to the search."""
    return any(o.startswith(f"--{stage}.") and "score-rounds" not in o for o in options)


def begin_with(first: Path, out: Path, stages: Sequence[str]) -> None:
    """The files of stages that another run has done, which this one shares."""
    (out / "stages").mkdir(parents=True)
    files = ["config.yaml", *(p.name for p in first.glob("data*.json"))]
    for stage in stages:
        record = f"stages/{stage}.json"
        files += [record, *json.loads((first / record).read_text())["files"]]
    for file in files:
        shutil.copy2(first / file, out / file)
        if (first / f"{file}.sha256").exists():
            shutil.copy2(first / f"{file}.sha256", out / f"{file}.sha256")


def cell(name: str, target: float, out: Path) -> Cell:
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    found_ms = summary.get("found_ms", summary["measured_latency_ms"])
    rows = summary.get("baselines", {}) | {
        "found": {"test_accuracy": summary["test_accuracy"], "measured_latency_ms": found_ms}
    }
    whole = rows.get("teacher", {}).get("measured_latency_ms", summary["largest_network_ms"])
    return Cell(
        name,
        target,
        {way: row["test_accuracy"] for way, row in rows.items()},
        {way: row["measured_latency_ms"] / whole for way, row in rows.items()},
        summary["measured_latency_ms"] / summary["target_latency_ms"],
    )


def show(cells: Sequence[Cell]) -> None:
    """Means over the seeds, with the standard deviation where there are several."""
    table = Table("set", "target", *(way.replace("_", " ") for way in WAYS), "of the limit")
    for name, target in dict.fromkeys((c.name, c.target) for c in cells):
        same = [c for c in cells if (c.name, c.target) == (name, target)]
        columns = [
            f"{percent(c.accuracies[way] for c in same if way in c.accuracies)} "
            f"@ {mean(c.latencies[way] for c in same if way in c.latencies):.2f}"
            for way in WAYS
        ]
        kept = max(c.limit_kept for c in same)
        table.add_row(name, f"{target:g}x", *columns, f"{kept:.2f}")
    output().print(table)


def mean(values: Iterable[float]) -> float:
    several = list(values)
    return statistics.mean(several) if several else float("nan")


def percent(values: Iterable[float]) -> str:
    several = [100 * value for value in values]
    spread = f" ± {statistics.stdev(several):.1f}" if len(several) > 1 else ""
    return f"{mean(several):.1f}{spread}"


def main() -> None:
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    cells = []
    for seed in args.seeds:
        for name in args.sets:
            first = args.out / f"{name}-{seed}-{args.targets[0]:g}"
            for target in args.targets:
                cells.append(cell(name, target, run(args, name, seed, target, first)))
                for part in args.leave_out:
                    out = run(args, name, seed, target, first, part)
                    cells.append(cell(f"{name} without {part}", target, out))
            show(cells)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--targets", type=float, nargs="+", default=[0.7, 0.5, 0.35])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--leave-out", nargs="*", default=[], choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path("runs/pretrained"))
    parser.add_argument("options", nargs="*", help="of every run, after --")
    return parser.parse_args()


if __name__ == "__main__":
    main()
