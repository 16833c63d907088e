"""Imports point one way: a room uses only rooms that come before it in this list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "proxylessnas"
ORDER = [
    "errors",
    "schema",
    "seeds",
    "io",
    "architecture",
    "limits",
    "config",
    "data",
    "training",
    "core",
    "selection",
    "spaces",
    "export",
    "hardware",
    "zoo",
    "pretrained",
    "surgery",
    "report",
    "recipes",
    "session",
    "runs",
    "api",
    "cli",
]
NOT_ROOMS = {"__init__", "__main__"}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The project's rooms that a file imports, also inside functions."""
    package = ["proxylessnas", *path.relative_to(SOURCE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                full = [*base, *(node.module or "").split(".")]
            else:
                full = (node.module or "").split(".")
            names = [[*full, alias.name] for alias in node.names] if full[-1] == "" else [full]
            names = [[part for part in name if part] for name in names]
            if full == ["proxylessnas"] or full == ["proxylessnas", ""]:
                names = [["proxylessnas", alias.name] for alias in node.names]
            found |= {name[1] for name in names if name[0] == "proxylessnas" and len(name) > 1}
        elif isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            found |= {p[1] for p in parts if p[0] == "proxylessnas" and len(p) > 1}
    return found


FILES = sorted(p for p in SOURCE.rglob("*.py") if room(p) not in NOT_ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    here = room(path)
    assert here in ORDER, f"{here} has no place in the order: give it one"
    later = {name for name in imported(path) if ORDER.index(name) > ORDER.index(here)}
    assert not later, f"{path.name} imports {later}, which come after {here}"


def test_the_order_names_rooms_that_exist() -> None:
    assert {room(p) for p in FILES} == set(ORDER)
