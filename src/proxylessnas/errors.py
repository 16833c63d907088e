"""Everything a user can get wrong, as one hierarchy.

    UserError                  one clear line and exit code 2; never a bug of ours
     ├─ ConfigError            a setting, an option or a config file
     ├─ DataError              a data set, an image, a label
     ├─ ArchitectureError      an architecture that does not fit its space
     ├─ SupernetError          a model that cannot be searched
     ├─ LimitError             a limit that no network of the space can keep
     ├─ MeasurementError       a runtime, a measurement or a latency table
     │   └─ MissingEntry       a candidate the table cannot price
     ├─ ExportError            an export that fails or computes something else
     ├─ RunError               a run directory, a checkpoint, a lock
     ├─ RankError              processes of one run that no longer agree, or ended
     └─ MissingDependency      an extra that is not installed

A message names what is wrong, the value, what is allowed and what to do. Anything
else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MAX_LINE = 1500  # characters


class UserError(Exception):
    """Base of all errors whose cause is the input; the command line exits with 2.

    The message is one line of bounded length, whatever a stranger's file put into it.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.splitlines())
        cut = len(line) > MAX_LINE
        super().__init__(f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}" if cut else line)


class ConfigError(UserError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class BudgetError(ConfigError):
    """The time that was asked for is too short for any useful run."""


class DataError(UserError):
    """A data set is missing, empty, damaged or not of a known layout."""


class ArchitectureError(UserError, ValueError):
    """An architecture does not fit the space or the model it names."""


class SupernetError(UserError):
    """A model holds no mixed operation, or holds them in a way that cannot be searched."""


class LimitError(UserError):
    """No network of the space keeps the limit that was asked for."""


class MeasurementError(UserError):
    """A runtime cannot measure, or a table belongs to something else."""


class MissingEntry(MeasurementError):
    """The latency table has no entry for a candidate; there is no default."""


class ExportError(UserError):
    """A network cannot be exported, or the exported file computes something else."""


class RunError(UserError):
    """A run directory is missing, in use, damaged or belongs to another run."""


class RankError(UserError):
    """One of several processes of a run ended, or they do not agree."""


class MissingDependency(UserError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed: "
            f"pip install 'proxylessnas[{extra}]'"
        )


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """The nearest allowed words as the tail of a message, or all of them if none is near."""
    words = sorted(allowed)
    near = difflib.get_close_matches(word, words, n=3, cutoff=0.6)
    if not near and len(word) > 2:  # cut short: onnx for onnxruntime
        near = [whole for whole in words if whole.startswith(word)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"allowed: {', '.join(words)}"


def one_line(error: BaseException, most: int = 200) -> str:
    """Another library's message as one line of at most so many characters."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."


def in_words(error: BaseException) -> str:
    """An exception of a user's code: its kind, and what it says."""
    said = one_line(error)
    kind = type(error).__name__
    return kind if said == kind else f"{kind}: {said}"


@contextmanager
def foreign(
    error: type[UserError], failure: str, most: int = 200, *, kind: bool = False
) -> Iterator[None]:
    """Whatever other libraries and users' modules raise within, as one line that begins so.

    most: characters of what they say. kind: whether the exception's class is named, too.

    Raises:
        error: anything but a `UserError`, which passes as it is, was raised within.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as problem:
        name = f"{type(problem).__name__}: " if kind else ""
        raise error(f"{failure}: {name}{one_line(problem, most)}") from problem
