"""Functions of a user's own module, by `module:function`; packages that may be missing."""

from __future__ import annotations

import difflib
import importlib
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from proxylessnas.errors import ConfigError, MissingDependency, in_words, one_line


def imported(name: str, role: str) -> Callable[..., Any]:
    """The function that `module:function` names. role: its part in messages, as `the space`.

    Raises:
        ConfigError: there is no such module, or no such function in it.
    """
    module_name, _, attribute = name.partition(":")
    try:
        with _working_directory_importable():
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's module does
        problem = one_line(error) if isinstance(error, ImportError) else in_words(error)
        near = difflib.get_close_matches(module_name, [path.stem for path in Path().glob("*.py")])
        hint = f"; did you mean {near[0]}:{attribute}?" if near and near[0] != module_name else ""
        raise ConfigError(
            f"cannot import {module_name!r} of {role} {name!r}: {problem}{hint}"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        near = difflib.get_close_matches(attribute, own)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"the module {module_name!r} has no function {attribute!r}{hint}")
    return typing.cast(Callable[..., Any], function)


def optional(module: str, extra: str, purpose: str, *, package: str = "") -> Any:
    """A module of a package that an extra of ours installs.

    purpose: what needs it, as `the data set digits`. package: its name on PyPI, where that is not
    the module's.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module.partition(".")[0]
        raise MissingDependency(name, extra, purpose) from error


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """The user's module lies where the user is, also for an installed console script."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")
