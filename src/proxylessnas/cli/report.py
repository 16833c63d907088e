"""The verb `report`: one HTML file of one run, or of several side by side."""

from __future__ import annotations

from typing import Any

from proxylessnas.io.console import say
from proxylessnas.runs.reporting import write_report


def main(options: Any) -> None:
    """Write it and say where it is."""
    file = write_report(options.directory, options.out)
    say(f"{file} ({file.stat().st_size / 1024:,.0f} KiB): open it in a browser")
