"""What a person sees while it works: stages, progress with the time left, warnings."""

from __future__ import annotations

import codecs
import io
import os
import shutil
import sys
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NARROW = 72  # columns of tables at least: a narrower terminal breaks lines, and loses nothing
WIDE = 160  # columns of standard output where it is a file or a pipe: no table is cut there
EVERY = 10.0  # seconds between lines where there is no terminal to redraw
FIRST = 1.0  # seconds to the first of them
# Of what is printed here, for consoles of other alphabets; accents are dropped, all else is "?".
PLAIN = str.maketrans({"▇": "#", "µ": "u", "±": "+-", "…": "...", "→": "->", "–": "-", "’": "'"})


def write_anything() -> None:
    """Let the standard streams replace what their encoding cannot write, instead of failing.

    A console of Windows (cp1252) or of a container (ASCII) has no block for a bar; names of files
    and classes may hold what no console has.
    """
    # Of a process without a console, or one whose output was closed (`>&-`), there are none.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    codecs.register_error("plain", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(PLAIN)
    letters = unicodedata.normalize("NFKD", text)
    plain = "".join(c if c.isascii() else "?" for c in letters if not unicodedata.combining(c))
    return plain or "?", error.end


def output() -> Console:
    """Standard output, for results; `Reporter` has the progress, on standard error."""
    fixed = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    columns = shutil.get_terminal_size().columns
    return _console(sys.stdout, width=max(columns, NARROW) if fixed else WIDE)


def _console(stream: TextIO, **how: Any) -> Console:
    """Plain lines where the stream is no terminal: in a notebook too, which asks for colours.

    Names of users stand as they are: neither `[a]` nor `:b:` means anything in them.
    """
    from rich.console import Console  # the help needs none

    terminal = stream.isatty()
    return Console(
        file=stream,
        highlight=False,
        markup=False,
        emoji=False,
        force_jupyter=False,
        force_terminal=terminal,
        **how,
    )


def say(text: str) -> None:
    """A result as it stands: not cut, not coloured, no markup read in it."""
    output().print(text, soft_wrap=True)


def table_of(first: str, columns: Iterable[str]) -> Table:
    """A table of names and, on the right, of their figures; no cell is wrapped."""
    from rich.table import Table

    table = Table(box=None)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


class Reporter:
    """Progress on a terminal as a bar, elsewhere as a line every few seconds.

    clock: seconds; tests put theirs in its place.
    """

    def __init__(self, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = _console(sys.stderr, quiet=quiet)
        self.clock = clock

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=not self.console.is_terminal)

    @contextmanager
    def bar(self, what: str) -> Iterator[Callable[..., None]]:
        """A function update(done, total, note="") for one piece of work; total 0 is unknown.

        Another total begins anew: a further part of the work, whose steps take another time.
        """
        if not self.console.is_terminal:
            yield self._lines(what)
            return
        from rich import progress as rich

        columns = (
            rich.TextColumn("  {task.description}", markup=False),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeRemainingColumn(),
            rich.TextColumn("{task.fields[note]}", markup=False),
        )
        with rich.Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(what, total=None, note="")

            def update(done: int, total: int, note: str = "") -> None:
                whole = total or None
                if whole != progress.tasks[task].total:
                    progress.reset(task, total=whole)
                progress.update(task, completed=done, total=whole, note=note)

            yield update

    def _lines(self, what: str) -> Callable[..., None]:
        start = self.clock()
        due, first, part = start + FIRST, 0, -1

        def update(done: int, total: int, note: str = "") -> None:
            nonlocal start, due, first, part
            now = self.clock()
            if total != part:
                start, first, part = now, done, total
            if now < due or (total and done >= total):
                return
            due = now + EVERY
            rate = (done - first) / max(now - start, 1e-9)
            left = f", {duration((total - done) / rate)} left" if rate > 0 and total else ""
            of = f" of {total}" if total else ""
            self.say(f"  {what}: {done}{of}{left}{'; ' + note if note else ''}")

        return update

    @contextmanager
    def warnings_as_lines(self) -> Iterator[None]:
        """Warnings that are meant for the user, one line each, without a source line."""
        with warnings.catch_warnings():
            warnings.showwarning = self._show
            yield

    def _show(self, message: Any, category: Any, *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning):
            self.say(f"  warning: {message}")


def duration(seconds: float) -> str:
    """3725 -> 1:02:05, 65 -> 1:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
