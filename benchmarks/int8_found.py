"""Does it pay to search for int8? A network found for int8 beside one found for float, quantised.

    PROXYLESSNAS_DATA=... python benchmarks/int8_found.py --out runs/int8 [--photos 2000]
        [--size 96] [--limit 0.5x] [--seeds 0,1,2] [--teacher efficientnet_lite0] [settings of run]

A seed makes two runs on the same photos of flowers. The first one searches in float, for `--limit`
of the trained network's float latency; what it found is quantised, and its int8 latency measured.
The second one searches in int8 within that latency. Then both int8 files are measured in the same
rounds, and classify the test photos. Prints both accuracies, in float and of the int8 file, and
both latencies; what is finished in `--out` is not done again.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from proxylessnas.cli.main import main as command
from proxylessnas.config import MeasureSettings
from proxylessnas.hardware.host import cpu_model
from proxylessnas.hardware.precisions import paired_ratio
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.timing import disturbance, measure_sessions
from proxylessnas.io.console import Reporter, output, say, table_of
from proxylessnas.runs.begin import open_run
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.session.deploying import int8_file, int8_name, running, scored
from proxylessnas.session.finishing import trained_network
from proxylessnas.session.session import Session

RUNTIME = "onnxruntime"
ROUNDS = MeasureSettings(network_rounds=60)


@dataclass(frozen=True)
class Found:
    """A network of a run: its int8 file, and the accuracies in float and of the file."""

    file: Path
    in_float: float
    in_int8: float


def run(out: Path, words: list[str]) -> Session:
    """A finished run, done now where it is not."""
    if not (out / "summary.json").exists():
        again = ["--resume"] if (out / "config.yaml").exists() else words
        if command(["run", *again, f"--out={out}"]):
            raise SystemExit(f"the run {out} failed")
    return open_run(RunDirectory(out), {}, resume=True, reporter=Reporter(quiet=True))


def found(session: Session) -> Found:
    """The run's network, quantised where the run was in float."""
    network, path = trained_network(session), session.store.file(int8_name(RUNTIME))
    if not path.exists():
        path.write_bytes(int8_file(session, network, runtime=RUNTIME))
    with running(make(RUNTIME, precision="int8"), path.read_bytes()) as file:
        in_int8 = scored(session, file, "test").accuracy
    return Found(path, scored(session, network, "test").accuracy or 0.0, in_int8 or 0.0)


def latencies(files: list[Path], seed: int):  # type: ignore[no-untyped-def]
    """Of int8 files, in the same rounds."""
    runtime = make(RUNTIME, precision="int8")
    sessions = {str(file): runtime.load_file(file) for file in files}
    visits = dict.fromkeys(sessions, ROUNDS.network_rounds)
    measured = measure_sessions(sessions, visits, ROUNDS, seed=seed)
    return [measured[str(file)] for file in files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--limit", default="0.5x")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--teacher", default="efficientnet_lite0")
    args, settings = parser.parse_known_args()
    data = Path(os.environ["PROXYLESSNAS_DATA"], "flowers")
    columns = ("seed", "float %", "int8 %", "int8 ms", "over the first")
    table, differences, measurements = table_of("found for", columns), [], []
    for seed in map(int, args.seeds.split(",")):
        words = [f"--data={data}", f"--pretrained={args.teacher}", f"--image-size={args.size}"]
        words += [f"--loading.limit={args.photos}", f"--seed={seed}", *settings]
        plain = run(args.out / f"float-{seed}", [*words, f"--target-latency={args.limit}"])
        first = found(plain)
        limit = latencies([first.file], seed)[0].median_ms
        words += [f"--target-latency={limit:.4f}ms", "--precision=int8"]
        second = found(run(args.out / f"int8-{seed}", words))
        pair = latencies([first.file, second.file], seed)
        measurements += pair
        ratio = paired_ratio(pair[1], pair[0])
        for name, one, ms, over in (
            ("float", first, pair[0].median_ms, "1"),
            ("int8", second, pair[1].median_ms, str(ratio)),
        ):
            cells = (f"{100 * one.in_float:.2f}", f"{100 * one.in_int8:.2f}", f"{ms:.3f}", over)
            table.add_row(name, str(seed), *cells)
        differences.append(100 * (second.in_int8 - first.in_int8))
    output().print(table)
    values = torch.tensor(differences)
    spread = f" ± {values.std() / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    say(f"found for int8 less found for float: {values.mean():+.2f}{spread} points")
    say(f"{args.photos} photos at {args.size} px, {RUNTIME}, one thread, {cpu_model()}")
    if disturbed := disturbance(measurements):
        say(f"meanwhile {disturbed}")


if __name__ == "__main__":
    main()
