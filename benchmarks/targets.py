"""Is a latency limit kept? Ten targets over a space's range, from one search.

    python benchmarks/targets.py [--run DIRECTORY | --out DIRECTORY] [--count 10] [OPTIONS]

--run: a run whose search is finished (`proxylessnas search ...`); without it a search of the
demo's recipe is made in --out (runs/targets) first, or gone on with. Other options are the
search's: `--image-size 96 --space-settings '{}'` makes networks of milliseconds of the demo's
fractions of one. For every target a network is derived (`proxylessnas derive --latencies`:
decoded, scored, measured, corrected). Then all of them are measured anew, in the same rounds
and beside the table's canary, whose drift is taken out. A target counts as kept if this last
measurement is at most 2 % over it, or the noise if that is larger, and at most 5 % under it:
who grants 12 ms is not served by 10.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from proxylessnas.io.console import Reporter, output
from proxylessnas.limits import parse_latency
from proxylessnas.recipes import path
from proxylessnas.runs.begin import open_run
from proxylessnas.runs.directory import RunDirectory, held
from proxylessnas.runs.job import derive_latencies
from proxylessnas.session.session import Session

OVER, UNDER = 2.0, 5.0  # %


def searched(directory: Path, options: Sequence[str]) -> None:
    """A finished search of the demo in `directory`."""
    base = [sys.executable, "-m", "proxylessnas"]
    config = ["--config", str(path("demo")), "--out", str(directory), "--resume", *options]
    for verb in ("measure", "search"):
        if code := subprocess.run([*base, verb, *config], check=False).returncode:
            sys.exit(code)  # it has said why


def targets(session: Session, count: int) -> list[str]:
    """Latencies spread evenly between the space's cheapest and its dearest network."""
    low, high = session.costs.range(session.supernet.mask)[session.costs.index("latency")]
    step = (high - low) / (count + 1)
    return [f"{low + (i + 1) * step:.4g}ms" for i in range(count)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, help="a run with a finished search")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/targets"), help="of the search")
    args, options = parser.parse_known_args()
    directory = args.run or args.out
    if args.run is None:
        searched(directory, options)
    with held(RunDirectory(directory)) as opened:
        return judged(open_run(opened, {}, resume=True, reporter=Reporter()), args.count)


def judged(session: Session, count: int) -> int:
    found = derive_latencies(session, targets(session, count), {})
    networks = {k: session.supernet.derive(a) for k, a in found.items()}
    report = session.measure_networks(networks)
    table = Table(title=f"{count} targets; drift of the canary {report.drift - 1:+.1%}, taken out")
    for name in ("target ms", "predicted", "measured", "error %", "noise %", "rounds", "kept"):
        table.add_column(name, justify="right")
    kept = 0
    for limit in found:
        target, _ = parse_latency(limit)
        facts = session.store.read_json(f"stages/derive-{limit}.json")
        result = report[limit]
        error = 100 * (result.corrected_ms / target - 1)
        good = -max(UNDER, result.noise_pct) <= error <= max(OVER, result.noise_pct)
        kept += good
        table.add_row(
            f"{target:.4g}",
            f"{facts['predicted']['latency']:.4g}",
            f"{result.corrected_ms:.4g}",
            f"{error:+.1f}",
            f"{result.noise_pct:.1f}",
            str(facts["rounds"]),
            "yes" if good else "NO",
        )
    output().print(table)
    print(f"kept: {kept} of {count}")
    return 0 if kept == count else 1


if __name__ == "__main__":
    sys.exit(main())
