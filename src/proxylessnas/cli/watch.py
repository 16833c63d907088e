"""The verb `watch`: a run's progress and curves in the terminal, drawn again while it goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from proxylessnas.errors import RunError
from proxylessnas.io.console import duration, say
from proxylessnas.report.facts import SEARCHES, Facts
from proxylessnas.runs.reporting import facts_of_run

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60  # characters of a curve
CLEAR = "\033[H\033[J"


def main(options: Any) -> None:
    """Until the run is finished, or the user has seen enough (Ctrl-C); elsewhere than on a
    terminal, and with --once, once."""
    if options.every <= 0:
        raise RunError(f"--every is {options.every:g}: it must be above 0 seconds")
    live = sys.stdout.isatty() and not options.once
    while True:
        facts = facts_of_run(options.directory)
        if live:
            sys.stdout.write(CLEAR)
        for line in screen(facts):
            say(line)
        if not live or not facts.missing:
            return
        time.sleep(options.every)


def screen(facts: Facts) -> list[str]:
    """What is shown: stages with their seconds, then the newest values and their curves."""
    done = ", ".join(f"{name} {duration(seconds)}" for name, seconds in facts.seconds.items())
    lines = [facts.directory, f"done: {done or 'nothing yet'}"]
    lines += [f"to come: {', '.join(facts.missing)}"] if facts.missing else ["finished"]
    for stage, curves in facts.curves.items():
        last = max(int(points[-1][0]) for points in curves.values())
        lines += ["", f"{stage}, step {last}"]
        for name, points in curves.items():
            values = [value for _, value in points]
            limit = facts.latency.target if name == "expected_latency" else None
            beside = "" if limit is None or stage not in SEARCHES else f" (limit {limit:.4g})"
            lines.append(f"  {name:18} {values[-1]:>10.4g} {sparkline(values)}{beside}")
    if facts.outcome is not None and facts.outcome.accuracy is not None:
        lines += ["", f"test accuracy {100 * facts.outcome.accuracy:.2f} %"]
    return lines


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """A curve in one line: the mean of every part, low to high."""
    parts = min(width, len(values))
    edges = [len(values) * k // parts for k in range(parts + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return BARS[0] * parts
    return "".join(BARS[round((len(BARS) - 1) * (m - low) / (high - low))] for m in means)
