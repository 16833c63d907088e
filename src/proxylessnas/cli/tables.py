"""The verb `tables`: the latency tables of a folder, and the one of a device."""

from __future__ import annotations

from typing import Any

from proxylessnas.hardware.shared_tables import (
    columns_of,
    default_folder,
    table_of_device,
    tables_in,
)
from proxylessnas.io.console import output, say, table_of

COLUMNS = ("device", "runtime", "precision", "input", "date", "error on unseen networks")


def main(options: Any) -> None:
    """A row a table; of a device, the path of its table alone."""
    folder = options.folder or default_folder()
    if options.device:
        precision, runtime = options.precision, options.runtime
        say(str(table_of_device(options.device, folder, precision=precision, runtime=runtime)))
        return
    tables = tables_in(folder)
    table = table_of("table", COLUMNS)
    for row in columns_of([t for t in tables if not t.problem]):
        table.add_row(*row)
    for column in table.columns:
        column.overflow = "fold"  # a name that is cut short cannot be given to --device
    output().print(table)
    for t in tables:
        if t.problem:
            say(f"not usable: {t.path.name}: {t.problem}")
    say(f"{len(tables)} in {folder}; to use one: proxylessnas run --device NAME, or --table FILE")
