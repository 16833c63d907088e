"""The source of functions, and whose it is: torch's, an installed package's, or the user's own."""

from __future__ import annotations

import ast
import dis
import inspect
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from types import CodeType

CORE = frozenset({*sys.stdlib_module_names, "torch", "numpy"} - {"__main__"})


def is_core(module: str | None) -> bool:
    """Whether a module is torch's, numpy's or the standard library's."""
    return (module or "").partition(".")[0] in CORE


@cache
def is_own(module: str | None) -> bool:
    """Whether a module is the user's own code, and no installed package."""
    file = str(getattr(sys.modules.get(module or ""), "__file__", None) or "")
    top = (module or "").partition(".")[0]
    installed = "site-packages" in file or "dist-packages" in file or top == "proxylessnas"
    return not (installed or is_core(module))


@cache
def source(code: CodeType) -> str:
    """The source without comments and docstrings; the byte code where there is none.

    Lambdas are told by their byte code too: several may stand in one line. So is what has no file:
    Python 3.13 finds the text of `python -c` in place of what code under that name was made of.
    """
    try:
        text = inspect.getsource(code)
    except (OSError, TypeError):
        return _byte_code(code)
    unsure = "<lambda>" in code.co_qualname or code.co_filename.startswith("<")
    return _plain(text) + (_byte_code(code) if unsure else "")


def _plain(text: str) -> str:
    try:
        tree = ast.parse(textwrap.dedent(text))
    except SyntaxError:  # a lambda within an expression of several lines
        return text
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _byte_code(code: CodeType) -> str:
    constants = [_byte_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    names = (code.co_names, code.co_varnames, code.co_freevars)
    return f"{code.co_name} {code.co_code.hex()} {constants} {names}"


@cache
def globals_read(code: CodeType) -> tuple[str, ...]:
    """The globals that the code and the functions in it read, except those that they set."""
    read, written = set(), set()
    for part in _parts(code):
        for instruction in dis.get_instructions(part):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                read.add(str(instruction.argval))
            elif instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                written.add(str(instruction.argval))
    return tuple(sorted(read - written))


@cache
def names_read(code: CodeType) -> tuple[str, ...]:
    """The names of globals and attributes in the code and in the functions in it."""
    return tuple(sorted({name for part in _parts(code) for name in part.co_names}))


def _parts(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)
