"""What the documents name exists: files, options of commands, settings, golden figures."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from proxylessnas import zoo
from proxylessnas.cli.options import ADDERS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "proxylessnas"
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "docs/paper.md", "docs/results.md", "docs/scale.md"]
TEXTS = {name: (ROOT / name).read_text() for name in [*DOCUMENTS, "docs/log.md"]}
CODE = [
    p
    for folder in ("src", "tests", "examples", "benchmarks")
    for p in (ROOT / folder).rglob("*.py")
]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_files_exist(name: str) -> None:
    """Paths in backticks: from the root, from the package, or what a run makes."""
    paths = re.findall(r"`((?:[\w.-]+/)+(?:[\w.-]+\.(?:py|md|yaml))?)`", TEXTS[name])
    paths = [path for path in paths if not path.startswith(("runs/demo", "published/"))]
    assert [p for p in paths if not (ROOT / p).exists() and not (PACKAGE / p).exists()] == []


def test_the_readme_has_every_folder_and_module() -> None:
    house = TEXTS["README.md"].partition("## The house")[2]
    there = {p.name + "/" for p in PACKAGE.iterdir() if p.is_dir() and p.name[0] != "_"}
    there |= {p.name for p in PACKAGE.glob("[a-z]*.py")}
    assert sorted(name for name in there if f"`{name}`" not in house) == []


def test_code_refers_to_documents_of_the_tree_alone() -> None:
    missing = {}
    for path in CODE:
        for document in re.findall(r"[\w/]*\b\w+\.md\b", path.read_text()):
            if path != Path(__file__) and not (ROOT / document).exists():
                missing[path.relative_to(ROOT).as_posix()] = document
    assert missing == {}


# --- commands ---


def commands(text: str) -> list[list[str]]:
    """The words of every indented `proxylessnas ...` command, comments and continuations joined."""
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^ {4}(?:.*-m )?(proxylessnas .*)$", joined, re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines if "..." not in line]


@cache
def help_of(verb: str) -> str:
    word = "--help" if verb in ADDERS else "--help-all"
    done = subprocess.run(
        [sys.executable, "-m", "proxylessnas", verb, word], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_have_options_that_exist(name: str) -> None:
    for verb, *words in commands(TEXTS[name]):
        known = set(re.findall(r"--[\w.-]+", help_of(verb)))
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        assert options <= known, (verb, options - known)


def test_the_readme_has_commands() -> None:
    verbs = {verb for verb, *_ in commands(TEXTS["README.md"])}
    assert {"run", "predict", "derive", "measure", "zoo"} <= verbs


def test_named_settings_exist() -> None:
    """Such as `search.reinmax`, in every document."""
    known = set(re.findall(r"--(\w[\w.-]+)", help_of("run")))
    stages = {option.split(".")[0] for option in known if "." in option}
    for name, text in TEXTS.items():
        named = re.findall(rf"`((?:{'|'.join(stages)})\.\w+)`", text)
        assert {n for n in named if n.replace("_", "-") not in known} == set(), name


def test_python_blocks_compile() -> None:
    for text in TEXTS.values():
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            compile(block, "a document", "exec")


# --- figures ---


def test_golden_figures_are_those_of_the_zoo() -> None:
    rows = re.findall(
        r"^\| (proxyless_\w+) \| \S+ \| ([\d,]+) \| ([\d,]+) \|$", TEXTS["docs/paper.md"], re.M
    )
    figures = {name: (int(p.replace(",", "")), int(m.replace(",", ""))) for name, p, m in rows}
    published = {n.name: (n.parameters, n.macs) for n in zoo.list_networks()}
    published.pop("mobilenet_v2")
    assert figures == published


def test_recipes_of_the_readme_are_those_of_the_package() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", TEXTS["README.md"], re.M)
    assert set(rows) == {path.stem for path in (PACKAGE / "recipes").glob("*.yaml")}
