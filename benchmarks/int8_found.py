"""Does it pay to search for int8? A network found for int8 beside one found for float, quantised.

    PROXYLESSNAS_DATA=... python benchmarks/int8_found.py --out runs/int8 [--photos 1200]
        [--size 96] [--epochs 6] [--limit 0.5x] [--seeds 0,1,2] [--teacher efficientnet_lite0]
        [settings of run]

A seed makes two runs on the same photos of flowers. The first one searches in float, for `--limit`
of the trained network's float latency; what it found is quantised, and its latency measured beside
that of the trained network, both in int8. The second one searches in int8 within that share. Both
have one teacher and the same candidates, which do not depend on the precision and are made once;
from the latency table on each goes its own way, with the same settings. Then both int8 files are
measured in the same rounds, and classify the test photos; a second network that is slower by more
than the noise is found once more, within a share that is less by as much. Prints both accuracies,
in float and of the int8 file, its loss, and both latencies; what is finished in `--out` is not done
again.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pretrained import begin_with
from rich.table import Table

from proxylessnas.cli.main import main as command
from proxylessnas.config import MeasureSettings
from proxylessnas.hardware.host import cpu_model
from proxylessnas.hardware.precisions import paired_ratio
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.timing import Measurement, disturbance, measure_sessions
from proxylessnas.io.console import Reporter, output, say, table_of
from proxylessnas.runs.begin import open_run
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.runs.specialised import SpecialisedProblem
from proxylessnas.session.deploying import int8_file, int8_name, running, scored
from proxylessnas.session.finishing import trained_network
from proxylessnas.session.session import Session
from proxylessnas.training.evaluate import Score

RUNTIME = "onnxruntime"
ROUNDS = MeasureSettings(network_rounds=60)
SHARED = ("teach", "candidates")  # what does not depend on the precision
COLUMNS = ("seed", "float %", "int8 %", "int8 loss", "int8 ms", "over the first")


@dataclass(frozen=True)
class Found:
    """A network of a run: its int8 file, and the scores in float and of the file."""

    file: Path
    in_float: Score
    in_int8: Score


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
        in_int8 = scored(session, file, "test")
    return Found(path, scored(session, network, "test"), in_int8)


def found_for_int8(plain: Session, first: Path, out: Path) -> Session:
    """The second run, within the first one's share of the trained network's int8 latency."""
    if not (out / "config.yaml").exists():
        assert isinstance(plain.problem, SpecialisedProblem) and plain.store.path is not None
        teacher = out.parent / f"teacher-{plain.config.seed}.onnx"
        teacher.write_bytes(int8_file(plain, plain.problem.teacher(), runtime=RUNTIME))
        share = paired_ratio(*latencies([first, teacher], plain.config.seed)).value
        begin_with(plain.store.path, out, SHARED)
        limited = replace(plain.config, precision="int8", target_latency=f"{share:.4f}x")
        RunDirectory(out).write_config(limited)
    return run(out, [])


def found_again(second: Session, out: Path, ratio: float) -> Session:
    """The second run within a share that is less by as much as its network is slower."""
    if not (out / "config.yaml").exists():
        share = float(str(second.config.target_latency).removesuffix("x")) / ratio
        assert second.store.path is not None
        begin_with(second.store.path, out, [*SHARED, "measure"])
        limited = replace(second.config, target_latency=f"{share:.4f}x")
        RunDirectory(out).write_config(limited)
    return run(out, [])


def latencies(files: list[Path], seed: int) -> list[Measurement]:
    """Of int8 files, in the same rounds."""
    runtime = make(RUNTIME, precision="int8")
    sessions = {str(file): runtime.load_file(file) for file in files}
    visits = dict.fromkeys(sessions, ROUNDS.network_rounds)
    measured = measure_sessions(sessions, visits, ROUNDS, seed=seed)
    return [measured[str(file)] for file in files]


def rows(table: Table, seed: int, both: list[Found], pair: list[Measurement]) -> None:
    """The two lines of a seed."""
    ratios = ("1", str(paired_ratio(pair[1], pair[0])))
    for name, one, measured, over in zip(("float", "int8"), both, pair, ratios, strict=True):
        accuracies = (f"{100 * (score.accuracy or 0):.2f}" for score in (one.in_float, one.in_int8))
        figures = (f"{one.in_int8.loss:.4f}", f"{measured.median_ms:.3f}", over)
        table.add_row(name, str(seed), *accuracies, *figures)


def mean(name: str, values: list[float]) -> str:
    tensor = torch.tensor(values)
    spread = f" ± {tensor.std() / len(values) ** 0.5:.2g}" if len(values) > 1 else ""
    return f"{tensor.mean():+.3g}{spread} {name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=1200)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=float, default=6, help="of the teacher, and of each found")
    parser.add_argument("--limit", default="0.5x")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--teacher", default="efficientnet_lite0")
    args, settings = parser.parse_known_args()
    words = [f"--data={Path(os.environ['PROXYLESSNAS_DATA'], 'flowers')}", "--baselines=false"]
    words += [f"--pretrained={args.teacher}", f"--image-size={args.size}"]
    words += [f"--loading.limit={args.photos}", f"--target-latency={args.limit}"]
    words += [f"--teach.epochs={args.epochs}", f"--train.epochs={args.epochs}", *settings]
    table, points, losses, measurements = table_of("found for", COLUMNS), [], [], []
    for seed in map(int, args.seeds.split(",")):
        plain = run(args.out / f"float-{seed}", [*words, f"--seed={seed}"])
        first = found(plain)
        within = found_for_int8(plain, first.file, args.out / f"int8-{seed}")
        second = found(within)
        pair = latencies([first.file, second.file], seed)
        slower, again = paired_ratio(pair[1], pair[0]), args.out / f"int8-{seed}-again"
        if slower.low > 1 or again.exists():
            second = found(found_again(within, again, slower.value))
            pair = latencies([first.file, second.file], seed)
        measurements += pair
        rows(table, seed, [first, second], pair)
        accuracies = [one.in_int8.accuracy or 0.0 for one in (first, second)]
        points.append(100 * (accuracies[1] - accuracies[0]))
        losses.append(second.in_int8.loss - first.in_int8.loss)
        output().print(table)
        say(f"found for int8 less for float: {mean('points', points)}, {mean('of loss', losses)}")
    say(f"{args.photos} photos at {args.size} px, {RUNTIME}, one thread, {cpu_model()}")
    if disturbed := disturbance(measurements):
        say(f"meanwhile {disturbed}")


if __name__ == "__main__":
    main()
